"""The fixed frames of an image: variant v of n, as a pure function of (image key, v) and of how images are cropped.

Neither the run's seed nor a sample's position has a say in it, so that a frame can be encoded once for all runs.
"""

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from sb.data.crop import Crop, Frame, draw_frame, whole_box
from sb.data.tasks import Record, eligible

WORD = 2**64


def variant_frame(
    record: Record, key: str, variant: int, crop: Crop, size_px: int, flip: float, area: tuple[float, float],
) -> Frame:
    """Frame ``variant`` of ``crop.variants`` of an image: around one of its eligible objects, each in turn, or where it
    has none as for an image without an object. ``flip`` of the variants are mirrored (one of two at 0.5).

    area: the least and the largest share of the image that an eligible object covers.
    """
    word, first, phase = struct.unpack("<3Q", hashlib.blake2b(key.encode(), digest_size=24).digest())
    objects = eligible(record, *area)
    box = list(objects[(first + variant) % len(objects)]["box"]) if objects else None
    rng = np.random.Generator(np.random.Philox(key=[word, variant]))
    frame = draw_frame(rng, record["width"], record["height"], box, crop, size_px, flip)
    return frame._replace(flip=(phase / WORD + variant / crop.variants) % 1 < flip)


def shown_in(record: Record, frame: Frame) -> dict[str, Any]:
    """The record with those objects alone that lie in a frame: at least half of the box does, or of what the frame can
    hold of a box that is longer than the frame."""
    return {**record, "instances": [i for i in record["instances"] if _lies_in(i, frame, record)]}


def _lies_in(instance: Mapping[str, Any], frame: Frame, record: Record) -> bool:
    left, top, width, height = whole_box(list(instance["box"]), record["width"], record["height"])
    across = min(left + width, frame.x + frame.side) - max(left, frame.x)
    down = min(top + height, frame.y + frame.side) - max(top, frame.y)
    held = min(width, frame.side) * min(height, frame.side)
    return min(across, down) > 0 and 2 * across * down >= held
