"""Evaluate a model on the shapes world: paint unseen scenes under every kind of mask, measure, report.

Three runs paint each scene: outline masks, box masks, and box masks without the predicted mask (same seeds). Then the
first scenes are painted in one fixed mask that is declared at several levels.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sb.card import fill_card
from sb.config import write_whole
from sb.denoising import PaintOptions
from sb.evaluate.compare import PER_REQUEST
from sb.evaluate.oracle import Oracle, train_oracle, vae_round_trip
from sb.evaluate.quantity import finite
from sb.evaluate.report import Sheet, contact_sheet, write_report
from sb.evaluate.requests import Paint, ShapesCase, make_cases, masks_at, paint_cases
from sb.evaluate.shapes_metrics import Painted, Scores, object_of, score
from sb.inpaint import Inpainter
from sb.masks import Ladder
from sb.models.weights import digest
from sb.pictures import save_png
from sb.registry import call
from sb.types import Result

CONTROL_LEVEL = 2  # the rung that is drawn for the precision control
CONTROL_DECLARED = (0, 1, 2, 3)
POOLED = ("background_mse", "occupancy_declared")  # per request only: the metrics hold these in another form
SHARES = ("text_", "shape_", "colour_", "texture_", "all_three_", "no_object_")  # metrics of yes and no begin so
Control = dict[str, tuple[Tensor, Tensor]]  # declared level -> occupancy (B,), all pixels outside equal (B,)


def evaluate_shapes(
    paint: Paint,
    ladder: Ladder,
    oracle: Oracle,
    num_requests: int = 256,
    batch: int = 64,
    seed: int = 0,
    out_dir: str | Path | None = None,
    size_px: int = 64,
    images_seen: int | None = None,
    seconds: Mapping[str, float] | None = None,
    sheet_rows: int = 8,
    inpaint: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metrics as a dict; with ``out_dir`` also ``metrics.json``, ``per_request.json``, ``report.md`` and
    ``contact_sheet.png`` there, ``metrics.json`` last.

    paint: requests in, results out; it must accept ``use_predicted=False``. seconds: earlier stages to list with ours.
    inpaint: what ``paint`` paints with, to be told in the results.
    """
    clock = _Clock(seconds or {})
    cases = make_cases(num_requests, seed, size_px)
    box_level = ladder.num_levels
    outlines, boxes = masks_at(cases, ladder, 0), masks_at(cases, ladder, box_level)
    outline_results = paint_cases(paint, cases, outlines, 0, batch, "outline masks")
    clock.lap("paint_outline")
    box_results = paint_cases(paint, cases, boxes, box_level, batch, "box masks")
    clock.lap("paint_box")
    without = paint_cases(paint, cases, boxes, box_level, batch, "box masks, no predicted mask", use_predicted=False)
    clock.lap("paint_box_without")
    control = _control(paint, cases, ladder, batch)
    clock.lap("paint_control")
    on_outline = score(cases, painted_of(outline_results, outlines), oracle)
    on_box = score(cases, painted_of(box_results, boxes), oracle)
    off = score(cases, painted_of(without, boxes), oracle)
    equal = on_outline.outside & on_box.outside & off.outside
    for _, kept in control.values():
        equal[: len(kept)] &= kept
    each = _each(on_outline, on_box, off, control)
    clock.lap("measure")
    metrics: dict[str, Any] = {
        **{name: _mean(values) for name, values in each.items() if not name.startswith(POOLED)},
        "mask_iou": None if on_box.mask_iou is None else finite(_mean(on_box.mask_iou)),
        "background_db_box": round(on_box.background_db, 2),
        "background_db_box_without": round(off.background_db, 2),
        "local_fd_outline": round(on_outline.local_fd, 3),
        "local_fd": round(on_box.local_fd, 3),
        "outside_equal": f"{int(equal.sum())} of {num_requests}",
        "outside_equal_count": int(equal.sum()),
        "occupancy": {level: _mean(occupancy) for level, (occupancy, _) in control.items()},
        "oracle_accuracy": oracle.accuracy.get("real"),
        "oracle": oracle.accuracy,
        "images_seen": images_seen,
        "inpaint": dict(inpaint or {}),
        "num_requests": num_requests,
        "seed": seed,
        "size_px": size_px,
    }
    if out_dir is not None:
        sheet = _sheet(paint, cases[:sheet_rows], ladder, outline_results, box_results)
        _write_example(Path(out_dir) / "examples", cases[0], boxes[0])
        clock.lap("sheet")
        metrics["seconds"] = clock.seconds
        _write(Path(out_dir), metrics, sheet, {
            "size_px": size_px, "oracle": digest(oracle.state_dict()),
            "seeds": [case.seed for case in cases], "texts": [case.text for case in cases],
            "shares": [name for name in each if name.startswith(SHARES)],
            "metrics": {name: [finite(value) for value in values.tolist()] for name, values in each.items()},
        })
    metrics["seconds"] = clock.seconds
    return metrics


