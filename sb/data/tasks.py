"""What a sample is used for: which object, which text, which outline and which precision level.

A task is asked twice: ``plan`` before anything is decoded, ``outline`` once the crop is known.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sb.data.ledger import Broken
from sb.registry import register

Pixels = NDArray[np.uint8]
Record = Mapping[str, Any]
Objects = Callable[[], Pixels]  # all objects of the crop (S, S) uint8, decoded when they are asked for
SAMPLE_BY = ("instance", "category")
SHRINK, MIN_SCALE = 0.8, 0.4  # of an outline that finds no free place
MARGIN = 4  # a free place is wider than the outline by this part of it, so that ground is seen around the mask


class Plan(NamedTuple):
    """A task's choice for one sample: the instance it is about (None: the whole image), its text and its level."""

    instance: Mapping[str, Any] | None
    text: str
    level: int


@dataclass
class TaskContext:
    """What every task is built with.

    level_weights: the ladder's, one per level. min_area, max_area: the share of the image an object may cover.
    sample_by: ``instance`` chooses evenly among an image's objects, ``category`` by the inverse of how often a
    label occurs (``labels``: the shards' label counts).
    """

    level_weights: Sequence[float]
    min_area: float = 0.02
    max_area: float = 0.6
    sample_by: str = "instance"
    labels: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.min_area <= self.max_area <= 1:
            raise ValueError(f"data: needs 0 <= min_area <= max_area <= 1, not {self.min_area} and {self.max_area}")
        if self.sample_by not in SAMPLE_BY:
            raise ValueError(f"data: sample_by must be {' or '.join(SAMPLE_BY)}, not '{self.sample_by}'")

    def choose(self, record: Record, rng: np.random.Generator) -> Mapping[str, Any]:
        """One of the image's eligible objects; Broken("no_object") where there is none."""
        objects = eligible(record, self.min_area, self.max_area)
        if not objects:
            raise Broken("no_object")
        if self.sample_by == "instance":
            return objects[int(rng.random() * len(objects))]
        return objects[pick(rng, [1 / max(self.labels.get(i["label"], 1), 1) for i in objects])]


class Task(Protocol):
    """Registered under kind ``task`` and built with ``context=TaskContext``.

    has_object: whether the mask is an object's, which the mask head learns and the paste follows. must_be_told: whether
    a denoiser that is not told the task could not know it.
    """

    has_object: bool
    must_be_told: bool

    def plan(self, record: Record, rng: np.random.Generator) -> Plan:
        """Choose; Broken("no_object") or Broken("no_caption") where this task cannot use the image."""

    def outline(self, own: Pixels | None, size_px: int, rng: np.random.Generator, objects: Objects) -> Pixels:
        """The outline (S, S) uint8. own: the planned instance's in the crop, None where the plan has no instance."""


def eligible(record: Record, min_area: float, max_area: float) -> list[Mapping[str, Any]]:
    """The objects, crowds left out, that cover such a share of their image; Broken("missing_key") without an area."""
    pixels = record["width"] * record["height"]
    least, most = min_area * pixels, max_area * pixels
    try:
        return [i for i in record["instances"] if not i.get("crowd") and least <= i["area"] <= most]
    except KeyError:
        raise Broken("missing_key") from None


def pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """An index drawn by weight."""
    ends = list(accumulate(weights))
    return min(bisect_right(ends, rng.random() * ends[-1]), len(ends) - 1)


def image_caption(record: Record, rng: np.random.Generator) -> str:
    """One of the image's own captions; Broken("no_caption") where it has none."""
    captions = texts(record.get("captions")) or texts([record.get("caption") or ""])
    if not captions:
        raise Broken("no_caption")
    return captions[int(rng.random() * len(captions))]


def texts(captions: Any) -> list[str]:
    """The captions of a list that are not blank; Broken("bad_schema") where it is no list of strings."""
    captions = [] if captions is None else captions
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise Broken("bad_schema")
    return [text for text in captions if text.strip()]


