"""Pictures and masks from files, PIL images or arrays to tensors, and back to files.

A picture is read as a person sees it: turned upright by its EXIF orientation, as 8-bit RGB. Of 16 bits a channel the
high 8 count, floats go from 0 to 1, CMYK is plain ink (a profile of it is not followed; JPEGs store it inverted), and
what is transparent, in a channel or as a colour or palette entry, becomes the result's alpha.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sb.config import write_whole
from sb.types import Request, Result


BITS = "bits"  # where a picture's info keeps how many of them the file had for each channel


def image_tensor(picture: Any) -> Tensor:
    """A path, PIL image or (H, W, 3) uint8 array -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(_seen(picture).convert("RGB"))).permute(2, 0, 1).contiguous()


def mask_tensor(picture: Any) -> Tensor:
    """A path, PIL image or (H, W) array -> (1, H, W) uint8, 1 = generate: brighter than half, or, in a picture with
    transparent places, more opaque than half.

    Where nothing is above 1, as in masks saved as labels and in boolean arrays, 1 itself is the mask; numbers with a
    fraction go from 0 to 1.
    """
    if isinstance(picture, np.ndarray) and picture.ndim == 2 and (
        picture.dtype.kind in "fb" or picture.dtype == np.uint16 or picture.max(initial=0) <= 1
    ):
        values = picture
    else:
        image = _upright(picture)
        if image.mode == "F" or image.mode.startswith("I"):
            values = np.asarray(image)
        else:
            image = _seen(image)
            drawn = image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255  # type: ignore[operator]
            values = np.asarray(image.getchannel("A") if drawn else image.convert("L"))
    return torch.from_numpy(_marked(values).astype(np.uint8))[None]


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
        with open(path, "rb") as file:  # not by name: Pillow would map it, and scramble a TIFF that is to be turned
            image = Image.open(file)
            note_bits(image)
            image.load()
        return image
    except FileNotFoundError:
        raise ValueError(f"no image at {path}") from None
    except Exception as error:  # decoders raise whatever they like on broken files
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def note_bits(image: Image.Image) -> None:
    """Keep how many bits a channel has in the file of a picture that is not yet decoded."""
    if any(";16" in str(part[3]) for part in getattr(image, "tile", ())):
        image.info[BITS] = 16  # Pillow keeps the high byte of several channels and says no more of it


def loss_of(source: Image.Image) -> str | None:
    """What an 8-bit RGB picture cannot hold of a source's own pixels, or None where it holds them all."""
    frames = getattr(source, "n_frames", 1)
    if frames > 1:
        return f"the first of {frames} frames is all that is read"
    if source.mode == "F":
        return "numbers with a fraction become 8 bits a channel"
    if source.mode.startswith("I") or source.info.get(BITS) == 16:
        return "16 bits a channel become 8, the high ones"
    if source.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        return f"{source.mode} becomes RGB{', without its colour profile' if source.info.get('icc_profile') else ''}"
    return None


def _upright(picture: Any) -> Image.Image:
    if isinstance(picture, (str, Path)):
        picture = open_image(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise ValueError(f"a picture array must be (H, W, 3) uint8, not {picture.shape} {picture.dtype}")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"a picture is a path, a PIL image or a uint8 array, not {type(picture).__name__}")
    return ImageOps.exif_transpose(picture)


def _seen(picture: Any) -> Image.Image:
    """As a person sees it: upright, 8 bits a channel, RGB, or RGBA where something may be transparent."""
    image = _upright(picture)
    if image.mode == "F" or image.mode.startswith("I"):
        values, clear = np.asarray(image), image.info.get("transparency")
        full = _full(values)
        levels = np.rint(values * 255) if full == 1 else values.astype(np.uint32) >> 8
        image = Image.fromarray(levels.astype(np.uint8))
        if clear is not None:  # the value that stands for a transparent pixel
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    try:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    except ValueError:
        raise ValueError(f"a picture of mode {image.mode} cannot be read as RGB: save it as RGB") from None


def _full(values: np.ndarray) -> int:
    """What white is: 1 in numbers with a fraction, 255 in uint8, 65535 in longer integers; ValueError beyond it."""
    full = 1 if values.dtype.kind in "fb" else 255 if values.dtype == np.uint8 else 65535
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= full):  # not a number is neither
        kind = f"{full * 1.0:g}" if full == 1 else full
        raise ValueError(f"a picture of {values.dtype} holds values from 0 to {kind}, this one {low:g} to {high:g}")
    return full


def _marked(values: np.ndarray) -> np.ndarray:
    """Which of a mask's values (H, W) mean: paint here."""
    full = _full(values)
    labels = values.dtype.kind != "f" and values.max(initial=0) <= 1
    return values > (0 if labels else full / 2)


def parse_box(text: str) -> tuple[int, int, int, int]:
    """``x,y,w,h`` as four integers; ValueError otherwise."""
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"box '{text}' must read x,y,w,h in whole pixels, for example 10,12,30,30") from None
    return x, y, w, h


def like_source(image: Image.Image, source: Image.Image) -> Image.Image:
    """The painted RGB picture with the source's alpha channel, and its colour profile where that describes RGB."""
    seen = _seen(source)
    if seen.mode == "RGBA":
        image = image.copy()
        image.putalpha(seen.getchannel("A"))
    if source.mode in ("RGB", "RGBA", "P") and source.info.get("icc_profile"):
        image.info["icc_profile"] = source.info["icc_profile"]
    return image


def side_by_side(
    request: Request, results: Sequence[Result], side_px: int | None = None, gap_px: int = 4
) -> Image.Image:
    """Input, input with the mask tinted, predicted mask (of a single result) and results in a row, on white; each made
    as small as ``side_px``."""
    tint = torch.tensor([255.0, 64.0, 64.0]).view(3, 1, 1)
    shown = request.image + 0.5 * request.mask * (tint - request.image)
    panels = [request.image, shown.round().to(torch.uint8)]
    if len(results) == 1 and results[0].predicted is not None:
        panels.append((results[0].predicted * 255).round().to(torch.uint8).expand(3, -1, -1))
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in (*panels, *(r.pixels for r in results))]
    if side_px is not None:
        for picture in pictures:
            picture.thumbnail((side_px, side_px))
    width, height = pictures[0].size
    row = Image.new("RGB", ((width + gap_px) * len(pictures) - gap_px, height), "white")
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * (width + gap_px), 0))
    return row


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