def evaluate_model(
    model: str | Path, out_dir: str | Path, num_requests: int = 256, batch: int = 64, seed: int = 0,
    size_px: int | None = None, device: str = "auto", oracle_file: str | Path | None = None,
    seconds: Mapping[str, float] | None = None, options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """``evaluate_shapes`` of a stored model, with an oracle read from a file or trained on this model's VAE.

    A trained oracle is kept as ``oracle.safetensors`` in ``out_dir``. Results in a run's own folder go into its model's
    card. size_px: of the scenes, by default the size that the model was trained at. options: of painting, instead of
    the model's own. ValueError where ``out_dir`` holds results.
    """
    out_dir = Path(out_dir)
    if (out_dir / "metrics.json").exists():
        raise ValueError(f"{out_dir} already holds metrics.json: choose another folder or remove it")
    if num_requests < 2 or batch < 1:
        raise ValueError(f"needs at least 2 requests and 1 per batch, not {num_requests} and {batch}")
    inpainter = Inpainter.load(str(model), device)
    inpainter.options = call("inpaint", PaintOptions, {**vars(inpainter.options), **(options or {})})
    size_px = int(inpainter.about.get("image_size", 64)) if size_px is None else size_px
    clock = _Clock(seconds or {})
    if oracle_file is not None:
        oracle = Oracle.load(oracle_file)
    else:
        oracle = train_oracle(vae_round_trip(inpainter.vae), size_px=size_px)
        oracle.save(out_dir / "oracle.safetensors")
    clock.lap("oracle")
    metrics = evaluate_shapes(
        inpainter.paint, inpainter.ladder, oracle, num_requests, batch, seed, out_dir, size_px,
        inpainter.about.get("images_seen"), clock.seconds, inpaint=vars(inpainter.options),
    )
    fill_card(model, out_dir)
    return metrics


def _each(on_outline: Scores, on_box: Scores, off: Scores, control: Control) -> dict[str, Tensor]:
    """Every metric that has a value per request (B,), by the name it has in the metrics."""
    each = {
        "text_outline": on_outline.text,
        "shape_outline": on_outline.shape,
        "colour_outline": on_outline.colour,
        "texture_outline": on_outline.texture,
        "all_three_outline": on_outline.all_three,
        "iou_outline": on_outline.iou,
        "iou_before_paste": on_outline.iou_decoded,
        "no_object_outline": on_outline.none,
        "text_box": on_box.text,
        "shape_box": on_box.shape,
        "colour_box": on_box.colour,
        "texture_box": on_box.texture,
        "all_three_box": on_box.all_three,
        "no_object_box": on_box.none,
        "occupancy_box": on_box.occupancy,
        "occupancy_box_without": off.occupancy,
        "text_box_without": off.text,
        "background_mse_box": on_box.background_mse,
        "background_mse_box_without": off.background_mse,
        **{f"occupancy_declared_{level}": occupancy for level, (occupancy, _) in control.items()},
    }
    return each if on_box.mask_iou is None else {**each, "mask_iou": on_box.mask_iou}


def _control(paint: Paint, cases: Sequence[ShapesCase], ladder: Ladder, batch: int) -> Control:
    masks = masks_at(cases, ladder, min(CONTROL_LEVEL, ladder.num_levels))
    background = torch.stack([case.background for case in cases])
    control = {}
    for declared in (level for level in CONTROL_DECLARED if level <= ladder.num_levels):
        painted = painted_of(paint_cases(paint, cases, masks, declared, batch, f"declared level {declared}"), masks)
        found = object_of(painted.pixels, background, masks)
        kept = ((painted.pixels == background) | (masks > 0)).flatten(1).all(1)
        control[str(declared)] = (found.sum((1, 2, 3)) / masks.sum((1, 2, 3)), kept)
    return control


def painted_of(results: Sequence[Result], masks: Tensor) -> Painted:
    """Results of one run as stacked tensors, ready to be scored."""
    predicted = [result.predicted for result in results]
    return Painted(
        masks, torch.stack([result.pixels for result in results]), torch.stack([result.decoded for result in results]),
        None if any(p is None for p in predicted) else torch.stack([p for p in predicted if p is not None]),
    )


def _sheet(
    paint: Paint, cases: Sequence[ShapesCase], ladder: Ladder, outline_results: Sequence[Result],
    box_results: Sequence[Result],
) -> Sheet:
    """The first scenes painted at every precision, outline to box."""
    between = range(1, ladder.num_levels)
    masks = [masks_at(cases, ladder, level) for level in range(ladder.num_levels + 1)]
    middle = [paint_cases(paint, cases, masks[level], level, len(cases), f"sheet, level {level}") for level in between]
    results = [outline_results[: len(cases)], *middle, box_results[: len(cases)]]
    return Sheet(list(cases), masks, [list(row) for row in results])


def _write(out_dir: Path, metrics: Mapping[str, Any], sheet: Sheet, per_request: Mapping[str, Any]) -> None:
    save_png(contact_sheet(sheet), out_dir / "contact_sheet.png")
    write_report(out_dir / "report.md", metrics)
    write_whole(out_dir / PER_REQUEST, (json.dumps(per_request) + "\n").encode())
    write_whole(out_dir / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())  # last: all is there


def _write_example(folder: Path, case: ShapesCase, mask: Tensor) -> None:
    """A scene and a mask to try ``tools/inpaint.py`` on."""
    save_png(Image.fromarray(case.background.permute(1, 2, 0).numpy()), folder / "scene.png")
    save_png(Image.fromarray(case.outline[0].numpy() * 255), folder / "outline.png")
    save_png(Image.fromarray(mask[0].numpy() * 255), folder / "box.png")


def _mean(values: Tensor) -> float:
    return round(float(values.float().nanmean()), 4)


class _Clock:
    def __init__(self, seconds: Mapping[str, float]):
        self.seconds = dict(seconds)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 1)
        self._last = now
