"""The shapes world: scenes drawn from one integer seed, with exact outlines and exact words for every object.

The target object is drawn last, so the same scene without it, the true background, is known.

Legend: H W pixels.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from sb.data.schema import Instance, Record
from sb.data.shapes_draw import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, paint_background, paint_object
from sb.registry import register

Pixels = NDArray[np.uint8]
SHAPE_NAMES = tuple(SHAPES)
MIN_SIZE_PX = 32
_SPLITS = {"train": 0, "val": 1, "test": 2, "oracle": 3}
_NUM_TRIES = 12


@dataclass
class ShapeObject:
    """One object of a scene: its words and its visible outline (H, W) uint8, 1 = object."""

    shape: str
    colour: str
    texture: str
    outline: Pixels
    is_target: bool = False

    @property
    def caption(self) -> str:
        """Its local caption, such as ``striped blue star``."""
        return f"{self.texture} {self.colour} {self.shape}"


@dataclass
class Scene:
    """A drawn scene: image, background (the scene without the target) and ground (without any object), (H, W, 3) uint8;
    the target comes last."""

    image: Pixels
    background: Pixels
    ground: Pixels
    background_kind: str
    objects: list[ShapeObject]

    @property
    def target(self) -> ShapeObject:
        """The object that is missing in the background."""
        return self.objects[-1]

    @property
    def caption(self) -> str:
        """The global caption."""
        *others, last = [f"a {thing.caption}" for thing in self.objects]
        things = f"{', '.join(others)} and {last}" if others else last
        return f"{things} on a {self.background_kind} background"


def scene_seed(split: str, seed: int, index: int) -> int:
    """The seed of scene ``index`` of a data set; two splits never share one (the split is its last digit base 4)."""
    if split not in _SPLITS:
        raise ValueError(f"shapes: no split '{split}'; there are: {', '.join(_SPLITS)}")
    entropy = np.random.SeedSequence([_SPLITS[split], seed, index]).generate_state(1, np.uint64)
    return (int(entropy[0]) >> 2) * len(_SPLITS) + _SPLITS[split]


def draw_scene(seed: int, size_px: int = 64) -> Scene:
    """The scene of a seed (an integer >= 0): 1 to 3 objects that barely overlap on a muted background."""
    if size_px < MIN_SIZE_PX:
        raise ValueError(f"shapes: size_px must be at least {MIN_SIZE_PX}, not {size_px}")
    unit = size_px / 64
    rng = np.random.default_rng(seed)
    numbers = rng.random(56).tolist()
    kind = BACKGROUNDS[int(4 * numbers[0])]
    canvas = paint_background(kind, _muted_tones(numbers[1:9]), numbers[9:49], size_px, unit)
    ground = _to_bytes(canvas)
    places = _places(rng, num_objects=1 + int(3 * numbers[49]), unit=unit)
    things: list[ShapeObject] = []
    background = canvas
    for index, (x, y, half) in enumerate(reversed(places)):
        draw = rng.random(8).tolist()
        if index == len(places) - 1:
            background = canvas.copy()
        thing = {"shape": _pick(SHAPE_NAMES, draw[0]), "colour": _pick(COLOURS, draw[1]),
                 "texture": _pick(TEXTURES, draw[2])}
        covered = paint_object(
            canvas, **thing, centre=(x, y), half=half, aspect=0.85 + 0.15 * draw[3], angle=0.5 * (draw[4] - 0.5),
            shade=(0.16 * (draw[5] - 0.5), 0.16 * (draw[6] - 0.5)), unit=unit,
        )
        for under in things:
            under.outline[covered] = 0
        things.append(ShapeObject(**thing, outline=covered.astype(np.uint8), is_target=index == len(places) - 1))
    things = [thing for thing in things if thing.outline.any()]
    return Scene(_to_bytes(canvas), _to_bytes(background), ground, kind, things)


def _places(rng: np.random.Generator, num_objects: int, unit: float) -> list[tuple[float, float, float]]:
    """Centres and half sides in px, the target's first; one that finds no free place is left out."""
    placed: list[tuple[float, float, float]] = []
    draws = rng.random((_NUM_TRIES * (num_objects - 1) + 1, 3)).tolist()
    for attempt, (x, y, side) in enumerate(draws):
        half = (10 + 10 * side) * unit if not placed else (10 + 7 * side * (1 - attempt / len(draws))) * unit
        room = 64 * unit - 2 * half * 1.1
        x, y = half * 1.1 + room * x, half * 1.1 + room * y
        if all((x - px) ** 2 + (y - py) ** 2 >= (0.92 * (half + other)) ** 2 for px, py, other in placed):
            placed.append((x, y, half))
            if len(placed) == num_objects:
                break
    return placed


def _muted_tones(numbers: list[float]) -> list[float]:
    """Two nearly grey tones of one tint that differ in brightness, as 6 numbers in [0, 1]."""
    middle = 0.4 + 0.38 * numbers[0]
    contrast = (0.06 + 0.08 * numbers[1]) * (1 if numbers[2] < 0.5 else -1)
    tint = [0.07 * (number - 0.5) for number in numbers[3:6]]
    return [middle + sign * contrast + value for sign in (-1, 1) for value in tint]


def _pick(choices: tuple[str, ...], number: float) -> str:
    return choices[int(len(choices) * number)]


def _to_bytes(canvas: NDArray[np.float32]) -> Pixels:
    return (np.clip(canvas, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


@register("source", "shapes")
class ShapesSource:
    """Scenes of the shapes world as a data set: lossless images, every object an instance."""

    def __init__(self, num_images: int, seed: int = 0, size_px: int = 64, split: str = "train"):
        if num_images < 1:
            raise ValueError(f"shapes: num_images must be at least 1, not {num_images}")
        scene_seed(split, seed, 0)
        self.num_images, self.seed, self.size_px, self.split = num_images, seed, size_px, split

    def __len__(self) -> int:
        return self.num_images

    def record(self, index: int) -> Record:
        """Scene ``index`` of this split and seed."""
        number = scene_seed(self.split, self.seed, index)
        scene = draw_scene(number, self.size_px)
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, format="PNG", compress_level=1)
        key = f"shapes-{self.split}-{self.seed}-{self.size_px}-{index:08d}"
        return Record(
            key=key, image=file.getvalue(), extension="png", width=self.size_px, height=self.size_px,
            instances=[_instance(str(i), thing) for i, thing in enumerate(scene.objects)],
            caption=scene.caption, captions=[scene.caption],
            origin={"split": self.split, "scene_seed": number, "licence": "drawn by this project"},
        )

    def describe(self) -> Mapping[str, Any]:
        """Name, size, split and seed."""
        return {"name": "shapes", "num_images": self.num_images, "seed": self.seed, "size_px": self.size_px,
                "split": self.split}


def _instance(name: str, thing: ShapeObject) -> Instance:
    rle = coco_mask.encode(np.asfortranarray(thing.outline))
    return Instance(
        id=name, label=thing.shape, captions=[thing.caption], box=[float(n) for n in coco_mask.toBbox(rle)],
        area=int(coco_mask.area(rle)), mask={"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    )
