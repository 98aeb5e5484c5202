"""Stored bytes to arrays. Only the named members are read, nothing is unpickled, every failure has a reason.

Legend: H W the stored image's pixels.
"""

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sb.data.ledger import Broken
from sb.data.schema import SCHEMA_VERSION

Pixels = NDArray[np.uint8]
BAD_PICTURE = (  # what Pillow raises for bytes that it cannot make a picture of
    OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError,
)


def read_record(body: bytes, max_pixels: int) -> dict[str, Any]:
    """The json member; Broken where it is no json, lacks a key, is of another schema or declares an absurd size."""
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        raise Broken("bad_json") from None
    if not isinstance(record, dict):
        raise Broken("bad_json")
    if any(key not in record for key in ("width", "height", "instances")):
        raise Broken("missing_key")
    if record.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION or not isinstance(record["instances"], list):
        raise Broken("bad_schema")
    width, height = record["width"], record["height"]
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise Broken("absurd_size")
    if width * height > max_pixels:
        raise Broken("absurd_size")
    return record


def decode_image(body: bytes, width: int, height: int, enough: tuple[int, int] | None = None) -> Image.Image:
    """An RGB picture; Broken where it cannot be read in full or its header disagrees with the json's size.

    enough: a (width, height) that suffices; a JPEG is then decoded at 1/2, 1/4 or 1/8 where that is still as large.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(body))
        if image.size != (width, height):
            raise Broken("absurd_size")
        if enough is not None and image.format == "JPEG":
            image.draft("RGB", enough)
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except Broken:
        raise
    except Image.DecompressionBombError:
        raise Broken("absurd_size") from None
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... for bad bytes
        raise Broken("bad_image") from None


def decode_mask(rle: Any, width: int, height: int) -> Pixels:
    """A compressed COCO RLE as (H, W) uint8, 1 = object; Broken unless its runs fill the image exactly.

    pycocotools returns whatever was in memory for an RLE that was cut short, hence the check of the runs.
    """
    if not isinstance(rle, Mapping) or list(rle.get("size") or ()) != [height, width]:
        raise Broken("bad_mask")
    runs = run_lengths(rle.get("counts"))
    if runs.min(initial=0) < 0 or int(runs.sum()) != width * height:
        raise Broken("bad_mask")
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return np.repeat(values, runs).reshape(width, height).T


def run_lengths(counts: Any) -> NDArray[np.int64]:
    """The run lengths, zeros first, of COCO's compressed RLE string; Broken where it is not one.

    Each character holds five bits and a flag that more follow; from the fourth run on, a number is the difference
    to the run before last.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except (AttributeError, UnicodeEncodeError):
        raise Broken("bad_mask") from None
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise Broken("bad_mask")
    last = np.flatnonzero(codes < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 8:
        raise Broken("bad_mask")
    shift = 5 * (np.arange(len(codes)) - np.repeat(first, length))
    values = np.add.reduceat((codes & 31) << shift, first)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * length), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
