"""What differs between kinds of inpainting model: start noise, network input, and what is put back at each step.

Legend: B batch, C latent channels, k extra input channels, h w latent cells, H W pixels, f pixels per cell side.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sb.masks import head_target, hole_of, mask_channels
from sb.registry import register
from sb.schedule import Schedule


class Canvas(NamedTuple):
    """A picture and its mask at latent resolution.

    clean: (B, C, h, w) latents of the picture. around: (B, C, h, w), the latents that stand outside the hole while
    the network works. hole: (B, 1, h, w), 1 where cells are generated. extra: (B, k, h, w), what the network is shown
    beside x_t.
    """

    clean: Tensor
    around: Tensor
    hole: Tensor
    extra: Tensor


@register("conditioning", "smartbrush")
class SmartBrushConditioning:
    """Noise in the hole only, the clean background around it, the mask as k extra channels (SmartBrush, eq. 3).

    mask_channels: 1 (the paper), or f*f to show and predict the mask at full resolution (for small images).
    encode: what the cells around the hole are encoded from. ``full``, the picture as it is (the paper): cells near the
    hole then carry a trace of what is inside, by the VAE's receptive field. In training that gives the object away, so
    that the network learns to copy where it should follow mask and text, and misses the trace when it paints.
    ``masked``: the picture with the mask greyed out, which holds the same in training and painting.
    Raises ValueError for another ``encode``.
    """

    def __init__(self, mask_channels: int = 1, encode: str = "masked"):
        if encode not in ("masked", "full"):
            raise ValueError(f"conditioning: encode '{encode}' is neither 'masked' nor 'full'")
        self.mask_channels, self.encode = mask_channels, encode

    def in_channels(self, latent_channels: int) -> int:
        """Input channels of the denoiser."""
        return latent_channels + self.mask_channels

    def canvas(self, latents: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, factor: int) -> Canvas:
        """A VAE's ``latents``, images (B, 3, H, W) in [-1, 1] and masks (B, 1, H, W) -> Canvas, in float32."""
        if self.encode == "full":
            clean = around = latents(image).float()
        else:
            clean, around = latents(torch.cat([image, image * (mask == 0)])).float().chunk(2)
        return Canvas(clean, around, hole_of(mask, factor), mask_channels(mask, factor, self.mask_channels))

    def head_target(self, outline: Tensor, factor: int) -> Tensor:
        """What the mask head learns: the outline at the head's resolution (B, k, h, w)."""
        return head_target(outline, factor, self.mask_channels)

    def noised(self, canvas: Canvas, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """x_t = (alpha_t x_0 + sigma_t eps) in the hole, the clean background outside, bit for bit."""
        return torch.where(canvas.hole > 0, schedule.mix(canvas.clean, eps, t), canvas.around)

    def start(self, canvas: Canvas, eps: Tensor) -> Tensor:
        """x_T: pure noise in the hole, the clean background outside."""
        return self.put_back(eps, canvas, canvas.hole)

    def put_back(self, x: Tensor, canvas: Canvas, region: Tensor) -> Tensor:
        """x where ``region`` (B, 1, h, w) in [0, 1] says so; elsewhere the picture's latents in the hole, and what
        stands around it outside."""
        inside = torch.where(region > 0, canvas.clean + region * (x - canvas.clean), canvas.clean)
        return torch.where(canvas.hole > 0, inside, canvas.around)

    def finished(self, x: Tensor, canvas: Canvas) -> Tensor:
        """The latents to decode: x in the hole, the picture's own outside."""
        return torch.where(canvas.hole > 0, x, canvas.clean)

    def network_input(self, x: Tensor, canvas: Canvas) -> Tensor:
        """(B, C, h, w) -> (B, C + k, h, w)."""
        return torch.cat([x, canvas.extra.to(x.dtype)], dim=1)
