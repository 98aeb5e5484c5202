"""Which part of a picture a model is shown: a small mask in a large picture is painted close up, and put back.

A frame is cut around the mask and scaled to the size that the model was trained at. Nothing outside the mask is ever
taken from it. Legend: H W pixels of the picture, h w pixels of the frame as the model sees it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = 1.25  # times the model's own size: up to here a picture is painted as it is


class Frame(NamedTuple):
    """A part of a picture, ``width`` x ``height`` pixels at (x, y), and its (h, w) as the model sees it."""

    x: int
    y: int
    width: int
    height: int
    size: tuple[int, int]

    @property
    def scaled(self) -> bool:
        """Whether the model sees other pixels than the picture's own."""
        return self.size != (self.height, self.width)

    def cut(self, picture: Tensor) -> Tensor:
        """The part of a picture or mask (C, H, W), at its own resolution."""
        return picture[:, self.y: self.y + self.height, self.x: self.x + self.width]

    def shown(self, picture: Tensor) -> Tensor:
        """The part of a picture (C, H, W) uint8 as the model sees it."""
        part = self.cut(picture)
        return _resized(part.float(), self.size).round().clamp(0, 255).to(torch.uint8) if self.scaled else part

    def shown_mask(self, mask: Tensor) -> Tensor:
        """The part of a mask (1, H, W) uint8 as the model sees it: a pixel is painted as soon as a part of it is."""
        part = self.cut(mask)
        if not self.scaled:
            return part
        if self.size[0] > self.height:
            return F.interpolate(part[None].float(), self.size, mode="nearest-exact")[0].to(mask.dtype)
        return F.adaptive_max_pool2d(part[None].float(), self.size)[0].to(mask.dtype)

    def unscaled(self, values: Tensor) -> Tensor:
        """What the model made (C, h, w), floats, at the resolution of the picture's part."""
        return _resized(values, (self.height, self.width)) if self.scaled else values

    def put_back(self, part: Tensor, picture: Tensor) -> Tensor:
        """A copy of the picture (C, H, W) with this part in its place."""
        whole = picture.clone()
        self.cut(whole).copy_(part)
        return whole


def frame_of(mask: Tensor, native_px: int | None, context: float, max_zoom: float) -> Frame:
    """The frame of a mask (1, H, W) uint8 that marks a pixel at least.

    native_px: the model's own size; None, and a picture that hardly exceeds it, give the whole picture. The frame's
    side is ``context`` times the mask's longer side, and no less than what ``max_zoom`` enlarges to the native size.
    """
    height, width = mask.shape[-2:]
    whole = Frame(0, 0, width, height, (height, width))
    if native_px is None or max(height, width) <= WHOLE * native_px:
        return whole
    rows, columns = mask[0].amax(1).nonzero()[:, 0], mask[0].amax(0).nonzero()[:, 0]
    (top, bottom), (left, right) = ((int(marked[0]), int(marked[-1]) + 1) for marked in (rows, columns))
    side = max(round(context * max(bottom - top, right - left)), round(native_px / max_zoom))
    w, h = min(side, width), min(side, height)
    zoom = min(native_px / max(w, h), max_zoom)
    x = min(max((left + right - w) // 2, 0), width - w)
    y = min(max((top + bottom - h) // 2, 0), height - h)
    return Frame(x, y, w, h, (max(1, round(h * zoom)), max(1, round(w * zoom))))


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
