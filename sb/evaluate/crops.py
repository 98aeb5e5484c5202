"""The square crop of a mask's box, at one size for all: what local metrics look at.

Legend: B pictures, H W pixels, P side of a crop.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes

from sb.evaluate.oracle import CONTEXT


def box_of(mask: Tensor) -> tuple[int, int, int, int]:
    """Left, top, width and height in px of a mask (1, H, W) with at least one pixel."""
    left, top, right, bottom = masks_to_boxes(mask).int()[0].tolist()
    return left, top, right - left + 1, bottom - top + 1


def crop_box(image: Tensor, box: Sequence[int], side_px: int, context: float = CONTEXT) -> Tensor:
    """The square about a box (left, top, width, height), from a picture (3, H, W) uint8 -> (3, P, P) uint8.

    Its side is the box's longer side times ``context``, at most the picture's shorter one unless the box is longer;
    it is moved into the picture, and where it does not fit there, the picture's edge is repeated. Resized bilinearly
    with anti-aliasing.
    """
    (left, top, width, height), (high, wide) = box, image.shape[1:]
    longest = max(width, height)
    side = max(longest, min(round(longest * context), high, wide))
    x, y = _moved(left + width / 2 - side / 2, side, wide), _moved(top + height / 2 - side / 2, side, high)
    part = image[:, max(y, 0): y + side, max(x, 0): x + side].float()[None]
    missing = (max(-x, 0), max(x + side - wide, 0), max(-y, 0), max(y + side - high, 0))
    return resize(F.pad(part, missing, mode="replicate"), side_px)[0]


def resize(images: Tensor, side_px: int) -> Tensor:
    """Pictures (B, 3, H, W) squeezed to (B, 3, P, P) uint8, bilinear and anti-aliased."""
    sized = F.interpolate(images.float(), (side_px, side_px), mode="bilinear", antialias=True)
    return sized.round().clamp(0, 255).to(torch.uint8)


def _moved(start: float, side: int, length: int) -> int:
    """A span's start moved into 0 ... length, or centred there where it is longer."""
    if side > length:
        return (length - side) // 2
    return min(max(round(start), 0), length - side)
