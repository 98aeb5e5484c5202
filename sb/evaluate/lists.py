"""Request lists: a file that says, case by case, what a system is asked to paint, so that any system can be asked it.

JSON lines: first a header (what the list is, what it was made from, its rules in words), then one line per case. Masks
are compressed RLE at the size that is painted, so a list and its pictures are all that anyone needs.

Legend: H W pixels of a case, after cropping and resizing.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sb.config import check_keys, write_whole
from sb.data.coco import Rle
from sb.data.decode import decode_mask, run_lengths
from sb.data.folder import slug
from sb.data.ledger import Broken

SCHEMA = 1
_HEADER = {"schema": int, "protocol": str, "size_px": int, "seed": int, "source": dict, "rules": str, "count": int}


@dataclass(frozen=True)
class Case:
    """One request: the picture's key, the object's id, its label, what is asked for, and where.

    level: the precision that the mask is declared as, 0 the outline, num_levels the box. seed: of the noise. crop:
    left, top, width and height in px of the stored picture, whose own width and height ``stored`` says, so that a
    picture of another size is not taken for it. size: H and W after resizing; mask (1 = generate) and outline (the
    object's own, where it is known) are RLE at that size.
    """

    image: str
    instance: str
    label: str
    text: str
    level: float
    num_levels: int
    seed: int
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    mask: Rle
    outline: Rle | None
    stored: tuple[int, int] | None = None

    def name(self) -> str:
        """A name for files, different for each case of a list."""
        return "~".join(slug(part) for part in (self.image, self.instance, f"{self.level:g}"))

    def mask_pixels(self) -> Tensor:
        """(1, H, W) uint8, 1 = generate."""
        return _pixels(self.mask, self.size)

    def outline_pixels(self) -> Tensor | None:
        """(1, H, W) uint8, 1 = object."""
        return None if self.outline is None else _pixels(self.outline, self.size)


@dataclass(frozen=True)
class CaseList:
    """A list as read: its header and its cases, in order."""

    header: dict[str, Any]
    cases: list[Case]

    @property
    def digest(self) -> str:
        """The sha256 of the file that ``write_list`` makes of it, by which results are known to belong together."""
        return hashlib.sha256(_content(self.header, self.cases)).hexdigest()


def write_list(path: str | Path, header: Mapping[str, Any], cases: Sequence[Case]) -> CaseList:
    """Write a list, whole or not at all; schema and count are added to the header.

    Raises ValueError where there is a file already, no case, or two cases are the same object at the same level.
    """
    if Path(path).exists():
        raise ValueError(f"{path} is there already: name another file, lists are never overwritten")
    if not cases:
        raise ValueError(f"{path}: a list needs at least one case")
    _check_unique(str(path), cases)
    made = CaseList({"schema": SCHEMA, **header, "count": len(cases)}, list(cases))
    write_whole(path, _content(made.header, made.cases))
    return made


def read_list(path: str | Path) -> CaseList:
    """The list in a file; ValueError that names file and line where it is not one, or not whole."""
    try:  # json leaves raw what str.splitlines() also takes for the end of a line, U+2028 for one
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise ValueError(f"no request list {path}; tools/make_list.py makes one") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    header = _object(f"{path} line 1", lines[0], _HEADER)
    if header["schema"] != SCHEMA:
        raise ValueError(f"{path} line 1: schema {header['schema']}, this version reads {SCHEMA}")
    cases = [_case(f"{path} line {number}", line) for number, line in enumerate(lines[1:], 2)]
    if len(cases) != header["count"]:
        raise ValueError(f"{path} holds {len(cases)} cases, its header says {header['count']}: is it whole?")
    _check_unique(str(path), cases)
    return CaseList(header, cases)


def _content(header: Mapping[str, Any], cases: Sequence[Case]) -> bytes:
    lines = [header, *(asdict(case) for case in cases)]
    return "".join(json.dumps(line, ensure_ascii=False, separators=(", ", ": ")) + "\n" for line in lines).encode()


def _check_unique(where: str, cases: Sequence[Case]) -> None:
    name, times = Counter(case.name() for case in cases).most_common(1)[0] if cases else ("", 1)
    if times > 1:
        raise ValueError(f"{where} holds {times} cases named {name}: image, instance and level must differ")


def _case(where: str, line: str) -> Case:
    kinds: dict[str, Any] = {
        "image": str, "instance": str, "label": str, "text": str, "level": (int, float), "num_levels": int,
        "seed": int, "crop": list, "size": list, "mask": dict, "outline": (dict, type(None)),
    }
    body = {"stored": None, **_object(where, line, kinds)}
    check_keys(where, body, [field.name for field in fields(Case)])
    for key, length in (("crop", 4), ("size", 2), ("stored", 2)):
        told = body[key]
        if key == "stored" and told is None:
            continue
        whole = isinstance(told, list) and len(told) == length and all(type(number) is int for number in told)
        if not whole or min(told) < 0 or min(told[-2:]) < 1:
            raise ValueError(f"{where}: {key} must be {length} whole numbers, its sides at least 1, not {told}")
        body[key] = tuple(told)
    if not 0 <= body["level"] <= body["num_levels"]:
        raise ValueError(f"{where}: level {body['level']} is outside [0, {body['num_levels']}]")
    for key in ("mask", "outline"):
        if body[key] is not None and not _fills(body[key], body["size"]):
            raise ValueError(f"{where}: {key} is no compressed RLE of size {list(body['size'])}")
    return Case(**{**body, "level": float(body["level"])})


def _object(where: str, line: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object whose keys are there and of these types."""
    try:
        body = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError(f"{where} is no JSON object")
    for key, kind in kinds.items():
        if key not in body or not isinstance(body[key], kind) or isinstance(body[key], bool):
            told = repr(body[key])[:40] if key in body else "missing"
            raise ValueError(f"{where}: '{key}' is {told}; is it a request list of tools/make_list.py?")
    return body


def _fills(rle: Rle, size: tuple[int, int]) -> bool:
    try:
        runs = run_lengths(rle.get("counts"))
    except Broken:
        return False
    return rle.get("size") == list(size) and bool(runs.min() >= 0) and int(runs.sum()) == size[0] * size[1]


def _pixels(rle: Rle, size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.from_numpy(np.ascontiguousarray(decode_mask(rle, width, height)))[None]