@register("task", "object")
class ObjectTask:
    """Paint one object: its own label or a caption of its crop (never the image's caption), at a drawn level."""

    has_object, must_be_told = True, False

    def __init__(
        self, context: TaskContext, label_share: float = 0.5, level_weights: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= label_share <= 1:
            raise ValueError(f"task 'object': label_share {label_share} is outside [0, 1]")
        self.context, self.label_share = context, label_share
        self.level_weights = list(level_weights or context.level_weights)
        levels = len(context.level_weights)
        if len(self.level_weights) != levels or min(self.level_weights) < 0 or not sum(self.level_weights):
            raise ValueError(f"task 'object': level_weights needs {levels} numbers >= 0, not {self.level_weights}")

    def plan(self, record: Record, rng: np.random.Generator) -> Plan:
        """An eligible object, its label with probability ``label_share`` or else a caption of its own, a level."""
        instance = self.context.choose(record, rng)
        level = pick(rng, self.level_weights)
        use_label, which = rng.random(2).tolist()
        if "label" not in instance or "mask" not in instance or "box" not in instance:
            raise Broken("missing_key")
        label, captions = texts([instance["label"]]), texts(instance.get("captions"))
        if not label:
            raise Broken("bad_schema")
        told = label if not captions or use_label < self.label_share else captions
        return Plan(instance, told[int(which * len(told))], level)

    def outline(self, own: Pixels | None, size_px: int, rng: np.random.Generator, objects: Objects) -> Pixels:
        """The object's own."""
        assert own is not None
        return own


@register("task", "text_to_image")
class TextToImageTask:
    """Paint the whole image from its own caption: all ones at the box level (zeros would leak the answer)."""

    has_object, must_be_told = False, False

    def __init__(self, context: TaskContext) -> None:
        self.level = len(context.level_weights) - 1

    def plan(self, record: Record, rng: np.random.Generator) -> Plan:
        """The image's caption and level S."""
        return Plan(None, image_caption(record, rng), self.level)

    def outline(self, own: Pixels | None, size_px: int, rng: np.random.Generator, objects: Objects) -> Pixels:
        """All ones."""
        return np.ones((size_px, size_px), dtype=np.uint8)


@register("task", "remove")
class RemoveTask:
    """Paint what would be there without an object: an outline of the image moved to where it has none, without words.

    Where no place within the image is free for it, it may leave it by half; then it shrinks, and at ``MIN_SCALE``
    it takes the place that touches objects least.
    """

    has_object, must_be_told = False, True

    def __init__(self, context: TaskContext) -> None:
        self.context = context

    def plan(self, record: Record, rng: np.random.Generator) -> Plan:
        """An eligible object, for its outline; no text; a level."""
        return Plan(self.context.choose(record, rng), "", pick(rng, self.context.level_weights))

    def outline(self, own: Pixels | None, size_px: int, rng: np.random.Generator, objects: Objects) -> Pixels:
        """The object's, elsewhere."""
        assert own is not None
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        stencil = own[rows[0]: rows[-1] + 1, columns[0]: columns[-1] + 1]
        taken, scale = objects(), 1.0
        while True:
            size = [max(1, round(side * scale)) for side in stencil.shape]
            counts = _touched(taken, [side + side // MARGIN for side in size])
            if not counts.min() or scale < MIN_SCALE:
                break
            scale *= SHRINK
        free = counts == counts.min()
        within = np.zeros_like(free)
        within[size[0] // 2: size_px - (size[0] - 1) // 2, size[1] // 2: size_px - (size[1] - 1) // 2] = True
        free = np.flatnonzero(free & within if (free & within).any() else free)
        y, x = np.unravel_index(free[int(rng.random() * len(free))], counts.shape)
        small = np.asarray(Image.fromarray(stencil).resize((size[1], size[0]), Image.Resampling.NEAREST))
        room = np.pad(np.zeros_like(own), [(side, side) for side in size])
        top, left = size[0] + int(y) - size[0] // 2, size[1] + int(x) - size[1] // 2
        there = room[top: top + size[0], left: left + size[1]]
        inside = room[size[0]: -size[0], size[1]: -size[1]]
        there[:] = small
        if not inside.any():
            there[:] = 1  # what the image's edge left of it was hollow
        return inside


def _touched(taken: Pixels, box: Sequence[int]) -> NDArray[np.int64]:
    """For each pixel (S, S), how many taken ones a box (height, width) around it covers."""
    padding = [(side // 2 + 1, side - side // 2 - 1) for side in box]
    total = np.pad(taken.astype(np.int64), padding).cumsum(0).cumsum(1)
    height, width = box
    return total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]


@register("task", "random_mask")
class RandomMaskTask:
    """The usual inpainting recipe, for comparison: random brush strokes and rectangles with the image's caption."""

    has_object, must_be_told = False, False

    def __init__(self, context: TaskContext, max_strokes: int = 4, max_boxes: int = 3) -> None:
        if max_strokes < 0 or max_boxes < 0 or max_strokes + max_boxes < 1:
            raise ValueError(f"task 'random_mask': needs strokes or boxes, not {max_strokes} and {max_boxes}")
        self.max_strokes, self.max_boxes = max_strokes, max_boxes

    def plan(self, record: Record, rng: np.random.Generator) -> Plan:
        """The image's caption; the mask is used as it is drawn, so the level is 0."""
        return Plan(None, image_caption(record, rng), 0)

    def outline(self, own: Pixels | None, size_px: int, rng: np.random.Generator, objects: Objects) -> Pixels:
        """The union of up to ``max_strokes`` strokes and up to ``max_boxes`` rectangles, at least one of them."""
        drawn = 1 + int(rng.random() * (self.max_strokes + self.max_boxes))
        kinds = np.argsort(rng.random(self.max_strokes + self.max_boxes))[:drawn]
        canvas = Image.new("L", (size_px, size_px))
        pen = ImageDraw.Draw(canvas)
        for kind in kinds:
            (_stroke if kind < self.max_strokes else _rectangle)(pen, size_px, rng)
        return np.asarray(canvas)


def _stroke(pen: ImageDraw.ImageDraw, size_px: int, rng: np.random.Generator) -> None:
    """A bent line with round joints: 2 to 6 points, each up to half the image from the last."""
    width = max(1, round(size_px * (0.06 + 0.19 * rng.random())))
    place = rng.random(2) * size_px
    for _ in range(1 + int(rng.random() * 5)):
        turn, length = rng.random(2)
        step = size_px * (0.1 + 0.4 * length)
        heading = np.array([np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)])
        following = np.clip(place + step * heading, 0, size_px - 1)
        pen.line([*place, *following], fill=1, width=width)
        for x, y in (place, following):
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=1)
        place = following


def _rectangle(pen: ImageDraw.ImageDraw, size_px: int, rng: np.random.Generator) -> None:
    """A rectangle whose sides are 10 to 60 % of the image's."""
    width, height, across, down = rng.random(4)
    wide, high = (max(1, round(size_px * (0.1 + 0.5 * share))) for share in (width, height))
    x, y = int(across * (size_px - wide + 1)), int(down * (size_px - high + 1))
    pen.rectangle([x, y, x + wide - 1, y + high - 1], fill=1)
