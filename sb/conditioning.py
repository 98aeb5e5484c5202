"""What differs between kinds of inpainting model: start noise, network input, and what is put back at each step.

Legend: B batch, C latent channels, k extra input channels, h w latent cells, H W pixels, f pixels per cell side.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sb.masks import head_target, hole_of, mask_channels
from sb.registry import register
from sb.schedule import Schedule


class Canvas(NamedTuple):
    """A picture and its mask at latent resolution.

    clean: (B, C, h, w) latents of the picture. hole: (B, 1, h, w), 1 where cells are generated. extra: (B, k, h, w),
    what the network is shown beside x_t.
    """

    clean: Tensor
    hole: Tensor
    extra: Tensor


@register("conditioning", "smartbrush")
class SmartBrushConditioning:
    """Noise in the hole only, the clean background around it, the mask as k extra channels (SmartBrush, eq. 3).

    mask_channels: 1 (the paper), or f*f to show and predict the mask at full resolution (for small images).
    """

    def __init__(self, mask_channels: int = 1):
        self.mask_channels = mask_channels

    def in_channels(self, latent_channels: int) -> int:
        """Input channels of the denoiser."""
        return latent_channels + self.mask_channels

    def canvas(self, clean: Tensor, mask: Tensor, factor: int) -> Canvas:
        """Latents (B, C, h, w) and a mask (B, 1, H, W) -> Canvas."""
        return Canvas(clean, hole_of(mask, factor), mask_channels(mask, factor, self.mask_channels))

    def head_target(self, outline: Tensor, factor: int) -> Tensor:
        """What the mask head learns: the outline at the head's resolution (B, k, h, w)."""
        return head_target(outline, factor, self.mask_channels)

    def noised(self, canvas: Canvas, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """x_t = (alpha_t x_0 + sigma_t eps) in the hole, x_0 outside, bit for bit."""
        return torch.where(canvas.hole > 0, schedule.mix(canvas.clean, eps, t), canvas.clean)

    def start(self, canvas: Canvas, eps: Tensor) -> Tensor:
        """x_T: pure noise in the hole, the clean background outside."""
        return self.put_back(eps, canvas, canvas.hole)

    def put_back(self, x: Tensor, canvas: Canvas, region: Tensor) -> Tensor:
        """x where ``region`` (B, 1, h, w) in [0, 1] says so, the clean latents elsewhere."""
        return torch.where(region > 0, canvas.clean + region * (x - canvas.clean), canvas.clean)

    def network_input(self, x: Tensor, canvas: Canvas) -> Tensor:
        """(B, C, h, w) -> (B, C + k, h, w)."""
        return torch.cat([x, canvas.extra.to(x.dtype)], dim=1)
