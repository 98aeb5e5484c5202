"""Numbers with their intervals: bootstrap over requests, and over training runs and requests at once.

All intervals hold 95 % and are percentiles of resampled means.

Legend: N requests, R runs (training seeds), K resamples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ENDS = (0.025, 0.975)
CHUNK = 100  # resamples at once
DEVIATIONS = 1.96  # standard errors each side: 95 % of a normal distribution
Scale = Callable[[Tensor], Tensor]  # of a mean: what it is given in


@dataclass(frozen=True)
class Quantity:
    """A mean, the ends of its 95 % interval, and of how many requests; NaN where there are too few of them."""

    value: float
    low: float
    high: float
    n: int


def mean_of(values: Tensor | Sequence[float], seed: int = 0, resamples: int = 1000) -> Quantity:
    """The mean of values (N,), requests resampled; NaN entries are left out, and ``n`` counts the others."""
    given = torch.as_tensor(values, dtype=torch.float64)
    return _crossed([given[~given.isnan()][None]], seed, resamples)


def nested_mean(runs: Sequence[Tensor], seed: int = 0, resamples: int = 1000, scale: Scale | None = None) -> Quantity:
    """The mean of several runs of the same N requests, resampled as one side of ``nested_difference``."""
    side = torch.stack([torch.as_tensor(run, dtype=torch.float64) for run in runs])  # (R, N)
    return _crossed([side[:, ~side.isnan().any(0)]], seed, resamples, scale)


def nested_difference(
    a: Sequence[Tensor], b: Sequence[Tensor], seed: int = 0, resamples: int = 1000, scale: Scale | None = None
) -> Quantity:
    """The mean of ``b - a``, each side several runs of the same N requests: the pigeonhole bootstrap (Owen, 2007).

    Requests are resampled together for all runs, runs for each side on its own: R - 1 draws of R runs, with which the
    mean's variance comes out right for few of them (McCarthy and Snowden, 1985). One run is taken as it is: the
    interval then says nothing about other seeds. A request counts where every run has a value. scale: taken of each
    side's mean before the difference, as the dB of a mean square error.
    ValueError for no runs, and for runs of unequal length.
    """
    sides = [[torch.as_tensor(run, dtype=torch.float64) for run in side] for side in (a, b)]
    lengths = {len(run) for side in sides for run in side}
    if not (a and b) or len(lengths) != 1:
        raise ValueError(f"{len(a)} and {len(b)} runs of {sorted(lengths)} requests: give runs of the same requests")
    first, second = (torch.stack(side) for side in sides)  # (R, N)
    counted = ~torch.cat([first, second]).isnan().any(0)
    return _crossed([first[:, counted], second[:, counted]], seed, resamples, scale)


def _crossed(sides: Sequence[Tensor], seed: int, resamples: int, scale: Scale | None = None) -> Quantity:
    """The mean of the last side (R, N) less that of the one before it, if any."""
    n = sides[0].shape[1]
    scale = scale or torch.clone
    means = [float(scale(side.mean())) for side in sides] if n else [math.nan]
    value = means[-1] - sum(means[:-1])
    if n < 2:
        return Quantity(value, math.nan, math.nan, n)
    generator = torch.Generator().manual_seed(seed)
    by_request = [_drawn_runs(side, resamples, generator) for side in sides]
    found = []
    for start in range(0, resamples, CHUNK):
        drawn = torch.randint(n, (min(CHUNK, resamples - start), n), generator=generator)  # (k, N)
        rows = (values.expand(resamples, -1)[start: start + CHUNK] for values in by_request)
        each = [scale(row.gather(1, drawn).mean(1)) for row in rows]
        found.append(each[-1] - sum(each[:-1]))
    low, high = torch.quantile(torch.cat(found), torch.tensor(ENDS, dtype=torch.float64)).tolist()
    return Quantity(value, low, high, n)


def _drawn_runs(side: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Means over drawn runs (K, N) of a side (R, N); (1, N) for one run."""
    runs = len(side)
    if runs == 1:
        return side
    drawn = torch.randint(runs, (resamples, runs - 1), generator=generator)
    shares = torch.zeros(resamples, runs, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full(drawn.shape, 1 / (runs - 1), dtype=torch.float64)
    )
    return shares @ side
