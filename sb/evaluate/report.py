"""What a person reads after an evaluation: a table with what each number means, and a labelled contact sheet.

Legend: H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sb.config import write_whole
from sb.evaluate.requests import ShapesCase
from sb.types import Result

PICTURE_PX, THUMB_PX, GAP_PX, LABEL_PX, HEAD_PX = 192, 64, 8, 18, 46
PAPER, INK, FAINT = (250, 250, 250), (25, 25, 25), (110, 110, 110)

# metric -> its name, its ideal, what it means
MEANINGS: dict[str, tuple[str, str, str]] = {
    "text_outline": ("right shape and colour, outline mask", "1", "share of results read as asked"),
    "shape_outline": ("right shape, outline mask", "1", "that word alone; chance is 1/8"),
    "colour_outline": ("right colour, outline mask", "1", "that word alone; chance is 1/8"),
    "iou_outline": (
        "shape IoU, outline mask", "1", "generated object (pixels of saturated colour that differ by more than 20 of "
        "255 from the true background) against the outline",
    ),
    "iou_before_paste": ("shape IoU before the paste", "1", "the same on the decoded picture"),
    "no_object_outline": ("no object, outline mask", "0", "share of requests where nothing recognisable was painted"),
    "texture_outline": ("right texture, outline mask", "1", "look at the sheet too: the oracle forgives blotches"),
    "all_three_outline": ("right shape, colour and texture, outline mask", "1", ""),
    "colour_box": ("right colour, box mask", "1", "chance is 1/8"),
    "shape_box": ("right shape, box mask", "1", "the mask does not give the shape away; chance is 1/8"),
    "text_box": ("right shape and colour, box mask", "1", "chance is 1/64"),
    "texture_box": ("right texture, box mask", "1", "chance is 1/3"),
    "all_three_box": ("right shape, colour and texture, box mask", "1", ""),
    "no_object_box": ("no object, box mask", "0", "as above"),
    "background_db_box": ("background, box mask", "60 dB", "inside the box and off the object, against the true scene"),
    "background_db_box_without": ("background without the predicted mask", "-", "same seeds, predicted mask off"),
    "text_box_without": ("right shape and colour without the predicted mask", "-", "box masks, same seeds"),
    "occupancy_box": ("occupancy, box mask", "0.62", "object over box area; real objects fill 0.62 of their boxes"),
    "occupancy_box_without": ("occupancy without the predicted mask", "-", "box masks, same seeds"),
    "mask_iou": ("predicted mask", "1", "IoU of the mask head's answer with the generated object, box mask"),
    "local_fd_outline": ("local Frechet distance, outline mask", "0", "oracle features of painted and real objects"),
    "local_fd": ("local Frechet distance, box mask", "0", "oracle features of painted against real objects"),
    "outside_equal": ("pixels outside the mask bit-equal", "all", "requests where no pixel outside any mask changed"),
    "oracle_accuracy": ("oracle on real unseen objects", "1", "shape and colour both right; below 0.98 it is refused"),
}


@dataclass
class Sheet:
    """What a contact sheet shows: cases, and for each level the masks (B, 1, H, W) and the results."""

    cases: list[ShapesCase]
    masks: list[Tensor]
    results: list[list[Result]]


def write_report(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write ``report.md``: every metric with its meaning, the precision control, seconds per stage."""
    seen = "an unknown number of" if metrics["images_seen"] is None else f"{metrics['images_seen']:,}"
    lines = [
        "# How well the model paints", "",
        f"{metrics['num_requests']} requests on scenes of the shapes world that were never trained on (seed "
        f"{metrics['seed']}), by a model that has seen {seen} training images.", "",
        "![scenes, masks, texts and results](contact_sheet.png)", "", *metric_rows(metrics),
    ]
    occupancy = metrics["occupancy"]
    lines += [
        "", "## Precision control", "",
        "One mask, the outline at ladder level 2, declared as different "
        "levels. The coarser it is declared, the freer "
        "the object, and the less of the mask it should fill:", "",
        "| declared level | " + " | ".join(occupancy) + " |", "|---" * (len(occupancy) + 1) + "|",
        "| object area / mask area | " + " | ".join(f"{value:.3f}" for value in occupancy.values()) + " |",
        "", "## Time", "", "| stage | seconds |", "|---|---|",
        *(f"| {stage} | {value:g} |" for stage, value in metrics["seconds"].items()), "",
    ]
    write_whole(path, "\n".join(lines).encode())


