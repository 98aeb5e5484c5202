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


class Conditioning:
    """What all kinds share; on its own, noise everywhere and nothing put back.

    mask_channels: k of the mask head, and of a mask input at the hole's resolution (1) or at full resolution (f*f).
    needs_picture: "" where the picture's own latents are all that ``canvas`` encodes, so that they may be cached; else
    what it encodes besides, and how to do without it.
    """

    needs_picture = "it encodes the picture itself"

    def __init__(self, mask_channels: int = 1):
        self.mask_channels = mask_channels

    def in_channels(self, latent_channels: int) -> int:
        """Input channels of the denoiser."""
        raise AssertionError("a conditioning defines in_channels")

    def canvas(self, latents: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, factor: int) -> Canvas:
        """A VAE's ``latents``, images (B, 3, H, W) in [-1, 1] and masks (B, 1, H, W) -> Canvas, in float32."""
        raise AssertionError("a conditioning defines canvas")

    def canvas_to_paint(
        self, latents: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, factor: int
    ) -> Canvas:
        """As ``canvas``, but ``clean`` need only be what painting puts back."""
        return self.canvas(latents, image, mask, factor)

    def canvas_of(self, clean: Tensor, mask: Tensor, factor: int) -> Canvas:
        """Latents (B, C, h, w) of pictures and masks (B, 1, H, W) -> Canvas, for those that need no picture."""
        raise AssertionError("a conditioning that needs no picture defines canvas_of")

    def head_target(self, outline: Tensor, factor: int) -> Tensor:
        """What the mask head learns: the outline at the head's resolution (B, k, h, w)."""
        return head_target(outline, factor, self.mask_channels)

    def noised(self, canvas: Canvas, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps."""
        return schedule.mix(canvas.clean, eps, t)

    def start(self, canvas: Canvas, eps: Tensor) -> Tensor:
        """x_T: pure noise."""
        return eps

    def entering(self, x: Tensor, canvas: Canvas) -> Tensor:
        """x_t as a sampler has it -> as the network should see it."""
        return x

    def put_back(self, x0: Tensor, canvas: Canvas, region: Tensor) -> Tensor:
        """An x0 estimate outside ``region`` (B, 1, h, w) in [0, 1] replaced by what is known."""
        return x0

    def finished(self, x: Tensor, canvas: Canvas) -> Tensor:
        """The latents to decode."""
        return x

    def network_input(self, x: Tensor, canvas: Canvas) -> Tensor:
        """(B, C, h, w) and what is shown beside it."""
        return torch.cat([x, canvas.extra.to(x.dtype)], dim=1)


@register("conditioning", "smartbrush")
class SmartBrushConditioning(Conditioning):
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
        super().__init__(mask_channels)
        self.encode = encode
        masked = "encode: masked encodes the picture with the mask greyed out; set conditioning.encode=full"
        self.needs_picture = masked if encode == "masked" else ""

    def in_channels(self, latent_channels: int) -> int:
        """C + k."""
        return latent_channels + self.mask_channels

    def canvas(self, latents: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, factor: int) -> Canvas:
        """The mask itself is shown."""
        if self.encode == "full":
            return self.canvas_of(latents(image).float(), mask, factor)
        clean, around = latents(torch.cat([image, image * (mask == 0)])).float().chunk(2)
        return self.canvas_of(clean, mask, factor)._replace(around=around)

    def canvas_of(self, clean: Tensor, mask: Tensor, factor: int) -> Canvas:
        """The picture's own latents stand around the hole."""
        return Canvas(clean, clean, hole_of(mask, factor), mask_channels(mask, factor, self.mask_channels))

    def noised(self, canvas: Canvas, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """x_t = (alpha_t x_0 + sigma_t eps) in the hole, the clean background outside, bit for bit."""
        return torch.where(canvas.hole > 0, schedule.mix(canvas.clean, eps, t), canvas.around)

    def start(self, canvas: Canvas, eps: Tensor) -> Tensor:
        """x_T: pure noise in the hole, the clean background outside."""
        return self.entering(eps, canvas)

    def entering(self, x: Tensor, canvas: Canvas) -> Tensor:
        """x in the hole, the clean background outside."""
        return torch.where(canvas.hole > 0, x, canvas.around)

    def put_back(self, x0: Tensor, canvas: Canvas, region: Tensor) -> Tensor:
        """x0 where ``region`` says so; else the picture's latents in the hole, and what stands around it outside."""
        return torch.where(canvas.hole > 0, _blend(x0, canvas.clean, region), canvas.around)

    def finished(self, x: Tensor, canvas: Canvas) -> Tensor:
        """x in the hole, the picture's own latents outside."""
        return torch.where(canvas.hole > 0, x, canvas.clean)


@register("conditioning", "nine_channel")
class NineChannelConditioning(Conditioning):
    """Stable Diffusion inpainting's: noise everywhere, shown beside it the mask (one pixel of each cell) and the
    latents of the picture with the mask greyed out; nothing is put back. C + 1 + C input channels."""

    needs_picture = "it shows the picture with the mask greyed out, encoded; conditioning.name=smartbrush with " \
        "encode: full needs none"

    def in_channels(self, latent_channels: int) -> int:
        """Twice C and the mask."""
        return 2 * latent_channels + 1

    def canvas(self, latents: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, factor: int) -> Canvas:
        """The hole is as elsewhere; the mask that is shown is sampled, as those models were trained."""
        clean, masked = latents(torch.cat([image, image * (mask == 0)])).float().chunk(2)
        return self._canvas(clean, masked, mask, factor)

    def canvas_to_paint(
        self, latents: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, factor: int
    ) -> Canvas:
        """Nothing is put back, so that only the greyed picture is encoded."""
        masked = latents(image * (mask == 0)).float()
        return self._canvas(masked, masked, mask, factor)

    @staticmethod
    def _canvas(clean: Tensor, masked: Tensor, mask: Tensor, factor: int) -> Canvas:
        shown = mask[..., ::factor, ::factor].to(masked.dtype)
        return Canvas(clean, clean, hole_of(mask, factor), torch.cat([shown, masked], dim=1))


@register("conditioning", "plain")
class PlainConditioning(Conditioning):
    """A text-to-image model's: nothing is shown beside x_t, and outside the region every x0 estimate is replaced by
    the picture, so that the sampler carries the noised picture along (Blended Latent Diffusion, arXiv 2206.02779)."""

    needs_picture = ""

    def in_channels(self, latent_channels: int) -> int:
        """C."""
        return latent_channels

    def canvas(self, latents: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, factor: int) -> Canvas:
        """Nothing beside the picture's latents."""
        return self.canvas_of(latents(image).float(), mask, factor)

    def canvas_of(self, clean: Tensor, mask: Tensor, factor: int) -> Canvas:
        """Nothing beside the picture's latents."""
        return Canvas(clean, clean, hole_of(mask, factor), clean[:, :0])

    def put_back(self, x0: Tensor, canvas: Canvas, region: Tensor) -> Tensor:
        """x0 where ``region`` says so, the picture's latents elsewhere."""
        return _blend(x0, canvas.clean, region)


def _blend(x: Tensor, clean: Tensor, region: Tensor) -> Tensor:
    """``clean`` bit for bit where the region is 0."""
    return torch.where(region > 0, clean + region * (x - clean), clean)
