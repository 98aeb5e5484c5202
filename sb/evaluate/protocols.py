"""Protocols: which objects a request list asks for, in which crop, under which mask, in which words.

Draws are by hash. An object's place in the draw depends on the seed, its picture's key and its own id alone, so the
same list comes out of shards and of annotation files, and a shorter list is the beginning of a longer one.

Legend: H W pixels of a case, S the level of the box.
"""

import hashlib
import heapq
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sb.config import CONFIGS, load, plain
from sb.data.coco import CocoAnnotations, encode_mask
from sb.data.crop import scale_mask, whole_box
from sb.data.decode import decode_mask
from sb.data.ledger import Broken
from sb.data.schema import Instance, Record
from sb.data.shapes import scene_seed
from sb.data.shards import list_shards
from sb.data.verify import read_samples
from sb.data.write import fingerprint_of
from sb.evaluate.hulls import hull_of
from sb.evaluate.lists import Case, CaseList, write_list
from sb.evaluate.requests import make_cases
from sb.masks import Ladder
from sb.registry import build, call, register

log = logging.getLogger(__name__)
Pixels = NDArray[np.uint8]
Text = Literal["label", "caption"]
_DRAW = ("The place of an object in the draw is -ln((n + 1) / 2^48){weight}, n being the first 12 hexadecimal digits "
         "of the SHA-256 of 'SEED KEY INSTANCE'; the objects that come first are taken, in that order.")
_RESIZING = ("Pictures are resized by Lanczos over the area of each new pixel; a pixel belongs to the resized outline "
             "where at least half of it is covered, and an object never vanishes.")
_NOISE = "The noise of object i, from 0, has seed SEED * 1000003 + i."


class ListProtocol(Protocol):
    """Registered under kind ``protocol`` and built with the protocol's own options.

    draws_objects: whether it needs annotated pictures; others make their own. size_px: the usual size. rules: all of
    it in words.
    """

    draws_objects: bool
    size_px: int
    rules: str

    def cases(self, records: Iterable[Record], count: int, seed: int, size_px: int, ladder: Ladder) -> list[Case]:
        """The cases of ``count`` objects; ValueError where there are fewer."""


class Drawn(NamedTuple):
    """An object that was drawn: its picture's record (without pixels) and its annotation."""

    record: Record
    instance: Instance


class SquareCases:
    """Objects in the largest square of their picture, each under the masks of some levels of the ladder."""

    draws_objects, size_px = True, 512

    def __init__(self, levels: Callable[[int], Sequence[int]], masks: str, text: Text, min_area: float,
                 max_area: float):
        if not 0 <= min_area <= max_area <= 1:
            raise ValueError(f"needs 0 <= min_area <= max_area <= 1, not {min_area} and {max_area}")
        self.levels, self.text, self.min_area, self.max_area = levels, text, min_area, max_area
        told = "its label" if text == "label" else "one of its own captions (objects without one are left out)"
        self.rules = (
            "Objects: every instance, crowds left out, whose box fits into the largest square of its picture and that "
            f"covers {min_area:g} to {max_area:g} of that square's area. " + _DRAW.format(weight="") +
            " Crop: that square, as nearly centred on the object's box as the picture allows. "
            f"{_RESIZING} Masks: {masks}, on the resized outline. Text: {told}. {_NOISE}"
        )

    def cases(self, records: Iterable[Record], count: int, seed: int, size_px: int, ladder: Ladder) -> list[Case]:
        """For each object one case per level, in ascending order."""
        found = []
        for number, (record, thing) in enumerate(_draw(records, self._usable, count, seed)):
            crop, noise = _square(record, thing), seed * 1_000_003 + number
            outline = _outline(record, thing, crop, (size_px, size_px))
            text = thing.label if self.text == "label" else _caption(record, thing, seed)
            for level in self.levels(ladder.num_levels):
                mask = ladder(torch.from_numpy(outline)[None, None], torch.tensor([level]))[0, 0].numpy()
                found.append(_case(record, thing, text, level, ladder, noise, crop, mask, outline))
        return found

    def _usable(self, record: Record) -> list[Instance]:
        pixels = min(record.width, record.height) ** 2
        return [
            thing for thing in record.instances
            if not thing.crowd and self.min_area * pixels <= thing.area <= self.max_area * pixels
            and max(whole_box(thing.box, record.width, record.height)[2:]) <= min(record.width, record.height)
            and (self.text == "label" or thing.captions)
        ]


