"""The shapes world's metrics: where the generated object is, whether it is what was asked, and what it spoiled.

The object in a result is what is saturated in colour and differs by more than 20 of 255 from the true background: a
painted pixel of the background's own colour is no object, whatever it was meant to be.

Legend: B requests, H W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sb.evaluate.frechet import frechet_distance
from sb.evaluate.oracle import NONE, Oracle
from sb.evaluate.requests import ShapesCase
from sb.masks import dilate

MIN_SATURATION = 0.22  # of a pixel that may belong to an object; backgrounds stay below 0.1, objects are above 0.5
EDGE = 0.45  # share of the object's own saturation from which a pixel on its edge is object
CHANGED = 20  # an object's pixel differs by more than this from the true background, of 255
CONTEXT_PX = 2  # pixels around the object that do not count as background
MIN_AREA = 0.1  # less than this share of the outline's area is no object
MAX_DB = 60.0


def object_of(image: Tensor, background: Tensor, mask: Tensor) -> Tensor:
    """The object in images (B, 3, H, W) uint8 inside masks (B, 1, H, W): (B, 1, H, W) bool.

    Pixels that differ from the true background and whose saturation, measured along the hue that prevails among
    them, is at least ``EDGE`` of what is typical for the object.
    """
    chroma = _chroma(image)  # (B, 2, H, W)
    differs = (image.int() - background.int()).abs().amax(1, keepdim=True) > CHANGED
    candidate = differs & (mask > 0) & (chroma.norm(dim=1, keepdim=True) > MIN_SATURATION)
    hue = (chroma * candidate).sum((2, 3), keepdim=True)
    along = (chroma * hue / hue.norm(dim=1, keepdim=True).clamp(min=1e-6)).sum(1, keepdim=True)  # (B, 1, H, W)
    typical = torch.where(candidate, along, torch.nan).flatten(1).nanmedian(1).values.nan_to_num(1.0)
    needed = (EDGE * typical).clamp(min=MIN_SATURATION).view(-1, 1, 1, 1)
    return (along > needed) & differs & (mask > 0)


def _chroma(image: Tensor) -> Tensor:
    """What is not grey in colours (B, 3, H, W) uint8, as a plane (B, 2, H, W): angle is hue, length saturation."""
    red, green, blue = (image.float() / 255).unbind(1)
    return torch.stack([red - (green + blue) / 2, (green - blue) * math.sqrt(0.75)], 1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks (B, 1, H, W) -> (B,); NaN where both are empty."""
    first, second = a > 0, b > 0
    both, either = (first & second).sum((1, 2, 3)), (first | second).sum((1, 2, 3))
    return both / either


def decibel(squared_error: float, count: float) -> float:
    """PSNR of a summed squared error in [0, 255]^2 over a number of values, at most 60 dB."""
    mean = squared_error / count if count else 0.0
    return MAX_DB if mean <= 255.0**2 / 10 ** (MAX_DB / 10) else 10 * math.log10(255.0**2 / mean)


@dataclass
class Painted:
    """What one run painted for B cases: pictures after and before the paste, and the predicted mask if there is one.

    mask: (B, 1, H, W) what the user drew. pixels, decoded: (B, 3, H, W) uint8. predicted: (B, 1, H, W) float.
    """

    mask: Tensor
    pixels: Tensor
    decoded: Tensor
    predicted: Tensor | None


@dataclass
class Scores:
    """One value per case (B,), and the pooled numbers of a run.

    text: shape and colour as asked. colour, texture: that word alone. all_three: shape, colour and texture. none: no
    object. occupancy: object over mask area. iou, iou_decoded: object against outline, after and before the paste.
    mask_iou: predicted mask against object. outside: pixels outside the mask bit-equal. background_mse, background_db:
    mean square error, and pooled PSNR, of the mask's other pixels.
    """

    text: Tensor
    shape: Tensor
    colour: Tensor
    texture: Tensor
    all_three: Tensor
    none: Tensor
    occupancy: Tensor
    iou: Tensor
    iou_decoded: Tensor
    mask_iou: Tensor | None
    outside: Tensor
    background_mse: Tensor
    background_db: float
    local_fd: float


def score(cases: Sequence[ShapesCase], painted: Painted, oracle: Oracle) -> Scores:
    """Measure one run; the oracle reads the box of the user's mask."""
    background = torch.stack([case.background for case in cases])
    outline = torch.stack([case.outline for case in cases])
    found = object_of(painted.pixels, background, painted.mask)
    before = object_of(painted.decoded, background, painted.mask)
    reading = oracle.read(painted.pixels, painted.mask)
    truth = oracle.read(torch.stack([case.image for case in cases]), painted.mask)
    right = {
        word: torch.tensor([getattr(case, word) == said for case, said in zip(cases, getattr(reading, word))])
        for word in ("shape", "colour", "texture")
    }
    small = found.sum((1, 2, 3)) < MIN_AREA * outline.sum((1, 2, 3))
    none = small | torch.tensor([said == NONE for said in reading.shape])
    rest = (painted.mask > 0) & ~dilate(found.float(), CONTEXT_PX).bool()
    squared = (painted.pixels.float() - background.float()).square() * rest
    kept = (painted.pixels == background) | (painted.mask > 0)
    return Scores(
        text=(right["shape"] & right["colour"] & ~none).float(),
        shape=(right["shape"] & ~none).float(),
        colour=(right["colour"] & ~none).float(),
        texture=(right["texture"] & ~none).float(),
        all_three=(right["shape"] & right["colour"] & right["texture"] & ~none).float(),
        none=none.float(),
        occupancy=found.sum((1, 2, 3)) / painted.mask.sum((1, 2, 3)),
        iou=iou(found, outline),
        iou_decoded=iou(before, outline),
        mask_iou=None if painted.predicted is None else iou(painted.predicted > 0.5, found),
        outside=kept.all(1).all(1).all(1),
        background_mse=squared.sum((1, 2, 3)) / (3 * rest.sum((1, 2, 3))),  # NaN where nothing is left of it
        background_db=decibel(float(squared.double().sum()), 3 * float(rest.sum())),
        local_fd=frechet_distance(reading.features, truth.features),
    )
