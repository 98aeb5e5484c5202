"""Loss functions: DICE for the mask head, the denoising objective, and the VAE's reconstruction terms.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sb.registry import register
from sb.schedule import Schedule


def dice(probability: Tensor, target: Tensor) -> Tensor:
    """Soft DICE loss per sample (B,): ``1 - (2 sum XY + 1) / (sum X^2 + sum Y^2 + 1)``; 0 for X = Y."""
    x, y = probability.float().flatten(1), target.float().flatten(1)
    return 1 - (2 * (x * y).sum(1) + 1) / (x.square().sum(1) + y.square().sum(1) + 1)


def region_mean(error: Tensor, region: Tensor) -> Tensor:
    """Mean of (B, C, h, w) over the channels and the cells of ``region`` (B, 1, h, w), per sample (B,)."""
    inside = (error * region).flatten(1).sum(1)
    return inside / (region.flatten(1).sum(1) * error.shape[1]).clamp(min=1e-8)


class Losses(NamedTuple):
    """The parts of one step's loss; per-sample values (B,) where a callback bins them."""

    loss: Tensor
    denoise: Tensor
    dice: Tensor
    denoise_each: Tensor
    dice_each: Tensor


@register("objective", "denoising")
class DenoisingObjective:
    """``L = L_DM + mask_weight * L_mask`` (SmartBrush, equations 4 to 6).

    L_DM is the squared error of the prediction, averaged over the hole per sample (``region: hole``; the
    paper-literal ``full`` has a floor outside the hole where eps is unobservable), then over samples. L_mask
    is DICE over the samples whose task has an object, divided by the number of them that the mixture makes
    expect (``object_share * B``): unlike the batch's own count, that is the same on every rank and in every
    accumulation step, so that any split of a batch gives one process's gradient. ``dice`` is the plain mean.
    """

    def __init__(self, region: str = "hole", mask_weight: float = 0.01, min_snr_gamma: float | None = None):
        if region not in ("hole", "full"):
            raise ValueError(f"objective: region '{region}' is neither 'hole' nor 'full'")
        self.region, self.mask_weight, self.min_snr_gamma = region, mask_weight, min_snr_gamma

    def error(self, difference: Tensor) -> Tensor:
        """The square."""
        return difference.square()

    def __call__(
        self,
        prediction: Tensor,
        target: Tensor,
        hole: Tensor,
        t: Tensor,
        schedule: Schedule,
        mask_logits: Tensor | None,
        mask_target: Tensor,
        has_object: Tensor,
        object_share: float,
    ) -> Losses:
        """prediction, target (B, C, h, w); hole (B, 1, h, w); mask_* (B, k, h, w); has_object (B,) bool.

        ``object_share`` in (0, 1] is the share of samples with an object in the task mixture.
        """
        error = self.error(prediction.float() - target.float())
        region = hole if self.region == "hole" else torch.ones_like(hole)
        denoise_each = region_mean(error, region)  # (B,)
        if self.min_snr_gamma is not None:
            denoise_each = denoise_each * schedule.min_snr_weight(t, self.min_snr_gamma)
        denoise = denoise_each.mean()
        if mask_logits is None:
            zero = torch.zeros_like(denoise_each)
            return Losses(denoise, denoise, zero.sum(), denoise_each, zero)
        dice_each = dice(mask_logits.float().sigmoid(), mask_target)
        counted = has_object.to(dice_each.dtype)
        mask_sum = (dice_each * counted).sum()
        loss = denoise + self.mask_weight * mask_sum / (object_share * len(counted))
        return Losses(loss, denoise, mask_sum / counted.sum().clamp(min=1), denoise_each, dice_each)


@register("objective", "consistency")
class ConsistencyObjective(DenoisingObjective):
    """The same, but for the measure of the error: pseudo-Huber, ``sqrt(d^2 + c^2) - c`` (arXiv 2310.14189), which does
    not let the few large errors of a student decide.

    c: below it an error counts by its square, above it by itself, in units of what the network predicts.
    """

    def __init__(self, region: str = "hole", mask_weight: float = 0.01, c: float = 0.03):
        super().__init__(region, mask_weight)
        if c <= 0:
            raise ValueError(f"objective: c must be above 0, not {c}")
        self.c = c

    def error(self, difference: Tensor) -> Tensor:
        """Pseudo-Huber, per element."""
        return (difference.square() + self.c**2).sqrt() - self.c


def gradient_l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the two pictures' horizontal and vertical gradients, (B, C, H, W) -> ()."""
    error = image - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
