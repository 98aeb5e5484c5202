"""Noise levels: mixing, and the algebra between a network's prediction, x0 and eps.

``x_t = alpha_t * x0 + sigma_t * eps`` for every schedule here (variance preserving, or straight lines for
flow matching). Tables are fp32 and live outside ``nn.Module``: a module cast to bf16 would keep only a third
of 1,000 distinct levels. Time -1 is the clean end: alpha 1, sigma 0.

Legend: B batch, C latent channels, h w latent cells, t (B,) int64 noise level, T number of levels.
"""

import math

import torch
from torch import Tensor

from sb.registry import register

PREDICTIONS = ("eps", "v", "x0", "flow")


class Schedule:
    """Tables of T noise levels and what the network predicts at each."""

    def __init__(self, alpha: Tensor, sigma: Tensor, prediction: str):
        if prediction not in PREDICTIONS:
            raise ValueError(f"schedule: prediction '{prediction}' is none of {', '.join(PREDICTIONS)}")
        if prediction == "eps" and float(alpha[-1]) == 0.0:
            raise ValueError("schedule: eps says nothing of x0 at zero terminal SNR; use prediction: v")
        self.prediction = prediction
        self.alpha = torch.cat([alpha.float(), torch.ones(1)])  # (T + 1,), the last is time -1
        self.sigma = torch.cat([sigma.float(), torch.zeros(1)])

    def __len__(self) -> int:
        return len(self.alpha) - 1

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of times t (B,), shaped to multiply (B, C, h, w)."""
        if self.alpha.device != like.device:
            self.alpha, self.sigma = self.alpha.to(like.device), self.sigma.to(like.device)
        index = t.to(like.device) % len(self.alpha)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return self.alpha[index].view(shape), self.sigma[index].view(shape)

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t, in fp32."""
        alpha, sigma = self.at(t, x0)
        return alpha * x0.float() + sigma * eps.float()

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict."""
        alpha, sigma = self.at(t, x0)
        if self.prediction == "eps":
            return eps
        if self.prediction == "v":
            return alpha * eps - sigma * x0
        return x0 if self.prediction == "x0" else eps - x0

    def x0_of(self, x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a prediction at x_t stands for."""
        alpha, sigma = self.at(t, x)
        x, prediction = x.float(), prediction.float()
        if self.prediction == "eps":
            return (x - sigma * prediction) / alpha
        if self.prediction == "v":
            return (alpha * x - sigma * prediction) / (alpha * alpha + sigma * sigma)
        return prediction if self.prediction == "x0" else (x - sigma * prediction) / (alpha + sigma)

    def eps_of(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x0 to x_t."""
        alpha, sigma = self.at(t, x)
        return (x.float() - alpha * x0.float()) / sigma.clamp(min=1e-8)

    def snr(self, t: Tensor) -> Tensor:
        """Signal to noise ratio alpha^2 / sigma^2 (B,)."""
        alpha, sigma = self.at(t, t.float())
        return alpha.square() / sigma.square().clamp(min=1e-12)

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Loss weights (B,) that make every level count min(SNR, gamma) in x0 units (arXiv 2303.09556)."""
        alpha, sigma = self.at(t, t.float())
        snr = self.snr(t)
        # squared error of the prediction = squared error of x0 times this
        per_x0 = {
            "x0": torch.ones_like(snr),
            "eps": snr,
            "v": ((alpha.square() + sigma.square()) / sigma).square(),  # snr + 1 where variance is preserved
            "flow": ((alpha + sigma) / sigma).square(),
        }
        return snr.clamp(max=gamma) / per_x0[self.prediction]

    def walk(self, steps: int) -> list[int]:
        """``steps`` times from T - 1 downwards and the clean end: steps + 1 numbers, the last is -1."""
        if not 1 <= steps <= len(self):
            raise ValueError(f"steps must be 1 to {len(self)}, not {steps}")
        return [round(len(self) - i * len(self) / steps) - 1 for i in range(steps)] + [-1]

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Uniform times (B,), stratified over the batch so that each batch covers all levels evenly."""
        device = generator.device
        place = (torch.arange(batch, device=device) + torch.rand(batch, generator=generator, device=device)) / batch
        place = place[torch.randperm(batch, generator=generator, device=device)]
        return (place * len(self)).long().clamp(max=len(self) - 1)


def _variance_preserving(abar: Tensor, prediction: str, zero_terminal_snr: bool) -> Schedule:
    root = abar.double().sqrt()
    if zero_terminal_snr:  # arXiv 2305.08891, algorithm 1: shift the last to zero, scale the first back
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return Schedule(root, (1 - root * root).clamp(min=0).sqrt(), prediction)


@register("schedule", "scaled_linear")
def scaled_linear(
    num_steps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    prediction: str = "eps",
    zero_terminal_snr: bool = False,
) -> Schedule:
    """Betas whose square roots rise linearly: Stable Diffusion's schedule."""
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
    return _variance_preserving((1 - beta).cumprod(0), prediction, zero_terminal_snr)


@register("schedule", "cosine")
def cosine(num_steps: int = 1000, prediction: str = "v", zero_terminal_snr: bool = False) -> Schedule:
    """The squared-cosine schedule of arXiv 2102.09672, betas at most 0.999."""
    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    beta = torch.tensor(
        [min(1 - f((i + 1) / num_steps) / f(i / num_steps), 0.999) for i in range(num_steps)], dtype=torch.float64
    )
    return _variance_preserving((1 - beta).cumprod(0), prediction, zero_terminal_snr)


@register("schedule", "flow")
def flow(num_steps: int = 1000, prediction: str = "flow", shift: float = 1.0) -> Schedule:
    """Straight lines from data to noise (arXiv 2210.02747); ``shift`` > 1 spends more levels on high noise."""
    sigma = torch.linspace(1 / num_steps, 1, num_steps, dtype=torch.float64)
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return Schedule(1 - sigma, sigma, prediction)