class HullCases:
    """Objects of whole pictures under their convex hulls, named by their category (HD-Painter, arXiv 2312.14091)."""

    draws_objects, size_px = True, 512

    def __init__(self, level: float):
        self.level = level
        self.rules = (
            "After the test set of HD-Painter (arXiv 2312.14091): 10,000 random objects of COCO val2017, each under "
            "the convex hull of its mask, asked for by its category's name, the picture's longer side resized to "
            "512 px (here: size_px; the shorter side is rounded down). The draw is our own, so results are not "
            "comparable case by case. Objects: every instance, crowds left out, of any size. "
            f"{_DRAW.format(weight=' * the number of such objects in its picture')} So pictures are drawn evenly, "
            f"whatever they hold. Crop: none, the whole picture. {_RESIZING} Mask: the pixels whose centre lies in the "
            f"convex hull of the centres of the resized outline's pixels. Declared level: {level:g}. {_NOISE}"
        )

    def cases(self, records: Iterable[Record], count: int, seed: int, size_px: int, ladder: Ladder) -> list[Case]:
        """One case per object."""
        if not 0 <= self.level <= ladder.num_levels:
            raise ValueError(f"protocol 'hull': level {self.level:g} is outside [0, {ladder.num_levels}]")
        found = []
        for number, (record, thing) in enumerate(_draw(records, _no_crowds, count, seed, evenly=True)):
            longer = max(record.width, record.height)
            size = max(record.height * size_px // longer, 1), max(record.width * size_px // longer, 1)
            crop = (0, 0, record.width, record.height)
            outline = _outline(record, thing, crop, size)
            noise = seed * 1_000_003 + number
            found.append(_case(record, thing, thing.label, self.level, ladder, noise, crop, hull_of(outline), outline))
        return found


class SceneCases:
    """Unseen scenes of the shapes world without their target, asked for by texture, colour and shape."""

    draws_objects, size_px = False, 64
    rules = (
        "Scenes of the shapes world's test split, drawn from their seeds (image); what is painted on is the scene "
        "without its target. Each scene is asked for twice with the same noise: under the target's outline (level 0) "
        "and under that outline's box (the last level). Text: texture, colour and shape. " + _NOISE
    )

    def cases(self, records: Iterable[Record], count: int, seed: int, size_px: int, ladder: Ladder) -> list[Case]:
        """Outline and box of each of the first ``count`` scenes."""
        found = []
        for index, scene in enumerate(make_cases(count, seed, size_px)):
            outline = encode_mask(scene.outline[0].numpy())
            for level in (0, ladder.num_levels):
                mask = ladder(scene.outline[None], torch.tensor([level]))[0, 0].numpy()
                found.append(Case(
                    str(scene_seed("test", seed, index)), "target", scene.shape, scene.text, float(level),
                    ladder.num_levels, scene.seed, (0, 0, size_px, size_px), (size_px, size_px), encode_mask(mask),
                    outline, (size_px, size_px),
                ))
        return found


@register("protocol", "box")
def box_cases(text: Text = "label", min_area: float = 0.02, max_area: float = 0.6) -> ListProtocol:
    """Each object under its bounding box, declared as such."""
    return SquareCases(lambda top: [top], "the box of the outline", text, min_area, max_area)


@register("protocol", "outline")
def outline_cases(text: Text = "label", min_area: float = 0.02, max_area: float = 0.6) -> ListProtocol:
    """Each object under its exact outline, declared as such."""
    return SquareCases(lambda top: [0], "the outline itself", text, min_area, max_area)


@register("protocol", "ladder")
def ladder_cases(text: Text = "label", min_area: float = 0.02, max_area: float = 0.6) -> ListProtocol:
    """Each object under every mask from its outline to its box, with the same noise."""
    return SquareCases(lambda top: range(top + 1), "every level of the ladder in turn", text, min_area, max_area)


@register("protocol", "hull")
def hull_cases(level: float = 1.0) -> ListProtocol:
    """Each object under its convex hull; ``level`` is what a model that knows levels is told.

    On COCO objects fill their hulls by 0.82 of the area (mean), and the masks of levels 1 and 2 by 0.85 and 0.77.
    """
    return HullCases(level)


@register("protocol", "shapes")
def scene_cases() -> ListProtocol:
    """The scenes of the shapes evaluation."""
    return SceneCases()


def make_list(
    path: str | Path, protocol: Mapping[str, Any], count: int, *, data: Sequence[str] | str = (),
    annotations: str | None = None, split: str = "val", seed: int = 0, size_px: int | None = None,
) -> CaseList:
    """Write the request list of ``count`` objects by a protocol (its registered name and options) to ``path``.

    The objects come from shards (``data``) or from a COCO annotation file of a split. The ladder is that of
    ``configs/base.yaml``. Raises ValueError where ``path`` is taken, both or none are given, or objects are too few.
    """
    if Path(path).exists():
        raise ValueError(f"{path} is there already: name another file, lists are never overwritten")
    asked: ListProtocol = build("protocol", protocol)
    size_px = asked.size_px if size_px is None else size_px
    name, given = protocol["name"], bool(data) + bool(annotations)
    if count < 1 or size_px < 1 or seed < 0:
        raise ValueError(f"a list needs count and size >= 1 and a seed >= 0, not {count}, {size_px} and {seed}")
    if given != asked.draws_objects:
        needs = "either shards or one annotation file" if asked.draws_objects else "neither shards nor annotations"
        raise ValueError(f"protocol '{name}' needs {needs}, and {given} of them were given")
    settings = plain(load(CONFIGS / "base.yaml"))["ladder"]
    records, source = _records([data] if isinstance(data, str) else data, annotations, split)
    cases = asked.cases(records, count, seed, size_px, call("ladder", Ladder, settings))
    if small := sum(max(case.crop[2:]) < size_px for case in cases):
        log.warning("%d of %d crops are enlarged to %d px; --size sets another", small, len(cases), size_px)
    options = {key: value for key, value in protocol.items() if key != "name"}
    source |= {"options": options, "ladder": settings["levels"]}
    header = {"protocol": name, "size_px": size_px, "seed": seed, "source": source, "rules": asked.rules}
    return write_list(path, header, cases)


def _records(
    data: Sequence[str], annotations: str | None, split: str
) -> tuple[Iterable[Record], dict[str, Any]]:
    """Annotated pictures, without their pixels, and what they came from."""
    if annotations:
        source = CocoAnnotations(annotations, split=split)
        return (source.record(index) for index in range(len(source))), dict(source.describe())
    if not data:
        return (), {"name": "shapes", "split": "test"}
    shards = list_shards(data).shards
    told = [address.rstrip("/").rpartition("/")[2] for address in data]
    return _stored(data), {"shards": told, "sha256": fingerprint_of([[s.name, s.sha256 or s.size] for s in shards])}


def _stored(data: Sequence[str]) -> Iterator[Record]:
    for address in data:
        for key, members in read_samples(address, only=("json",)):
            try:
                body = json.loads(members["json"])
                things = [Instance(**thing) for thing in body["instances"]]
                yield Record(key, b"", "", body["width"], body["height"], things)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{address}: {key} is no annotated picture ({error!r}); "
                                 "tools/check_shards.py says more") from None


