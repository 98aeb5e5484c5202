"""What the votes of a preference study say: win rates with intervals, and whether a side was favoured.

Legend: R raters, P pairs, S resamples.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sb.evaluate.quantity import Quantity, wilson
from sb.evaluate.study import KEY, SCHEMA

RESAMPLES = 2000
SIDES = ("left", "right", "tie")


@dataclass(frozen=True)
class Count:
    """One study counted. decided: share of A among the votes that are no ties; halved: among all votes, a tie counting
    half for each. lefts: votes for the left side among those decided; side_p: how probable a count at least as uneven
    is where sides do not matter (exact binomial test, two-sided)."""

    a: str
    b: str
    raters: int
    pairs: int
    wins: int
    losses: int
    ties: int
    decided: Quantity
    halved: Quantity
    lefts: int
    side_p: float


def count_votes(study: str | Path, results: Sequence[str | Path], seed: int = 0) -> Count:
    """Count the results files of one study folder; ValueError for a file of another study, or a rater counted twice.

    Intervals are Wilson's score intervals of 95 %. Several raters' votes count for as many as have the variance of a
    bootstrap over raters and pairs: both resampled, crosswise, and of R raters R - 1 drawn, as ``nested_difference``
    draws runs.
    """
    key = _read(Path(study) / KEY, ("study", "a", "b", "a_left"))
    rows: dict[str, list[str | None]] = {}
    for path in results:
        found = _read(path, ("study", "rater", "votes"))
        rater, votes, pairs = found["rater"], found["votes"], len(key["a_left"])
        if found["study"] != key["study"]:
            raise ValueError(f"{path} holds votes of another study than {study}")
        if rater in rows:
            raise ValueError(f"{path}: rater '{rater}' is counted already; give each rater's last file once")
        if not isinstance(votes, list) or len(votes) > pairs or any(vote not in SIDES for vote in votes):
            raise ValueError(f"{path} holds other votes than {', '.join(SIDES)}, or more than {pairs}")
        rows[rater] = votes + [None] * (pairs - len(votes))
    a_side = ["left" if left else "right" for left in key["a_left"]]
    given = list(rows.values())
    won = torch.tensor([[vote == side for vote, side in zip(row, a_side, strict=True)] for row in given]).double()
    decided = torch.tensor([[vote in ("left", "right") for vote in row] for row in given]).double()
    voted = torch.tensor([[vote is not None for vote in row] for row in given]).double()  # (R, P), as the others
    halves = won + (voted - decided) / 2
    lefts, num_decided = sum(row.count("left") for row in given), int(decided.sum())
    return Count(
        key["a"], key["b"], len(rows), len(a_side), int(won.sum()), num_decided - int(won.sum()),
        int(voted.sum()) - num_decided, _share(won, decided, seed), _share(halves, voted, seed), lefts,
        sign_test(lefts, num_decided),
    )


def sign_test(count: int, of: int) -> float:
    """The probability of a count at least as far from half as this one, where both outcomes are equally likely."""
    tail = sum(math.comb(of, k) for k in range(min(count, of - count) + 1))
    return min(1.0, 2 * tail / 2**of)


def lines_of(count: Count) -> str:
    """Lines for a terminal."""
    votes = count.wins + count.losses + count.ties
    return "\n".join([
        f"A = {count.a}, B = {count.b}",
        f"{count.raters} rater{'s' * (count.raters > 1)}, {count.pairs} pairs, {votes} votes: A better {count.wins}, "
        f"B better {count.losses}, no difference {count.ties}",
        f"A preferred, ties left out       {_percent(count.decided)}",
        f"A preferred, a tie half to each  {_percent(count.halved)}",
        f"left side chosen {count.lefts} of {count.decided.n} times, p = {count.side_p:.3f} where sides do not matter",
    ])


def _percent(share: Quantity) -> str:
    if not share.n:
        return "no such votes"
    return f"{share.value:.1%}, 95 % interval {share.low:.1%} to {share.high:.1%}, n = {share.n}"


def _share(won: Tensor, counted: Tensor, seed: int) -> Quantity:
    """Sum of won (R, P) over sum of counted (R, P)."""
    raters, pairs = won.shape
    votes = int(counted.sum())
    if not votes:
        return Quantity(math.nan, math.nan, math.nan, 0)
    share = float(won.sum()) / votes
    if raters == 1:
        return Quantity(share, *wilson(share, votes), votes)
    draw = torch.Generator().manual_seed(seed)
    shares = []
    for _ in range(RESAMPLES):
        rows = torch.randint(raters, (raters - 1,), generator=draw)
        columns = torch.randint(pairs, (pairs,), generator=draw)
        times = torch.bincount(rows, minlength=raters).double(), torch.bincount(columns, minlength=pairs).double()
        shares.append((times[0] @ won @ times[1]) / (times[0] @ counted @ times[1]))
    drawn = torch.stack(shares)
    spread = float(drawn[~drawn.isnan()].var())
    worth = share * (1 - share) / spread if spread else float(counted.any(0).sum())  # votes; all alike: the pairs
    return Quantity(share, *wilson(share, worth), votes)


def _read(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text())
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']} is not {SCHEMA}")
        return {key: found[key] for key in keys}
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable: {error!r}") from None
