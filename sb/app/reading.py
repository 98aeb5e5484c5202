"""What a request's bytes say: pictures within the limits, masks, and the fields beside them.

A file is never named by its sender, and nothing is decoded before its size is known.
"""

import base64
import binascii
import io
import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from sb import pictures
from sb.app.limits import Limits
from sb.masks import level_of
from sb.types import Request

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
# sizes are checked here, and a decoder's other warnings are the sender's: none is logged, or remembered by its text
warnings.filterwarnings("ignore", module=r"PIL\.")


class Refused(ValueError):
    """A request that is not answered with a picture: an HTTP status, one line, and when to ask again in seconds."""

    def __init__(self, status: int, line: str, retry_after: int | None = None):
        super().__init__(line)
        self.status, self.retry_after = status, retry_after


class Fields(BaseModel):
    """What is asked for beside the picture and the mask."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field("", description="the object to paint; may be left out")
    precision: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | Literal["outline", "box"] = Field(
        "outline", description="1 or outline: as drawn; 0 or box: anywhere in it"
    )
    box: str | None = Field(
        None, pattern=r"^\d{1,6},\d{1,6},\d{1,6},\d{1,6}$", description="x,y,w,h in whole pixels, instead of a mask"
    )
    seed: int = Field(0, ge=0, lt=2**62)
    negative: str = ""
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    task: str = Field("", description="one of the model's tasks; its first one if it is left out")
    model: str | None = Field(None, description="an id of GET /v1/models; the first one if it is left out")
    variations: int = Field(1, ge=1, description="pictures with the seeds seed, seed + 1, ...")
    format: Literal["png", "jpeg"] | None = Field(None, description="png if it is left out; jpeg is lossy")


def read_fields(values: Mapping[str, Any], typed: bool, limits: Limits) -> Fields:
    """The checked fields, from texts or, ``typed``, from JSON; Refused with 422 and one line that names the first that
    is wrong."""
    try:
        fields = Fields.model_validate(dict(values), strict=typed)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = printable(".".join(str(part) for part in first["loc"][:1]))
        raise Refused(422, f"{name}: {first['msg']}") from None
    for name, most in (("steps", limits.steps), ("variations", min(limits.variations, limits.batch))):
        if (getattr(fields, name) or 1) > most:
            raise Refused(422, f"{name}: at most {most} here")
    for name in ("text", "negative"):
        if len(getattr(fields, name)) > limits.max_text:
            raise Refused(422, f"{name}: at most {limits.max_text} characters here, not {len(getattr(fields, name))}")
    return fields


def printable(name: str) -> str:
    """A field's name as it can stand in a line; what is no name is not repeated."""
    return name if re.fullmatch(r"[A-Za-z]\w{0,39}", name, re.ASCII) else "a field"


def decoded(value: Any, name: str) -> bytes:
    """Base64, with or without a data URL in front of it."""
    if not isinstance(value, str):
        raise Refused(422, f"{name}: a base64 string is needed")
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{name}: this is not base64") from None


def open_picture(content: bytes, name: str, limits: Limits) -> Image.Image:
    """A decoded picture, upright; Refused where it is none, or too large to be looked at."""
    most = f"at most {limits.max_pixels:,} pixels and {limits.max_side:,} on a side"
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = picture.size
        if max(width, height) > limits.max_side or width * height > limits.max_pixels:
            raise Refused(413, f"{name}: {width} x {height} px is too large; {most}")
        pictures.note_bits(picture)
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
    except Image.DecompressionBombError:
        raise Refused(413, f"{name}: this picture is too large; {most}") from None
    except UnidentifiedImageError:
        raise Refused(415, f"{name}: this is no picture that is known here; send {', '.join(FORMATS)}") from None
    except Refused:
        raise
    except Exception:  # decoders raise whatever they like on broken files
        raise Refused(422, f"{name}: this picture is broken and cannot be read") from None
    return picture


def read_requests(
    image: bytes | None, mask: bytes | None, fields: Fields, num_levels: int, limits: Limits
) -> tuple[list[Request], Image.Image]:
    """One request for each variation, and the decoded picture; Refused where they do not fit."""
    if not image:
        raise Refused(422, "image: a picture is needed")
    if bool(mask) == bool(fields.box):
        raise Refused(422, "mask or box: exactly one of them is needed")
    source = open_picture(image, "image", limits)
    try:
        pixels = pictures.image_tensor(source)
        drawn = _mask(mask, fields, pixels, limits)
        level = level_of(fields.precision, num_levels)
        requests = [
            Request(pixels, drawn, fields.text, level, fields.seed + n, fields.negative, fields.task)
            for n in range(fields.variations)
        ]
        return [request.check(num_levels) for request in requests], source
    except Refused:
        raise
    except ValueError as error:
        raise Refused(422, " ".join(str(error).split())) from None


def _mask(mask: bytes | None, fields: Fields, pixels: Tensor, limits: Limits) -> Tensor:
    if mask:
        return pictures.mask_tensor(open_picture(mask, "mask", limits))
    return pictures.box_mask(pictures.parse_box(fields.box or ""), *pixels.shape[1:])
