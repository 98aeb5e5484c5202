"""A contact sheet of a shard set: pictures with their objects tinted, outlined and named, on one page to look at."""

import colorsys
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pycocotools import mask as coco_mask

from sb.config import write_whole
from sb.data.index import index_tar, open_address
from sb.data.schema import IMAGE_EXTENSIONS
from sb.data.shards import list_shards
from sb.data.verify import read_members

CELL_PX, CAPTION_PX, GAP_PX = 300, 46, 14
_PAPER, _INK, _QUIET = (250, 250, 248), (32, 34, 38), (120, 124, 130)
_TINT, _NUM_NAMED, _MIN_NAMED = 0.42, 6, 0.004
_GOLDEN = 0.61803


def contact_sheet(where: str, out: str | Path, num: int = 24, columns: int = 6) -> int:
    """Write a PNG of ``num`` samples spread evenly over a shard set; returns how many it shows.

    Broken samples are left out: ``check_shards`` names them.
    """
    if num < 1:
        raise ValueError(f"a sheet needs at least one picture, not {num}")
    places = [(s.address, sample) for s in list_shards(where).shards for sample in index_tar(s.address)["samples"]]
    chosen = [places[int((i + 0.5) * len(places) / num)] for i in range(num)] if len(places) > num else places
    cells = []
    for address, sample in chosen:
        with open_address(address) as file:
            try:
                cells.append(_cell(sample["key"], read_members(file, sample["members"])))
            except Exception:  # a broken sample can raise anything; the report has named it
                continue
    if not cells:
        raise ValueError(f"{where} holds no sample that can be drawn")
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    step = (CELL_PX + GAP_PX, CELL_PX + CAPTION_PX + GAP_PX)
    page = Image.new("RGB", (columns * step[0] + GAP_PX, rows * step[1] + GAP_PX), _PAPER)
    for place, cell in enumerate(cells):
        page.paste(cell, (GAP_PX + place % columns * step[0], GAP_PX + place // columns * step[1]))
    file = io.BytesIO()
    page.save(file, format="PNG")
    write_whole(out, file.getvalue())
    return len(cells)


def _cell(key: str, members: Mapping[str, bytes]) -> Image.Image:
    """One picture with its objects, centred in a square, its key and caption below."""
    body = json.loads(members["json"])
    with Image.open(io.BytesIO(members[next(e for e in IMAGE_EXTENSIONS if e in members)])) as picture:
        image = picture.convert("RGB")
    scale = CELL_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    things = sorted(body["instances"], key=lambda thing: -thing["area"])
    for number, thing in enumerate(things):
        image = _tint(image, _mask(thing["mask"], size), _colour(number), thing["crowd"])
    draw = ImageDraw.Draw(image)
    named = [(i, t) for i, t in enumerate(things) if t["area"] >= _MIN_NAMED * body["width"] * body["height"]]
    taken: list[tuple[float, float, float, float]] = []
    for number, thing in named[:_NUM_NAMED]:
        label = thing["label"] + (" (crowd)" if thing["crowd"] else "")
        _chip(draw, [side * scale for side in thing["box"]], label, _colour(number), size, taken)
    cell = Image.new("RGB", (CELL_PX, CELL_PX + CAPTION_PX), _PAPER)
    cell.paste(image, ((CELL_PX - size[0]) // 2, CELL_PX - size[1]))
    words = ImageDraw.Draw(cell)
    title = f"{key}   {len(things)} object{'s' * (len(things) != 1)}"
    words.text((0, CELL_PX + 6), _fit(title, _font(11), CELL_PX), _QUIET, _font(11))
    words.text((0, CELL_PX + 22), _fit(body["caption"] or "no caption", _font(13), CELL_PX),
               _INK if body["caption"] else _QUIET, _font(13))
    return cell


def _mask(rle: Mapping[str, Any], size: tuple[int, int]) -> Image.Image:
    """A mask at the shown size (width, height), 0 to 255."""
    pixels = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}) * 255
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def _tint(image: Image.Image, mask: Image.Image, colour: tuple[int, int, int], crowd: bool) -> Image.Image:
    """The image with the mask in a colour and a line along its edge; crowds are hatched."""
    weight = np.asarray(mask, dtype=np.float32)[..., None] / np.float32(255)  # (H, W, 1)
    inside: NDArray[np.bool_] = np.asarray(mask) > 127
    grown = np.asarray(Image.fromarray(inside).convert("L").filter(ImageFilter.MaxFilter(3))) > 127
    if crowd:
        hatching = (np.indices(inside.shape).sum(axis=0) // 4) % 2
        weight = weight * hatching[..., None].astype(np.float32)
    before = np.asarray(image, dtype=np.float32)
    pixels = before + (np.asarray(colour, dtype=np.float32) - before) * _TINT * weight
    pixels[grown & ~inside] = colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _chip(
    draw: ImageDraw.ImageDraw, box: Sequence[float], label: str, colour: tuple[int, int, int], size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """The label on a dark chip in the middle of its object, moved down past chips that are there already."""
    left, top, right, bottom = draw.textbbox((0, 0), label, font=_font(12))
    width, height = right - left + 16, bottom - top + 8
    x = min(max(0.0, box[0] + box[2] / 2 - width / 2), max(0.0, size[0] - width))
    y = min(max(0.0, box[1] + box[3] / 2 - height / 2), max(0.0, size[1] - height))
    for _ in range(_NUM_NAMED):
        hit = [t for t in taken if x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height]
        if not hit:
            break
        y = max(t[3] for t in hit) + 1
    if y + height > size[1]:
        return
    taken.append((x, y, x + width, y + height))
    draw.rounded_rectangle((x, y, x + width, y + height), 4, fill=(24, 26, 30))
    draw.rectangle((x + 4, y + 4, x + 7, y + height - 4), fill=colour)
    draw.text((x + 11 - left, y + 4 - top), label, (255, 255, 255), _font(12))


def _colour(number: int) -> tuple[int, int, int]:
    """Colours far apart for consecutive numbers."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * _GOLDEN) % 1, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: Any, width: int) -> str:
    """The text, cut to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
