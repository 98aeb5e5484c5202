"""THE mask convention, the precision ladder, masks at latent resolution and the final paste.

Everywhere in this project a mask holds 1 where the model generates and 0 where pixels are kept. Training,
sampling, serving and evaluation all take their masks from here.

Legend: B batch, H W pixels, h w latent cells, f pixels per cell side, k mask channels (1 or f*f).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sb.registry import build, register


class Degradation(Protocol):
    """A rung of the ladder: exact outlines (B, 1, H, W) float in, masks of the same shape out, 1 = generate."""

    def __call__(self, outline: Tensor, /) -> Tensor: ...


@register("degradation", "outline")
def outline_rung() -> Degradation:
    """The exact outline, unchanged."""
    return _exactly


def _exactly(outline: Tensor) -> Tensor:
    return outline


@register("degradation", "box")
def box_rung() -> Degradation:
    """The outline's bounding box."""
    return box_of


@register("degradation", "blur")
def blur_rung(sigma: float, threshold: float = 0.15) -> Degradation:
    """A blurred and thresholded outline; ``sigma`` is a fraction of the square root of the object's area."""

    def degrade(outline: Tensor) -> Tensor:
        size_px = outline.sum(dim=(1, 2, 3)).clamp(min=1).sqrt()  # (B,)
        return (gaussian_blur(outline, sigma * size_px) > threshold).to(outline.dtype)

    return degrade


class Ladder:
    """Mask precision (SmartBrush, section 3.2): rung 0 is the outline, rung S its bounding box.

    Whatever the rungs are, masks always cover the outline, stay inside its box and never shrink as the level
    grows: every rung is joined with the ones below it and clipped to the box.
    """

    def __init__(self, levels: Sequence[Mapping[str, Any]], level_weights: Sequence[float] | None = None):
        if len(levels) < 2:
            raise ValueError(f"ladder: needs at least the outline and the box, not {len(levels)} levels")
        self.rungs: list[Degradation] = [build("degradation", level) for level in levels]
        self.level_weights = list(level_weights or [1.0] * len(levels))
        if len(self.level_weights) != len(levels) or min(self.level_weights) < 0 or not sum(self.level_weights):
            raise ValueError(f"ladder: level_weights needs {len(levels)} numbers >= 0, not {self.level_weights}")

    @property
    def num_levels(self) -> int:
        """S, the level of the box."""
        return len(self.rungs) - 1

    def __call__(self, outline: Tensor, level: Tensor) -> Tensor:
        """Outlines (B, 1, H, W) uint8 and integer levels (B,) -> masks (B, 1, H, W) uint8."""
        exact = outline.float()
        box = box_of(exact)
        boxed = self.rungs.index(box_of) if box_of in self.rungs else len(self.rungs)  # the box covers all below it
        mask = exact
        if outline.device.type == "cpu":
            mask = self._picked(exact, level, boxed)
        else:  # picking samples would make it wait for its host
            for index, rung in enumerate(self.rungs[:boxed]):
                mask = torch.where((level >= index).view(-1, 1, 1, 1), torch.maximum(mask, rung(exact)), mask)
        return torch.where((level >= boxed).view(-1, 1, 1, 1), box, mask * box).to(torch.uint8)

    def _picked(self, exact: Tensor, level: Tensor, boxed: int) -> Tensor:
        """Rungs below ``boxed`` joined, each drawn only for the samples that need it."""
        order = torch.where(level < boxed, level, -1).argsort(descending=True)
        levels, exact = level[order].tolist(), exact[order]
        mask = exact.clone()
        for index, rung in enumerate(self.rungs[:boxed]):
            needed = sum(index <= level < boxed for level in levels)  # the first ones of the order
            if needed and rung is not _exactly:
                torch.maximum(mask[:needed], rung(exact[:needed]), out=mask[:needed])
        return mask[order.argsort()]


def level_of(precision: float | str, num_levels: int) -> float:
    """The level ``s = (1 - precision) * S`` of a precision in [0, 1], or of the words outline and box."""
    words = {"outline": 1.0, "box": 0.0}
    try:
        value = words[precision] if precision in words else float(precision)
    except (ValueError, OverflowError):
        raise ValueError(f"precision '{str(precision)[:40]}' is not a number in [0, 1], 'outline' or 'box'") from None
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"precision {value:g} is outside [0, 1]: 1 follows the outline, 0 fills the box freely")
    return (1.0 - value) * num_levels


