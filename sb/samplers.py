"""Samplers: deterministic walks from noise to a picture, as functions of ``denoise(x, t)``.

Guidance, conditioning and the clean background live inside ``denoise``; a sampler knows none of them. All of
them end on the last x0 itself, so what ``denoise`` keeps fixed in x0 comes out bit for bit.

Legend: B batch, C latent channels, h w latent cells, t (B,) int64 noise level (the same for the whole batch).
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sb.registry import register
from sb.schedule import Schedule
from sb.types import Denoised

Denoise = Callable[[Tensor, Tensor], Denoised]


@register("sampler", "ddim")
def ddim(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int = 50) -> Tensor:
    """Noise (B, C, h, w) -> clean latents: denoise, mix the same noise back at the next level (arXiv 2010.02502)."""
    for now, after in pairwise(schedule.walk(steps)):
        t = _times(x, now)
        x0 = denoise(x, t).x0.float()
        x = schedule.mix(x0, schedule.eps_of(x, x0, t), _times(x, after))
    return x


@register("sampler", "dpmpp_2m")
def dpmpp_2m(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int = 20) -> Tensor:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2): DDIM on x0 extrapolated in ``lambda = log(alpha / sigma)``.

    Where lambda is infinite (the first step from zero terminal SNR, the last one to the clean end) there is
    nothing to extrapolate along and the step is DDIM's.
    """
    return _multistep(denoise, x, schedule, steps, correct=False)


@register("sampler", "unipc")
def unipc(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int = 20) -> Tensor:
    """UniPC of order 2 with B(h) = e^h - 1 (arXiv 2302.04867): DPM-Solver++ 2M's step, taken again once the network has
    answered at its end, at no further call; the answer stays that of the first arrival."""
    return _multistep(denoise, x, schedule, steps, correct=True)


def _multistep(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int, correct: bool) -> Tensor:
    times = schedule.walk(steps)
    alpha, sigma = ([table.tolist()[t] for t in times] for table in (schedule.alpha, schedule.sigma))
    log_snr = [_log_snr(a, s) for a, s in zip(alpha, sigma, strict=True)]
    start = x.float()  # where the last step began
    x0s: list[Tensor] = []
    for i, now in enumerate(times[:-1]):
        x0s = [*x0s[-2:], denoise(x, _times(x, now)).x0.float()]
        gone = log_snr[i] - log_snr[i - 1] if i else math.inf  # of lambda, by the last step
        if correct and math.isfinite(gone):
            answer = _corrected(x0s, log_snr[max(0, i - 2): i + 1])
            x = _stepped(start, alpha[i - 1: i + 1], sigma[i - 1: i + 1], answer)
        ahead = log_snr[i + 1] - log_snr[i]
        straight = x0s[-1]
        if i and math.isfinite(ahead):
            straight = straight + ahead / (2 * gone) * (straight - x0s[-2])
        start = x.float()
        x = _stepped(start, alpha[i: i + 2], sigma[i: i + 2], straight)
    return x


def _stepped(x: Tensor, alpha: list[float], sigma: list[float], x0: Tensor) -> Tensor:
    """From one level to the next, exactly so if x0 were the answer all the way."""
    kept = sigma[1] / sigma[0]
    return kept * x + (alpha[1] - kept * alpha[0]) * x0


def _corrected(x0s: list[Tensor], log_snr: list[float]) -> Tensor:
    """What UniPC's corrector (its equation 9, data prediction) puts for x0 on a step whose both ends are answered.

    x0s, log_snr: at the end before the step, where there was one, at its start and at its end.
    """
    h = log_snr[-1] - log_snr[-2]
    at_start, at_end = x0s[-2:]
    if len(log_snr) < 3 or not math.isfinite(log_snr[0]):
        return (at_start + at_end) / 2
    ratio = (log_snr[0] - log_snr[1]) / h
    shrink = math.expm1(-h)
    first = -shrink / h - 1
    second = -first / h - 0.5
    b = first / shrink, 2 * second / shrink
    back = (b[0] - b[1]) / (1 - ratio)
    return at_start + back / ratio * (x0s[-3] - at_start) + (b[0] - back) * (at_end - at_start)


@register("sampler", "euler")
def euler(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int = 50) -> Tensor:
    """Euler steps along straight lines from data to noise, the sampler of flow matching (arXiv 2210.02747).

    ``x / (alpha + sigma) = (1 - u) x0 + u eps`` with ``u = sigma / (alpha + sigma)`` makes every schedule such a
    line, also at zero terminal SNR. In exact arithmetic this is DDIM, whose steps are Euler's in these coordinates.
    """
    alpha, sigma = schedule.alpha.tolist(), schedule.sigma.tolist()
    for now, after in pairwise(schedule.walk(steps)):
        x0 = denoise(x, _times(x, now)).x0.float()
        if sigma[after] == 0.0:
            return x0
        scale, scale_after = alpha[now] + sigma[now], alpha[after] + sigma[after]
        u, u_after = sigma[now] / scale, sigma[after] / scale_after
        line = x.float() / scale
        velocity = (line - x0) / u  # eps - x0
        x = scale_after * (line + (u_after - u) * velocity)
    return x


def _times(x: Tensor, t: int) -> Tensor:
    return torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)


def _log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha / sigma), infinite at either end."""
    if alpha == 0.0:
        return -math.inf
    return math.inf if sigma == 0.0 else math.log(alpha / sigma)
