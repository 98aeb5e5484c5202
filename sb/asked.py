"""A request in words and paths, as flags or a line of a file say it, before a picture is opened.

A JSON-lines file holds an object a line, ``{"image": "a.jpg", "mask": "a.png", "text": "a red kite"}``, with the keys
of ``Asked`` and of ``PaintOptions``; its paths are relative to the file.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sb import pictures
from sb.config import check_keys
from sb.denoising import PaintOptions
from sb.inpaint import Inpainter
from sb.masks import level_of
from sb.registry import call
from sb.types import Request

ID = re.compile(r"[^\W_][\w.-]*")
ID_BYTES = 100
REPORT, RESULTS = "report.html", "results.jsonl"  # what lies beside the folders of results
OPTIONS = [field.name for field in fields(PaintOptions)]


@dataclass(frozen=True)
class Asked:
    """What to paint where. text: "" paints by shape alone; it may be left out where a task is named. box: x, y, w, h,
    as text or list, in the place of a mask. variations: results with the seeds seed, seed + 1, ... id: what the results
    are filed under; without one, the picture's name and a digest of all that is asked. ValueError for what cannot be
    meant."""

    image: str
    text: str | None = None
    mask: str | None = None
    box: Sequence[int] | str | None = None
    precision: float | str = "outline"
    seed: int = 0
    negative: str = ""
    task: str = ""
    variations: int = 1
    id: str | None = None

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.box is None):
            raise ValueError("needs a mask or a box, and not both")
        if self.text is None and not self.task:
            raise ValueError("needs a text, if only an empty one")
        level_of(self.precision, 1)
        self.corners()
        if not 1 <= self.variations <= 1000:
            raise ValueError(f"variations must be 1 to 1000, not {self.variations}")
        if not 0 <= self.seed <= 2**63 - self.variations:
            raise ValueError(f"seed {self.seed} is outside 0 ... 2^63 - variations")
        taken = (REPORT, RESULTS)
        if self.id is not None and not (
            ID.fullmatch(self.id) and len(self.id.encode()) <= ID_BYTES and self.id.lower() not in taken
        ):
            raise ValueError(
                f"id '{self.id[:40]}' cannot name a folder: letters, digits, '.', '-', '_', at most {ID_BYTES} bytes"
            )

    def corners(self) -> tuple[int, int, int, int] | None:
        """The box as numbers."""
        if self.box is None:
            return None
        return pictures.parse_box(self.box if isinstance(self.box, str) else ",".join(map(str, self.box)))


@dataclass(frozen=True)
class Order:
    """Something asked, with its painting options as far as they are said, and the folder of its paths."""

    asked: Asked
    options: Mapping[str, Any]
    folder: Path = Path()

    @property
    def id(self) -> str:
        """The id given, or a name that changes with whatever is asked."""
        if self.asked.id is not None:
            return self.asked.id
        content = json.dumps([asdict(self.asked), dict(sorted(self.options.items()))]).encode()
        stem = re.sub(r"[^\w.-]+", "-", Path(self.asked.image).stem).strip("-._")
        stem = stem.encode()[: ID_BYTES - 20].decode(errors="ignore") or "picture"
        return f"{stem}-{hashlib.sha256(content).hexdigest()[:10]}"

    def record(self, painter: Inpainter, model: str) -> dict[str, Any]:
        """All that decides the result, as JSON holds it, and the model's and the precision's names; ValueError where a
        file is missing."""
        said = {**asdict(self.asked), "text": self.asked.text or "", "box": self.asked.corners(), "model": model}
        del said["id"]
        level = level_of(self.asked.precision, painter.ladder.num_levels)
        digests = {
            f"{name}_sha256": self._digest(said[name]) for name in ("image", "mask") if said[name] is not None
        }
        options = {**asdict(painter.options), **self.options}
        with_what = {"weights": painter.fingerprint(), "dtype": str(painter.dtype).removeprefix("torch.")}
        return dict(json.loads(json.dumps({**said, "level": level, **options, **digests, **with_what})))

    def open(self) -> tuple[Image.Image, Tensor, Tensor]:
        """The decoded source, its image tensor and its mask; ValueError for what cannot be read."""
        source = pictures.open_image(self.folder / self.asked.image)
        image, box = pictures.image_tensor(source), self.asked.corners()
        if box:
            return source, image, pictures.box_mask(box, *image.shape[1:])
        return source, image, pictures.mask_tensor(self.folder / str(self.asked.mask))

    def requests(self, image: Tensor, mask: Tensor, painter: Inpainter) -> list[Request]:
        """A checked request for each variation; ValueError for what does not fit the picture or the painter."""
        asked, levels = self.asked, painter.ladder.num_levels
        if asked.task:
            check_keys("task: this model", [asked.task], painter.tasks)
        level = level_of(asked.precision, levels)
        one = Request(image, mask, asked.text or "", level, asked.seed, asked.negative, asked.task).check(levels)
        return [replace(one, seed=asked.seed + number) for number in range(asked.variations)]

    def _digest(self, name: str) -> str:
        try:
            with open(self.folder / name, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise ValueError(f"no image at {self.folder / name}") from None
        except OSError as error:
            raise ValueError(f"{self.folder / name} cannot be read: {error.strerror}") from None


def read_order(values: Any, common: Mapping[str, Any], folder: Path = Path()) -> Order:
    """The order that a mapping of keys says, ``common`` being options where it says none; ValueError for a key that is
    unknown, missing or of another type."""
    if not isinstance(values, Mapping):
        raise ValueError(f"a request is an object of keys, not {json.dumps(values)[:40]}")
    check_keys("a request", values, [*(field.name for field in fields(Asked)), *OPTIONS])
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{key} is too large a number")
    options = {**common, **{key: value for key, value in values.items() if key in OPTIONS}}
    call("a request", PaintOptions, options)
    asked = call("a request", Asked, {key: value for key, value in values.items() if key not in OPTIONS})
    return Order(asked, options, folder)


def read_orders(path: Path, common: Mapping[str, Any]) -> tuple[dict[int, Order], dict[int, str]]:
    """The orders of a JSON-lines file by line, and what is wrong with the lines that hold none; ValueError where there
    is no such file, or nothing in it."""
    if not path.is_file():
        raise ValueError(f"no file of requests at {path}")
    orders: dict[int, Order] = {}
    faults: dict[int, str] = {}
    lines: dict[str, int] = {}  # by id as a file system may see it
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            order = read_order(_parsed(line), common, path.parent)
            first = lines.setdefault(order.id.lower(), number)
            if first != number:
                same = "give each its own id" if order.asked.id else "give one of them an id, or leave it out"
                raise ValueError(f"'{order.id}' is line {first} already: {same}")
            orders[number] = order
        except ValueError as error:
            faults[number] = " ".join(str(error).split())
    if not orders and not faults:
        raise ValueError(f"{path} holds no request: write one JSON object a line")
    return orders, faults


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("this line is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this line is not JSON: {error}") from None