def _draw(
    records: Iterable[Record], usable: Callable[[Record], list[Instance]], count: int, seed: int, evenly: bool = False
) -> list[Drawn]:
    """The first ``count`` objects of the draw; ``evenly`` gives each picture the same chance."""
    num = 0

    def ranked() -> Iterator[tuple[float, str, str, Drawn]]:
        nonlocal num
        for record in tqdm(records, desc="draw", unit=" images", mininterval=1):
            things = usable(record)
            num += len(things)
            for thing in things:
                digits = _hash(seed, record.key, thing.id)
                rank = -math.log((digits + 1) / 2**48) * (len(things) if evenly else 1)
                yield rank, record.key, thing.id, Drawn(record, thing)

    first = heapq.nsmallest(count, ranked(), key=lambda entry: entry[:3])
    if len(first) < count:
        raise ValueError(f"only {num} objects fit the protocol, and {count} were asked for: ask for fewer, "
                         "or widen its limits (min_area, max_area, text)")
    return [entry[3] for entry in first]


def _hash(seed: int, key: str, instance: str) -> int:
    return int(hashlib.sha256(f"{seed} {key} {instance}".encode()).hexdigest()[:12], 16)


def _no_crowds(record: Record) -> list[Instance]:
    return [thing for thing in record.instances if not thing.crowd and thing.area]


def _caption(record: Record, thing: Instance, seed: int) -> str:
    return thing.captions[_hash(seed, record.key, thing.id) % len(thing.captions)]


def _square(record: Record, thing: Instance) -> tuple[int, int, int, int]:
    """Left, top, width and height of the largest square, as nearly centred on the object's box as the picture lets."""
    side = min(record.width, record.height)
    x, y, width, height = whole_box(thing.box, record.width, record.height)
    left = min(max(x + width // 2 - side // 2, 0), record.width - side)
    top = min(max(y + height // 2 - side // 2, 0), record.height - side)
    return left, top, side, side


def _outline(record: Record, thing: Instance, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Pixels:
    left, top, width, height = crop
    try:
        whole = decode_mask(thing.mask, record.width, record.height)
    except Broken:
        raise ValueError(f"{record.key}: the mask of {thing.id} cannot be read; run tools/check_shards.py") from None
    return scale_mask(np.ascontiguousarray(whole[top: top + height, left: left + width]), *size)


def _case(
    record: Record, thing: Instance, text: str, level: float, ladder: Ladder, seed: int,
    crop: tuple[int, int, int, int], mask: Pixels, outline: Pixels,
) -> Case:
    height, width = outline.shape
    return Case(record.key, thing.id, thing.label, text, float(level), ladder.num_levels, seed, crop, (height, width),
                encode_mask(mask), encode_mask(outline), (record.width, record.height))
