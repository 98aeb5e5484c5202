"""Ways of painting side by side: the same requests painted under different options, what each is worth and costs.

A way is a name and what differs from the model's own options: keys of ``inpaint:``, and besides ``model`` (another
model), ``sampler``, ``encode`` (of its conditioning), ``compiled`` (the denoiser), and ``large`` (the side of a picture
that a scene is pasted into before it is painted).

Legend: B requests, H W pixels.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sb.config import check_keys, spec_of
from sb.data.crop import Crop
from sb.data.pipeline import Look, Samples
from sb.data.shapes import draw_scene, scene_seed
from sb.data.shards import ShardStore
from sb.data.tasks import ObjectTask, TaskContext
from sb.denoising import PaintOptions
from sb.evaluate.oracle import Oracle, boxes_of
from sb.evaluate.quantity import DEVIATIONS
from sb.evaluate.requests import Paint, ShapesCase, masks_at, paint_cases
from sb.evaluate.seams import colour_shift, seams
from sb.evaluate.shapes import painted_of
from sb.evaluate.shapes_metrics import Scores, decibel, object_of, score
from sb.inpaint import Inpainter
from sb.registry import build, call, lookup
from sb.types import Request, Result

OTHER_KEYS = ("model", "sampler", "encode", "compiled", "large")
LEAST_LARGE = 64  # px, what the scenes measure
Load = Callable[[str], Inpainter]


@dataclass(frozen=True)
class Way:
    """One row: its name and what it changes."""

    name: str
    changes: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Way":
        """``name: key=value key=value``, or a name alone for the model's own options; ValueError otherwise."""
        changes = spec_of(text)
        name = changes.pop("name")
        check_keys(f"way '{name}'", changes, [*OTHER_KEYS, *(field.name for field in fields(PaintOptions))])
        return cls(name, changes)

    def painter(self, own: Inpainter, load: Load) -> Inpainter:
        """The painter that paints so."""
        changes = dict(self.changes)
        painter = copy.copy(load(str(changes["model"])) if "model" in changes else own)
        if "sampler" in changes:
            painter.sampler = lookup("sampler", changes["sampler"])
        if "encode" in changes:
            if not hasattr(painter.conditioning, "encode"):
                raise ValueError(f"way '{self.name}': this model's conditioning has no 'encode'")
            shown = {"mask_channels": painter.conditioning.mask_channels, "encode": changes["encode"]}
            painter.conditioning = build("conditioning", {"name": "smartbrush", **shown})
        if changes.get("compiled"):
            painter.denoiser = torch.compile(painter.denoiser)  # type: ignore[assignment]
        options = {key: value for key, value in changes.items() if key not in OTHER_KEYS}
        painter.options = call(f"way '{self.name}'", PaintOptions, {**vars(painter.options), **options})
        return painter


