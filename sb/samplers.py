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
    alpha, sigma = schedule.alpha.tolist(), schedule.sigma.tolist()
    earlier: Tensor | None = None
    gone = math.inf  # lambda covered by the step before
    for now, after in pairwise(schedule.walk(steps)):
        x0 = denoise(x, _times(x, now)).x0.float()
        ahead = _log_snr(alpha[after], sigma[after]) - _log_snr(alpha[now], sigma[now])
        straight = x0
        if earlier is not None and math.isfinite(ahead):
            straight = x0 + ahead / (2 * gone) * (x0 - earlier)
        kept = sigma[after] / sigma[now]
        x = kept * x.float() + (alpha[after] - kept * alpha[now]) * straight
        earlier, gone = x0, ahead
    return x


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
