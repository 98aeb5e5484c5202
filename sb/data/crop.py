"""Square crops that keep the chosen object in frame, and the outline at the crop's final size.

Legend: S the side of the square that a model sees, in pixels; H W the stored image's pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


class Frame(NamedTuple):
    """A square of the stored image: left, top and side in its pixels, and whether it is mirrored."""

    x: int
    y: int
    side: int
    flip: bool


@dataclass
class Crop:
    """How much of an image a sample shows.

    An object's crop is its longer side times a context drawn between ``min_context`` and ``max_context``
    (log-uniform), at least ``min_side_px`` (null: the model's own size, so that small objects are not blown up)
    and at most the largest square that fits. Images for a task without an object take a random square whose side
    is between 1 / ``max_zoom`` of the largest and all of it.

    variants: 0 draws a fresh frame for each sample; n gives each image n frames once and for all (sb/data/variants.py),
    so that what a VAE makes of them can be cached.
    """

    min_context: float = 1.5
    max_context: float = 4.0
    min_side_px: int | None = None
    max_zoom: float = 1.3
    variants: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_context <= self.max_context or self.max_zoom < 1 or self.variants < 0:
            raise ValueError(
                "crop: needs 1 <= min_context <= max_context, max_zoom >= 1 and variants >= 0, "
                f"not {self.min_context}, {self.max_context}, {self.max_zoom} and {self.variants}"
            )


def draw_frame(
    rng: np.random.Generator, width: int, height: int, box: Sequence[float] | None, crop: Crop | None,
    size_px: int, flip: float,
) -> Frame:
    """A frame for one sample. box: the object's x y w h, in frame as far as it fits; None for no object.

    Without ``crop`` the frame is the largest square, so that an image that is square keeps every pixel.
    """
    largest = min(width, height)
    left, top, box_width, box_height = (0, 0, width, height) if box is None else whole_box(box, width, height)
    context, across, down, mirror = rng.random(4).tolist()  # numpy's scalars are slow
    if crop is None:
        side = largest
    elif box is None:
        side = round(largest / crop.max_zoom**context)
    else:
        context = crop.min_context * (crop.max_context / crop.min_context) ** context
        least = size_px if crop.min_side_px is None else crop.min_side_px
        side = min(largest, max(round(max(box_width, box_height) * context), least, 1))
    x = _start(across, left, box_width, side, width)
    y = _start(down, top, box_height, side, height)
    return Frame(x, y, side, bool(mirror < flip))


def crop_image(image: Image.Image, width: int, height: int, frame: Frame, size_px: int) -> Pixels:
    """The frame as (S, S, 3); ``image`` may have been decoded smaller than the (width, height) the frame refers to."""
    if image.size == (width, height) and frame.side == size_px:
        square = image.crop((frame.x, frame.y, frame.x + size_px, frame.y + size_px))
    else:
        across, down = image.width / width, image.height / height
        box = (frame.x * across, frame.y * down, (frame.x + frame.side) * across, (frame.y + frame.side) * down)
        square = image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(square)
    return pixels[:, ::-1] if frame.flip else pixels


def crop_outline(mask: Pixels, frame: Frame, size_px: int) -> Pixels:
    """The object (H, W) inside the frame as (S, S): covered by at least half, and never lost if it was in frame."""
    part = mask[frame.y : frame.y + frame.side, frame.x : frame.x + frame.side].T  # masks lie in memory by columns
    part = scale_mask(part, size_px, size_px)
    return part.T[:, ::-1] if frame.flip else part.T


def scale_mask(mask: Pixels, height: int, width: int) -> Pixels:
    """An object's mask (H, W) as (height, width): covered by at least half, and never lost if there was any of it."""
    if mask.shape == (height, width):
        return mask
    method = Image.Resampling.BOX if mask.shape[1] > width else Image.Resampling.BILINEAR
    grey = Image.fromarray(np.ascontiguousarray(mask) * np.uint8(255))
    covered = np.asarray(grey.resize((width, height), method))
    small = (covered >= min(128, max(int(covered.max()), 1))).view(np.uint8)
    if not small.any() and (pixel := pixel_of(mask)) is not None:  # less than half a grey value
        small[int(pixel[1] * height / mask.shape[0]), int(pixel[0] * width / mask.shape[1])] = 1
    return small


def enough_pixels(width: int, height: int, frame: Frame, size_px: int) -> tuple[int, int]:
    """The smallest (width, height) of the whole image at which the frame still has S pixels a side."""
    return -(-width * size_px // frame.side), -(-height * size_px // frame.side)


def pixel_of(mask: Pixels) -> list[float] | None:
    """A one-pixel box x y w h in the middle of an object's pixels, for crops that its own box led astray."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    return [float(columns[len(columns) // 2]), float(rows[len(rows) // 2]), 1.0, 1.0]


def whole_box(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The box on whole pixels inside the image, at least one pixel each way."""
    left = min(max(math.floor(box[0]), 0), width - 1)
    top = min(max(math.floor(box[1]), 0), height - 1)
    right = min(max(math.ceil(box[0] + box[2]), left + 1), width)
    bottom = min(max(math.ceil(box[1] + box[3]), top + 1), height)
    return left, top, right - left, bottom - top


def _start(drawn: float, first: int, length: int, side: int, limit: int) -> int:
    """Where a window of ``side`` starts so that it holds [first, first + length), or lies inside that if longer."""
    ends = first + length - side
    low, high = max(min(first, ends), 0), min(max(first, ends), limit - side)
    return low + int(drawn * (high - low + 1))
