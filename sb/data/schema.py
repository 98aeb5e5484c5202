"""The shard schema: what one sample of a shard holds, for every source that writes and every reader.

A sample is two tar members that share a key: ``KEY.jpg`` or ``KEY.png`` (the image as stored) and ``KEY.json``. Where
the picture without its objects is known, a third holds it: ``KEY.truth.png``. Training reads past it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

SCHEMA_VERSION = 1
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TRUTH = "truth.png"  # the extension of the true background


@dataclass
class Instance:
    """One object: id (unique in its image), label, captions of its crop, box x y w h in px, area in px, RLE mask.

    mask: ``{"size": [height, width], "counts": str}``, COCO's compressed RLE, 1 = object, at the stored image's size.
    """

    id: str
    label: str
    box: list[float]
    area: int
    mask: dict[str, Any]
    captions: list[str] = field(default_factory=list)
    crowd: bool = False


@dataclass
class Record:
    """One image with its objects, as a source gives it and a shard holds it.

    key: unique over all sources (``coco-train-000000000250``). caption: the whole image's, empty if there is none;
    captions: all of them. origin: licence, url, split and whatever else the source says of the image. truth:
    where it is known, the picture as it was before its objects were put in, as a PNG of the same size.
    """

    key: str
    image: bytes
    extension: str
    width: int
    height: int
    instances: list[Instance]
    caption: str = ""
    captions: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    truth: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """The json member."""
        body = asdict(self)
        del body["image"], body["truth"]
        return {"schema_version": SCHEMA_VERSION, **body}


class Source(Protocol):
    """A data set that can be written to shards: random access, so that shards can be built in parallel and resumed."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record | None:
        """Image ``index`` in the source's own fixed order; None where a filter leaves it out."""

    def describe(self) -> Mapping[str, Any]:
        """What the manifest says of the source: its name, paths' last parts, versions, filters."""
