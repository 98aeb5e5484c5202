"""COCO: instance and caption annotations as a source, and COCO's mask format.

A mask is stored as compressed RLE with its counts as a str, at the size of the stored image, rasterised by
pycocotools itself. Image bytes are copied as they are.

Legend: H W pixels.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from sb.data.decode import decode_mask
from sb.data.ledger import Broken
from sb.data.schema import Instance, Record
from sb.registry import register

Rle = dict[str, Any]
_CARRIED = ("annotation_scope", "source", "file_name")  # fields of an image entry that its origin keeps


def encode_mask(mask: NDArray[Any]) -> Rle:
    """(H, W) array, nonzero = object -> compressed RLE."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))


def rle_of(segmentation: Any, height: int, width: int) -> Rle:
    """A COCO ``segmentation`` (polygons, uncompressed or compressed RLE) as compressed RLE of (height, width).

    Raises ValueError where it is not one of the three or is an RLE of another size.
    """
    if isinstance(segmentation, list):
        if not segmentation or any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            raise ValueError("a polygon needs at least three points")
        return _as_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(f"a segmentation is a list of polygons or an RLE, not {type(segmentation).__name__}")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"an RLE of size {segmentation['size']} on an image of size {[height, width]}")
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    rle = _as_text(segmentation)
    try:
        decode_mask(rle, width, height)
    except Broken:
        raise ValueError(f"the runs of an RLE do not fill an image of {width}x{height} px") from None
    return rle


def instance_of(name: str, label: str, rle: Rle, crowd: bool = False) -> Instance:
    """An instance whose area and box (tight, x y w h) are those of its mask."""
    box = [float(number) for number in coco_mask.toBbox(rle)]
    return Instance(id=name, label=label, box=box, area=int(coco_mask.area(rle)), mask=rle, crowd=crowd)


def _as_text(rle: Mapping[str, Any]) -> Rle:
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return {"size": [int(n) for n in rle["size"]], "counts": text}


class CocoAnnotations:
    """What COCO-style annotation files say of their images, by id: records without the pictures themselves.

    All instances are kept, crowds flagged; an instance whose segmentation cannot be read or covers no pixel is
    left out and named in the record's ``origin["skipped"]``. Annotations are held compressed, image by image, so
    that a copy for every worker process stays small.
    """

    def __init__(self, instances: str, captions: str | None = None, split: str = "train"):
        self.split = split
        body = _read(instances, ("images", "annotations", "categories"))
        told = _read(captions, ("annotations",)) if captions else {"annotations": []}
        self._categories = {entry["id"]: str(entry["name"]) for entry in body["categories"]}
        self._licences = {entry["id"]: entry for entry in body.get("licenses") or ()}
        objects = _by_image(body["annotations"], ("id", "category_id", "segmentation", "iscrowd"))
        words = _by_image(told["annotations"], ("caption",))
        entries = sorted(body["images"], key=lambda image: str(image["id"]).zfill(12))
        self._packed = [
            zlib.compress(json.dumps([e, objects.pop(e["id"], []), words.get(e["id"], [])]).encode(), 1)
            for e in entries
        ]
        self._about = {
            "name": "coco", "split": split, "instances": file_stamp(instances),
            "captions": file_stamp(captions) if captions else None,
            "annotations_without_image": sum(len(lost) for lost in objects.values()),
        }

    def __len__(self) -> int:
        return len(self._packed)

    def record(self, index: int) -> Record:
        """Image ``index`` by id, its ``image`` empty; ``origin["file_name"]`` says where that lies."""
        image, objects, words = json.loads(zlib.decompress(self._packed[index]))
        height, width = int(image["height"]), int(image["width"])
        instances: list[Instance] = []
        skipped: list[list[str]] = []
        for entry in objects:
            label = self._categories.get(entry["category_id"])
            try:
                if label is None:
                    raise ValueError(f"category {entry['category_id']} is not in the file")
                rle = rle_of(entry.get("segmentation"), height, width)
            except (ValueError, TypeError, OverflowError) as error:
                skipped.append(["bad_annotation", f"{entry['id']}: {error}"])
                continue
            thing = instance_of(str(entry["id"]), label, rle, crowd=bool(entry.get("iscrowd")))
            if thing.area:
                instances.append(thing)
            else:
                skipped.append(["empty_mask", str(entry["id"])])
        captions = [text for text in (str(word["caption"]).strip() for word in words) if text]
        return Record(
            key=f"coco-{self.split}-{str(image['id']).zfill(12)}", image=b"",
            extension=Path(image["file_name"]).suffix[1:].lower(), width=width, height=height,
            instances=instances, caption=captions[0] if captions else "", captions=captions,
            origin=self._origin(image, skipped),
        )

    def describe(self) -> dict[str, Any]:
        """Split, the files' names and hashes, and how many annotations name an image that is not listed."""
        return self._about

    def _origin(self, image: Mapping[str, Any], skipped: list[list[str]]) -> dict[str, Any]:
        licence = self._licences.get(image.get("license"), {})
        origin = {
            "dataset": "coco", "image_id": str(image["id"]), "split": self.split,
            "licence": licence.get("name", ""), "licence_id": image.get("license"), "licence_url": licence.get("url"),
            "url": image.get("flickr_url") or image.get("coco_url"),
            **{key: image[key] for key in _CARRIED if key in image},
        }
        return {**origin, "skipped": skipped} if skipped else origin


@register("source", "coco")
class CocoSource:
    """COCO-style data: a folder of images, an instances file and, if there is one, a captions file."""

    def __init__(self, images: str, instances: str, captions: str | None = None, split: str = "train"):
        self.folder = Path(images)
        if not self.folder.is_dir():
            raise ValueError(f"coco: no folder of images {images}")
        self.annotations = CocoAnnotations(instances, captions, split)

    def __len__(self) -> int:
        return len(self.annotations)

    def record(self, index: int) -> Record:
        """Image ``index`` by id; OSError where its file cannot be read."""
        record = self.annotations.record(index)
        record.image = (self.folder / record.origin["file_name"]).read_bytes()
        return record

    def describe(self) -> Mapping[str, Any]:
        """What the annotations say of themselves, and the folder's name."""
        return {**self.annotations.describe(), "images": self.folder.name}


def _read(path: str, sections: tuple[str, ...]) -> dict[str, Any]:
    try:
        body = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"coco: no annotation file {path}") from None
    except ValueError as error:
        raise ValueError(f"coco: {path} is not valid JSON: {error}") from None
    for section in sections:
        if not isinstance(body, dict) or not isinstance(body.get(section), list):
            raise ValueError(f"coco: {path} has no list '{section}'; is it the right annotation file?")
    return body


def _by_image(annotations: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[Any, list[dict[str, Any]]]:
    """Annotations by image id, in the file's order, reduced to the keys that are used."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for entry in annotations:
        found.setdefault(entry["image_id"], []).append({key: entry[key] for key in keys if key in entry})
    return found


def file_stamp(path: str) -> dict[str, str]:
    """A file's name and hash, so that a build notices when it changes."""
    with open(path, "rb") as file:
        return {"file": Path(path).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
