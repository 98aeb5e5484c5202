"""Pictures and masks from files, PIL images or arrays to tensors, and back to files.

A picture is read as a person sees it: turned upright by its EXIF orientation, as 8-bit RGB.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sb.config import write_whole
from sb.types import Request, Result


def image_tensor(picture: Any) -> Tensor:
    """A path, PIL image or (H, W, 3) uint8 array -> (3, H, W) uint8."""
    image = _upright(picture)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: the high byte is the 8-bit picture
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def mask_tensor(picture: Any) -> Tensor:
    """A path, PIL image or (H, W) array -> (1, H, W) uint8, 1 = generate: brighter than half.

    Where nothing is above 1, as in masks saved as labels and in boolean arrays, 1 itself is the mask.
    """
    if isinstance(picture, np.ndarray) and picture.ndim == 2 and picture.max(initial=0) <= 1:
        return torch.from_numpy((picture > 0).astype(np.uint8))[None]
    image = _upright(picture)
    if image.mode == "1" or image.mode == "P":
        image = image.convert("L")
    if image.mode in ("RGBA", "LA") and np.asarray(image.getchannel("A")).min() < 255:
        image = image.getchannel("A")  # a painted layer: what is opaque is the mask
    values = np.asarray(image.convert("L"))
    bright = values > (127 if values.max(initial=0) > 1 else 0)
    return torch.from_numpy(bright.astype(np.uint8))[None]


def box_mask(box: tuple[int, int, int, int], height: int, width: int) -> Tensor:
    """A box x, y, w, h in pixels -> (1, H, W) uint8 mask; ValueError where it leaves the picture."""
    x, y, w, h = box
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise ValueError(f"box {x},{y},{w},{h} does not lie inside the {width}x{height} px image")
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, y: y + h, x: x + w] = 1
    return mask


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    write_whole(path, encoded(image))


def encoded(image: Image.Image, form: str = "png", note: str | None = None) -> bytes:
    """A picture as a ``png`` or ``jpeg`` file's bytes; JPEG loses pixels, and alpha. note: what it says of itself,
    as PNG text or EXIF description."""
    content = io.BytesIO()
    options: dict[str, Any] = {"icc_profile": image.info["icc_profile"]} if image.info.get("icc_profile") else {}
    if form == "png":
        if note:
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_text("Description", note)
        image.save(content, format="PNG", **options)
    else:
        if note:
            options["exif"] = Image.Exif()
            options["exif"][ExifTags.Base.ImageDescription] = note
        image.convert("RGB").save(content, format="JPEG", quality=95, **options)
    return content.getvalue()


def open_image(path: str | Path) -> Image.Image:
    """A decoded picture from a file; ValueError that names it where it cannot be read."""
    try:
        image = Image.open(path)
        image.load()
        return image
    except FileNotFoundError:
        raise ValueError(f"no image at {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def _upright(picture: Any) -> Image.Image:
    if isinstance(picture, (str, Path)):
        picture = open_image(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8:
            raise ValueError(f"a picture array must be uint8, not {picture.dtype}")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"a picture is a path, a PIL image or a uint8 array, not {type(picture).__name__}")
    return ImageOps.exif_transpose(picture)


def parse_box(text: str) -> tuple[int, int, int, int]:
    """``x,y,w,h`` as four integers; ValueError otherwise."""
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"box '{text}' must read x,y,w,h in whole pixels, for example 10,12,30,30") from None
    return x, y, w, h


def like_source(image: Image.Image, source: Image.Image) -> Image.Image:
    """The painted RGB picture with the source's alpha channel, and its colour profile where that describes RGB."""
    upright = ImageOps.exif_transpose(source)
    if "A" in upright.getbands():
        image = image.copy()
        image.putalpha(upright.getchannel("A"))
    if source.mode in ("RGB", "RGBA") and source.info.get("icc_profile"):
        image.info["icc_profile"] = source.info["icc_profile"]
    return image


def side_by_side(request: Request, result: Result, gap_px: int = 4) -> Image.Image:
    """Input, input with the mask tinted, predicted mask and result in a row, on white."""
    tint = torch.tensor([255.0, 64.0, 64.0]).view(3, 1, 1)
    shown = request.image + 0.5 * request.mask * (tint - request.image)
    panels = [request.image, shown.round().to(torch.uint8)]
    if result.predicted is not None:
        panels.append((result.predicted * 255).round().to(torch.uint8).expand(3, -1, -1))
    panels.append(result.pixels)
    gap = torch.full((3, request.image.shape[1], gap_px), 255, dtype=torch.uint8)
    row = torch.cat([part for panel in panels for part in (panel, gap)][:-1], dim=2)
    return Image.fromarray(row.permute(1, 2, 0).numpy())


def numbered(name: str, number: int) -> str:
    """``result.png``, ``result-1.png``, ``result-2.png``, ..."""
    stem, _, extension = name.rpartition(".")
    return f"{stem}-{number}.{extension}" if number else name


def free_number(folder: Path, names: Sequence[str], overwrite: bool) -> int:
    """The first number under which none of the names exists in the folder; 0 to overwrite."""
    number = 0
    while not overwrite and any((folder / numbered(name, number)).exists() for name in names):
        number += 1
    return number
