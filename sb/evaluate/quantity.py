"""Numbers with their 95 % intervals: bootstrap over requests, and over training runs and requests at once.

A percentile interval of few runs or requests is too narrow: its ends are moved out by Student's t, with the degrees of
freedom that the two kinds of spread leave (Satterthwaite, 1946). A share of requests has Wilson's interval, of as many
requests as have the bootstrap's variance, so that 20 of 20 is not certain.

Legend: N requests, G groups of them, R runs (training seeds), K resamples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
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


def mean_of(
    values: Tensor | Sequence[float], groups: Tensor | None = None, seed: int = 0, share: bool = False
) -> Quantity:
    """The mean of values (N,), requests resampled; NaN entries are left out, and ``n`` counts the others.

    groups: (N,) whole numbers, equal for requests that are no news of each other, as one object at several levels:
    those are resampled together. None: each is one of its own. share: the values say yes, 1, or no, 0.
    """
    return nested_mean([torch.as_tensor(values)], groups, seed, share=share)


def nested_mean(
    runs: Sequence[Tensor], groups: Tensor | None = None, seed: int = 0, resamples: int = 1000,
    scale: Scale | None = None, share: bool = False,
) -> Quantity:
    """The mean of several runs of the same N requests, resampled as one side of ``nested_difference``; share: as in
    ``mean_of``."""
    side = torch.stack([torch.as_tensor(run).double() for run in runs])
    return _crossed([side], groups, seed, resamples, scale, share)


def nested_difference(
    a: Sequence[Tensor], b: Sequence[Tensor], groups: Tensor | None = None, seed: int = 0, resamples: int = 1000,
    scale: Scale | None = None,
) -> Quantity:
    """The mean of ``b - a``, each side several runs of the same N requests: the pigeonhole bootstrap (Owen, 2007).

    Requests are resampled together for all runs, runs for each side on its own: R - 1 draws of R runs, with which the
    mean's variance comes out right for few of them (McCarthy and Snowden, 1985). One run is taken as it is: the
    interval then says nothing about other seeds. A request counts where every run has a value. scale: taken of each
    side's mean before the difference, as the dB of a mean square error. groups: as in ``mean_of``.
    ValueError for no runs, and for runs of unequal length.
    """
    sides = [[torch.as_tensor(run).double() for run in side] for side in (a, b)]
    lengths = {len(run) for side in sides for run in side}
    if not (a and b) or len(lengths) != 1:
        raise ValueError(f"{len(a)} and {len(b)} runs of {sorted(lengths)} requests: give runs of the same requests")
    return _crossed([torch.stack(side) for side in sides], groups, seed, resamples, scale)


def finite(value: float) -> float | None:
    """As strict JSON holds it, to six places."""
    return round(value, 6) if math.isfinite(value) else None


def wilson(share: float, votes: float, deviations: float = DEVIATIONS) -> tuple[float, float]:
    """The ends of a share's score interval (E. B. Wilson, 1927), which stays inside [0, 1] near them."""
    z2 = deviations**2
    centre = (share + z2 / (2 * votes)) / (1 + z2 / votes)
    margin = deviations / (1 + z2 / votes) * math.sqrt(share * (1 - share) / votes + z2 / (4 * votes**2))
    return max(centre - margin, 0.0), min(centre + margin, 1.0)


def _crossed(
    sides: Sequence[Tensor], groups: Tensor | None, seed: int, resamples: int, scale: Scale | None = None,
    share: bool = False,
) -> Quantity:
    """The mean of the last side (R, N) less that of the one before it, if any."""
    counted = ~torch.cat(list(sides)).isnan().any(0)
    sides = [side[:, counted] for side in sides]
    n = sides[0].shape[1]
    of = scale or torch.clone
    value = _gap([of(side.mean()) for side in sides]).item() if n else math.nan
    place = torch.arange(n) if groups is None else torch.unique(groups[counted], return_inverse=True)[1]
    sizes = place.bincount().double()  # (G,)
    if len(sizes) < 2:
        return Quantity(value, math.nan, math.nan, n)
    sums = [torch.zeros(len(side), len(sizes), dtype=torch.float64).index_add_(1, place, side) for side in sides]
    generator = torch.Generator().manual_seed(seed)
    drawn_sums = [_drawn_runs(side, resamples, generator).expand(resamples, -1) for side in sums]
    found, still = [], []  # with runs drawn, and with the runs as they are
    for start in range(0, resamples, CHUNK):
        drawn = torch.randint(len(sizes), (min(CHUNK, resamples - start), len(sizes)), generator=generator)  # (k, G)
        size = sizes[drawn].sum(1)
        found.append(_gap([
            of(side[start: start + CHUNK].gather(1, drawn).sum(1) / size) for side in drawn_sums
        ]))
        still.append(_gap([of(side.mean(0)[drawn].sum(1) / size) for side in sums]))
    draws, spread = torch.cat(found), float(torch.cat(found).var())
    deviations = _deviations(spread, float(torch.cat(still).var()), len(sizes), sum(len(side) - 1 for side in sides))
    if share:
        return Quantity(value, *wilson(value, value * (1 - value) / spread if spread else len(sizes), deviations), n)
    ends = torch.quantile(draws, torch.tensor(ENDS).double())
    low, high = (value + (ends - value) * deviations / DEVIATIONS).tolist()
    return Quantity(value, low, high, n)


def _gap(means: Sequence[Tensor]) -> Tensor:
    return means[-1] - sum(means[:-1])


def _deviations(spread: float, of_requests: float, groups: int, free_runs: int) -> float:
    """Standard errors each side of a 95 % interval. spread: variance of the mean, of which requests have a part."""
    if not spread:
        return DEVIATIONS
    of_runs = max(spread - of_requests, 0.0) if free_runs else 0.0
    freedom = spread**2 / (of_requests**2 / (groups - 1) + of_runs**2 / max(free_runs, 1))
    return float(stdtrit(freedom, ENDS[1]))


def _drawn_runs(side: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Means over drawn runs (K, G) of a side (R, G); (1, G) for one run."""
    runs = len(side)
    if runs == 1:
        return side
    drawn = torch.randint(runs, (resamples, runs - 1), generator=generator)
    shares = torch.zeros(resamples, runs, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full(drawn.shape, 1 / (runs - 1), dtype=torch.float64)
    )
    return shares @ side
