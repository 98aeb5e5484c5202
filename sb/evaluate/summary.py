"""What a finished list says: every metric overall, by level, by size of the object and by class, with intervals.

Legend: N requests, D width of a feature network.
"""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from scipy.special import stdtrit
from torch import Tensor

from sb.evaluate.lists import Case
from sb.evaluate.quantity import ENDS, Quantity, mean_of

# COCO's areas of small and medium objects, 32^2 and 96^2 px, as shares of its usual 640x480 px picture
SIZES = {"small": 32**2 / (640 * 480), "medium": 96**2 / (640 * 480), "large": math.inf}
FOLDS = 10
FOLDED_WIDTH = 512  # features, up to which groups' distances have intervals: a wider network's take minutes
POOLED_CLASS = 100  # requests of a class, from which on it has metrics of many together
Side = Literal["higher", "lower", "zero", None]  # which values are better: zero, those nearer to it; None, neither


@dataclass(frozen=True)
class Pooled:
    """Metrics of many requests together: ``of`` their numbers (n,). width: of the rows that it looks at."""

    of: Callable[[Tensor], Mapping[str, float]]
    width: int


def size_of(case: Case) -> str:
    """small, medium or large, by the share of the picture that the object covers, or its mask where none is known."""
    outline = case.outline_pixels()
    share = float((case.mask_pixels() if outline is None else outline).double().mean())
    return next(name for name, limit in SIZES.items() if share < limit)


def groups_of(cases: Sequence[Case]) -> dict[str, dict[str, Tensor]]:
    """Numbers of the cases (n,) by group, for each way of grouping: ``level`` (``2 of 5``), ``size``, ``class``."""
    found: dict[str, dict[str, list[int]]] = {"level": {}, "size": {}, "class": {}}
    for number, case in enumerate(cases):
        names = {"level": f"{case.level:g} of {case.num_levels}", "size": size_of(case), "class": case.label}
        for way, name in names.items():
            found[way].setdefault(name, []).append(number)
    order: dict[str, Callable[[str], Any]] = {"level": share_of, "size": list(SIZES).index, "class": str}
    return {
        way: {name: torch.tensor(groups[name]) for name in sorted(groups, key=order[way])}
        for way, groups in found.items()
    }


def objects_of(cases: Sequence[Case]) -> Tensor:
    """(N,) a number for each object: cases of one, at several levels, say little more than one of them."""
    first: dict[tuple[str, str], int] = {}
    return torch.tensor([first.setdefault((case.image, case.instance), len(first)) for case in cases])


def share_of(level: str) -> float:
    """Where ``2 of 5`` stands between the outline, 0, and the box, 1."""
    own, _, last = level.partition(" of ")
    return float(own) / (float(last) or 1)


def summarise(
    cases: Sequence[Case], values: Mapping[str, Tensor], pooled: Sequence[Pooled] = (), shares: Collection[str] = ()
) -> dict[str, Any]:
    """``overall`` by metric, and ``level``, ``size`` and ``class`` by group and metric, each value with its interval.

    values: (N,) by metric. pooled: of classes, for those of ``POOLED_CLASS`` requests or more. shares: metrics of yes
    and no.
    """
    groups, objects = groups_of(cases), objects_of(cases)
    everything = torch.arange(len(cases))

    def row(numbers: Tensor, way: str) -> dict[str, dict[str, Any]]:
        found = {
            name: mean_of(column[numbers], objects[numbers], share=name in shares) for name, column in values.items()
        }
        for metric in pooled if way != "class" or len(numbers) >= POOLED_CLASS else ():
            quick = way != "class" and metric.width <= FOLDED_WIDTH
            found |= folded(metric, numbers, objects[numbers], FOLDS if quick or not way else 0)
        return {name: _plain(quantity) for name, quantity in found.items()}

    return {
        "overall": row(everything, ""),
        **{
            way: {name: row(numbers, way) for name, numbers in found.items()} for way, found in groups.items()
        },
    }


def folded(metric: Pooled, numbers: Tensor, objects: Tensor, folds: int = FOLDS) -> dict[str, Quantity]:
    """Pooled metrics of requests (n,) with intervals of a jackknife, for which each of the folds is left out once; none
    for 0 folds. objects: (n,) what a fold holds all requests of. Student's t of as many folds.

    A bootstrap would repeat requests, which a Frechet distance takes for a narrower distribution.
    """
    whole = metric.of(numbers)
    which, place = torch.unique(objects, return_inverse=True)
    folds = min(folds, len(which))
    shuffled = torch.randperm(len(which), generator=torch.Generator().manual_seed(0))
    fold = shuffled % max(folds, 1)
    left = [metric.of(numbers[fold[place] != n]) for n in range(folds)] if folds > 1 else []
    found = {}
    for name, value in whole.items():
        each = [other[name] for other in left]
        spread = math.sqrt((folds - 1) * statistics.pvariance(each)) if left else math.nan
        margin = float(stdtrit(folds - 1, ENDS[1])) * spread
        found[name] = Quantity(value, value - margin, value + margin, len(numbers))
    return found


def better(metric: Any, name: str) -> Side:
    """Which values of ``name``, one of a metric's, are better.

    The metric says so in its class attribute ``better``, a mapping by name where they differ. Who says nothing of
    single requests is not ranked; metrics of many together are distances. ValueError for another word.
    """
    told: Any = getattr(metric, "better", "lower" if hasattr(metric, "pooled") else None)
    side: Side = told.get(name) if isinstance(told, Mapping) else told
    if side not in get_args(Side):
        raise ValueError(f"metric '{name}': better must be 'higher', 'lower', 'zero' or None, not {side!r}")
    return side


def ranked(values: Mapping[str, Tensor], sides: Mapping[str, Side]) -> list[int]:
    """Numbers of the requests from best to worst: by the mean, over the metrics that a request has, of the share of
    requests that it beats. sides: which values are better, by metric. None where no metric has a better side."""
    shares = []
    for name, column in values.items():
        if side := sides[name]:
            signed = column if side == "higher" else -column if side == "lower" else -column.abs()
            known = signed[~signed.isnan()].sort().values
            less, most = (torch.searchsorted(known, signed, right=right) for right in (False, True))
            shares.append(torch.where(column.isnan(), math.nan, (less + most).double() / 2 / len(known)))
    if not shares:
        return []
    score = torch.stack(shares).nanmean(0).nan_to_num(0.5)
    return [int(n) for n in score.argsort(descending=True, stable=True)]


def _plain(quantity: Quantity) -> dict[str, Any]:
    """As strict JSON holds it, in six digits."""
    return {name: value if isinstance(value, int) else _digits(value) for name, value in asdict(quantity).items()}


def _digits(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