def compare_ways(
    painter: Inpainter, load: Load, ways: Sequence[Way], cases: Sequence[ShapesCase], oracle: Oracle, batch: int = 64,
    box_px: int | None = None,
) -> list[dict[str, Any]]:
    """A row for each way on scenes of the shapes world, outline masks and box masks.

    text_outline, text_box, iou_outline: means, and ``loss_``: how much lower than the first way's at most, with 95 %
    confidence (paired, normal). texture: of both kinds of mask. Of box masks: all_three_box, shape, colour and texture;
    local_fd_box, Frechet distance of the object's features; background_db_box, seam_box, shift_box, outside the object.
    equal: whether every pixel outside came back. ms: per request, in batches of ``batch``. box_px: box masks are
    squares of this side about the middle of the target, as far as the scene goes.
    """
    rows: list[dict[str, Any]] = []
    first: dict[str, Tensor] = {}
    level = painter.ladder.num_levels
    outlines, boxes = masks_at(cases, painter.ladder, 0), masks_at(cases, painter.ladder, level)
    if box_px is not None:
        boxes = _squares(boxes, box_px)
    background = torch.stack([case.background for case in cases])
    for way in ways:
        paint = _placed(way.painter(painter, load).paint, way.changes.get("large"))
        paint_cases(paint, cases[:batch], boxes[:batch], level, batch, f"{way.name}, to warm up")
        began = time.perf_counter()
        outlined = paint_cases(paint, cases, outlines, 0, batch, way.name)
        boxed = paint_cases(paint, cases, boxes, level, batch, way.name)
        seconds = time.perf_counter() - began
        on_outline = score(cases, painted_of(outlined, outlines), oracle)
        painted = painted_of(boxed, boxes)
        on_box = score(cases, painted, oracle)
        found = object_of(painted.pixels, background, boxes)
        each = {"text_outline": on_outline.text, "text_box": on_box.text, "iou_outline": on_outline.iou}
        texture = (on_outline.texture + on_box.texture) / 2
        first = first or each
        rows.append({
            "way": way.name,
            **{name: float(values.mean()) for name, values in each.items()},
            **{f"loss_{name}": _loss_limit(first[name], values) for name, values in each.items()},
            "texture": float(texture.mean()), "all_three_box": float(on_box.all_three.mean()),
            "local_fd_box": on_box.local_fd, "background_db_box": on_box.background_db,
            **_border(painted.pixels, background, boxes, found),
            "equal": _all_equal(on_outline, on_box), "ms": 1000 * seconds / (2 * len(cases)),
        })
    return rows


def compare_on_photos(
    painter: Inpainter, load: Load, ways: Sequence[Way], requests: Sequence[Request], batch: int = 16
) -> list[dict[str, Any]]:
    """A row for each way on photos: seam and colour shift outside of what the mask head calls the object, or where
    there is no head, of what the last head before it did."""
    rows: list[dict[str, Any]] = []
    found: Tensor | None = None
    untouched, masks = (torch.stack([getattr(r, name) for r in requests]) for name in ("image", "mask"))
    for way in ways:
        paint = way.painter(painter, load).paint
        began = time.perf_counter()
        results = _painted(paint, requests, batch, way.name)
        seconds = time.perf_counter() - began
        if all(result.predicted is not None for result in results):
            found = torch.stack([result.predicted for result in results if result.predicted is not None]) > 0.5
        if found is None:
            raise ValueError(f"way '{way.name}': no mask head says where the object is; put a model that has one first")
        pixels = torch.stack([result.pixels for result in results])
        rows.append({
            "way": way.name, **_border(pixels, untouched, masks, found),
            "equal": bool(((pixels == untouched) | (masks > 0)).all()), "ms": 1000 * seconds / len(requests),
        })
    return rows


def measure_removal(
    painter: Inpainter, cases: Sequence[ShapesCase], oracle: Oracle, reconstruct: Callable[[Tensor], Tensor],
    level: int, batch: int = 64,
) -> dict[str, float]:
    """Every scene's target erased, under its mask at a level, grown by the anti-aliased edge.

    none: share of places where the oracle sees no object. background_db: against the true background in the mask;
    vae_db: of the VAE's reconstruction of that background in the same mask. ground_db: of the ground without objects,
    the most that can be had by who knows the pattern, and nothing of the neighbours behind the mask.
    """
    background = torch.stack([case.background for case in cases])
    edge = torch.stack([(case.image != case.background).any(0, keepdim=True) for case in cases]).to(torch.uint8)
    masks = masks_at(cases, painter.ladder, level) | edge
    requests = [
        Request(case.image, mask, "", float(level), case.seed, task="remove")
        for case, mask in zip(cases, masks, strict=True)
    ]
    pixels = torch.stack([result.pixels for result in _painted(painter.paint, requests, batch, "remove")])
    read = oracle.read(pixels, masks)

    def db(pictures: Tensor) -> float:
        squared = (pictures.float() - background.float()).square() * masks
        return decibel(float(squared.double().sum()), 3 * float(masks.sum()))

    return {
        "none": read.shape.count("none") / len(cases), "background_db": db(pixels),
        "vae_db": db(reconstruct(background)), "ground_db": db(torch.stack([case.ground for case in cases])),
        "object_db": db(torch.stack([case.image for case in cases])),
    }