def box_of(mask: Tensor) -> Tensor:
    """The filled bounding box of each mask (B, 1, H, W), same dtype; empty stays empty."""
    rows, columns = mask.amax(dim=3, keepdim=True) > 0, mask.amax(dim=2, keepdim=True) > 0
    return (_span(rows, 2) & _span(columns, 3)).to(mask.dtype)


def _span(marked: Tensor, dim: int) -> Tensor:
    """True from the first to the last marked place along ``dim``."""
    started = marked.int().cumsum(dim) > 0
    ending = marked.flip(dim).int().cumsum(dim).flip(dim) > 0
    return started & ending


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur (B, 1, H, W) with one sigma in pixels per sample (B,), zero beyond the border.

    Two batched matrix products, so that a batch of different widths needs no loop and no device synchronisation.
    """
    def kernel(length: int) -> Tensor:
        width = sigma.float().clamp(min=1e-3).view(-1, 1)
        reach = torch.arange(-length, length + 1, device=image.device, dtype=torch.float32).square()
        weight = torch.exp(-reach / (2 * width * width))  # (B, 2 L + 1)
        weight = weight / weight.sum(-1, keepdim=True)
        return weight[:, 1:-1].unfold(1, length, 1).flip(1)  # (B, L, L), by distance from the diagonal

    height, width_px = image.shape[-2:]
    down = kernel(height)
    across = down if width_px == height else kernel(width_px)
    return (down @ image[:, 0].float() @ across).unsqueeze(1)


def hole_of(mask: Tensor, factor: int) -> Tensor:
    """(B, 1, H, W) -> (B, 1, h, w) float: a cell is in the hole as soon as one of its pixels is."""
    return F.max_pool2d(mask.float(), factor)


def mask_channels(mask: Tensor, factor: int, channels: int) -> Tensor:
    """The mask as network input (B, k, h, w): the hole for k = 1, every pixel of a cell for k = f*f."""
    if channels == 1:
        return hole_of(mask, factor)
    _check_channels(factor, channels)
    return rearrange(mask.float(), "b 1 (h p) (w q) -> b (p q) h w", p=factor, q=factor)


def head_target(outline: Tensor, factor: int, channels: int) -> Tensor:
    """What the mask head should say of an outline (B, 1, H, W), at the head's resolution (B, k, h, w) in [0, 1].

    Area-pooled for k = 1, so that a tiny outline is weakened and never lost.
    """
    if channels == 1:
        return F.avg_pool2d(outline.float(), factor)
    return mask_channels(outline, factor, channels)


def head_to_pixels(predicted: Tensor, factor: int) -> Tensor:
    """Head probabilities (B, k, h, w) at image resolution (B, 1, H, W): bilinear for k = 1, unfolded for k = f*f."""
    if predicted.shape[1] == 1:
        return F.interpolate(predicted, scale_factor=factor, mode="bilinear", align_corners=False)
    _check_channels(factor, predicted.shape[1])
    return rearrange(predicted, "b (p q) h w -> b 1 (h p) (w q)", p=factor, q=factor)


def head_to_cells(predicted: Tensor) -> Tensor:
    """Head probabilities (B, k, h, w) per cell (B, 1, h, w): a cell is object as soon as one of its pixels is."""
    return predicted.amax(dim=1, keepdim=True)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow (B, 1, H, W) masks or probabilities by ``radius`` places in every direction (a square)."""
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius) if radius > 0 else mask


def paste_mask(
    mask: Tensor, predicted: Tensor | None, *, threshold: float | Tensor, dilate_px: int, feather_px: int
) -> Tensor:
    """The weight of the painted pixel in the final picture (B, 1, H, W) in [0, 1], zero outside the user's mask.

    The predicted object, where it reaches the threshold (one number, or (B, 1, 1, 1)) and grown, fades over
    ``feather_px`` where it borders on kept pixels inside the user's mask. Without a prediction the whole mask is
    painted and fades towards its inside.
    """
    if predicted is None:
        return (2 * _feather(mask.float(), feather_px) - 1).clamp(0, 1) * mask.float()
    return _feather(dilate((predicted >= threshold).float(), dilate_px), feather_px) * mask.float()


def _feather(region: Tensor, radius: int) -> Tensor:
    """The box mean; inside, against the fullest place in reach, so that thin strokes are not faded away."""
    soft = F.avg_pool2d(F.pad(region, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)
    return torch.where(region > 0, soft / dilate(soft, radius).clamp(min=1e-6), soft)


def _check_channels(factor: int, channels: int) -> None:
    if channels != factor * factor:
        allowed = f"1 or f*f = {factor * factor}"
        raise ValueError(f"mask_channels must be {allowed} for a VAE of factor {factor}, not {channels}")