def metric_rows(metrics: Mapping[str, Any]) -> list[str]:
    """The lines of a Markdown table of every metric, with its ideal and its meaning."""
    rows = ["| metric | value | ideal | meaning |", "|---|---|---|---|"]
    for key, (name, ideal, meaning) in MEANINGS.items():
        rows.append(f"| {name} (`{key}`) | {_shown(metrics.get(key), key)} | {ideal} | {meaning} |")
    return rows


def _shown(value: Any, key: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.1f} dB" if "_db_" in key else f"{value:.3f}"


def contact_sheet(sheet: Sheet) -> Image.Image:
    """One row per request: input, mask, results from outline to box with their masks above, and the predicted mask."""
    levels = len(sheet.masks) - 1
    titles = [("input scene", "the object is missing"), ("asked for", "and where it really is")]
    titles += [(_precision_title(level, levels), "mask (small) and result") for level in range(levels + 1)]
    titles.append(("predicted mask", "of the box result, in white"))
    row_px = LABEL_PX + THUMB_PX + GAP_PX + PICTURE_PX + 2 * GAP_PX
    step = PICTURE_PX + GAP_PX
    paper = Image.new("RGB", (step * len(titles) + GAP_PX, HEAD_PX + row_px * len(sheet.cases)), PAPER)
    draw = ImageDraw.Draw(paper)
    for column, (title, note) in enumerate(titles):
        draw.text((GAP_PX + column * step, 6), title, INK, font(16))
        draw.text((GAP_PX + column * step, 27), note, FAINT, font(12))
    for row, case in enumerate(sheet.cases):
        top = HEAD_PX + row * row_px
        draw.line((0, top - 2, paper.width, top - 2), (215, 215, 215))
        below = top + LABEL_PX + THUMB_PX + GAP_PX
        pictures = [_array(case.background), _array(case.image)]
        for level in range(levels + 1):
            place = (GAP_PX + (level + 2) * step, top + LABEL_PX)
            _paste(paper, _masked(_array(case.background), sheet.masks[level][row]), place, THUMB_PX)
            pictures.append(_array(sheet.results[level][row].pixels))
        last = sheet.results[levels][row]
        if last.predicted is not None:
            pictures.append(_masked(_array(last.pixels), (last.predicted > 0.5)))
        for column, picture in enumerate(pictures):
            _paste(paper, picture, (GAP_PX + column * step, below), PICTURE_PX)
        draw.text((GAP_PX + step, top + LABEL_PX + 20), f'"{case.text}"', INK, font(17))
    return paper


def _precision_title(level: int, levels: int) -> str:
    word = {0: ", outline", levels: ", box"}.get(level, "")
    return f"precision {1 - level / levels:.2g}{word}"


def _paste(paper: Image.Image, picture: np.ndarray, place: tuple[int, int], side: int) -> None:
    paper.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), place)


def _masked(picture: np.ndarray, mask: Tensor) -> np.ndarray:
    """The picture darkened, with a mask (1, H, W) laid over it in white."""
    covered = mask[0].numpy().astype(bool)[..., None]
    return np.where(covered, 0.15 * picture + 0.85 * 255, 0.45 * picture).astype(np.uint8)


def _array(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """What Pillow brings along, in px."""
    return ImageFont.load_default(size=size)