def photo_requests(shards: str, painter: Inpainter, count: int, seed: int = 0) -> list[Request]:
    """Objects of photos in shards, each to be replaced inside its box by another of its label."""
    box = painter.ladder.num_levels
    task = ObjectTask(TaskContext([0.0] * box + [1.0]), label_share=1.0)
    samples = Samples([ShardStore([shards])], [1.0], [task], [1.0], Look(painter.native_px or 512, Crop(), 0.0), seed)
    requests = []
    for number in range(count):
        sample = samples.sample(number)
        assert sample.image is not None
        outline = torch.from_numpy(sample.outline)[None, None]
        mask = painter.ladder(outline, torch.tensor([box]))[0]
        image = torch.from_numpy(sample.image).permute(2, 0, 1).contiguous()
        requests.append(Request(image, mask, sample.text, float(box), seed * 1_000_003 + number))
    return requests


def _squares(boxes: Tensor, side: int) -> Tensor:
    """Squares about the middles of boxes (B, 1, H, W)."""
    squares = torch.zeros_like(boxes)
    for square, (x, y, _) in zip(squares, boxes_of(boxes).int().tolist(), strict=True):
        top, left = max(y - side // 2, 0), max(x - side // 2, 0)
        square[:, top: y - side // 2 + side, left: x - side // 2 + side] = 1
    return squares


def _painted(paint: Paint, requests: Sequence[Request], batch: int, stage: str) -> list[Result]:
    results: list[Result] = []
    for start in tqdm(range(0, len(requests), batch), desc=stage, unit="batch", mininterval=1):
        results += paint(requests[start: start + batch])
    return results


def _placed(paint: Paint, side: int | None) -> Paint:
    """``paint`` for scenes that are pasted into pictures of that side, somewhere each, and cut out again."""
    if side is None:
        return paint
    if not isinstance(side, int) or side < LEAST_LARGE:
        raise ValueError(f"large={side}: give the side of a picture in px, {LEAST_LARGE} or more")

    def placed(requests: Sequence[Request], **options: Any) -> list[Result]:
        wide, corners = [], []
        for request in requests:
            height, width = request.image.shape[1:]
            place = torch.rand(2, generator=torch.Generator().manual_seed(request.seed))
            y, x = (int(share * (side - length)) for share, length in zip(place.tolist(), (height, width), strict=True))
            around = draw_scene(scene_seed("oracle", 1, request.seed), side).image
            image = torch.from_numpy(around).permute(2, 0, 1).contiguous()
            mask = torch.zeros(1, side, side, dtype=torch.uint8)
            image[:, y: y + height, x: x + width] = request.image
            mask[:, y: y + height, x: x + width] = request.mask
            wide.append(Request(image, mask, request.text, request.level, request.seed, request.negative, request.task))
            corners.append((y, x, height, width))
        results = paint(wide, **options)
        for result, request, (y, x, height, width) in zip(results, wide, corners, strict=True):
            if not torch.equal(result.pixels * (1 - request.mask), request.image * (1 - request.mask)):
                raise ValueError(f"seed {request.seed}: pixels outside the mask changed in the large picture")
            for name in ("pixels", "decoded", "predicted"):
                whole = getattr(result, name)
                kept = None if whole is None else whole[:, y: y + height, x: x + width].clone()
                setattr(result, name, kept)
        return results

    return placed


def _border(pixels: Tensor, untouched: Tensor, masks: Tensor, found: Tensor) -> dict[str, float]:
    shift = colour_shift(pixels, untouched, masks, found)
    return {"seam_box": seams(pixels, untouched, masks, found).score(), "shift_box": float(shift.nanmean())}


def _loss_limit(first: Tensor, values: Tensor) -> float:
    gap = first.double() - values.double()
    return float(gap.mean()) + DEVIATIONS * float(gap.std()) / math.sqrt(len(gap))


def _all_equal(*scores: Scores) -> bool:
    return all(bool(found.outside.all()) for found in scores)
