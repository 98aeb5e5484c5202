"""OpenImages v6: class, box and mask files (CSV) with mask pictures (PNG) as a source.

Files, by the names they are published under:

classes      class-descriptions-boxable.csv            LabelName, DisplayName (with or without a header line)
masks        train-annotations-object-segmentation.csv MaskPath, ImageID, LabelName, BoxID, BoxXMin, BoxXMax, ...
mask_images  the unpacked mask zips                    MaskPath, flat or in folders named by its first character
boxes        oidv6-train-annotations-bbox.csv          IsGroupOf marks a mask as a crowd (optional)
info         train-images-boxable-with-rotation.csv    Subset, OriginalURL, License (optional)

A mask picture is smaller or larger than its image and is brought to the image's size by nearest neighbour.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sb.data.coco import encode_mask, file_stamp, instance_of
from sb.data.decode import BAD_PICTURE
from sb.data.folder import read_mask
from sb.data.schema import Instance, Record
from sb.registry import register

_ASPECT_SLACK = 0.05
_MASK_COLUMNS = ("MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")
_BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
_INFO_COLUMNS = ("ImageID", "Subset", "OriginalURL", "License")


@register("source", "openimages")
class OpenImagesSource:
    """Every image that has a mask, by id. Masks that are missing, empty or of another shape are named and left out."""

    def __init__(
        self, images: str, classes: str, masks: str, mask_images: str, boxes: str | None = None,
        info: str | None = None, split: str = "train",
    ):
        self.folder, self.mask_folder, self.split = Path(images), Path(mask_images), split
        for what, place in (("images", self.folder), ("mask_images", self.mask_folder)):
            if not place.is_dir():
                raise ValueError(f"openimages: no folder {place} ({what})")
        self._names = _class_names(classes)
        rows: dict[str, list[tuple[str, ...]]] = {}
        for path, image, label, box_id, *corners in _rows(masks, _MASK_COLUMNS):
            rows.setdefault(image, []).append((path, label, box_id, *corners))
        if not rows:
            raise ValueError(f"openimages: {masks} names no mask")
        groups = _groups(boxes, rows) if boxes else set()
        self._ids = sorted(rows)
        self._packed = [  # one string per image: few objects to hold and to copy to workers
            "\n".join(
                "\t".join((path, label, box_id, str(int(_place(image, label, corners) in groups))))
                for path, label, box_id, *corners in rows[image]
            )
            for image in self._ids
        ]
        self._info = {r[0]: r[1:] for r in _rows(info, _INFO_COLUMNS) if r[0] in rows} if info else {}
        self._about = {
            "name": "openimages", "split": split, "images": self.folder.name, "mask_images": self.mask_folder.name,
            "classes": file_stamp(classes), "masks": file_stamp(masks),
            "boxes": file_stamp(boxes) if boxes else None, "info": file_stamp(info) if info else None,
        }

    def __len__(self) -> int:
        return len(self._ids)

    def record(self, index: int) -> Record:
        """Image ``index``; OSError where its file cannot be read."""
        image = self._ids[index]
        content = (self.folder / f"{image}.jpg").read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
        instances: list[Instance] = []
        skipped: list[list[str]] = []
        for row in self._packed[index].split("\n"):
            path, label, box_id, group = row.split("\t")
            found = self._instance(path, label, box_id, group == "1", (width, height))
            if isinstance(found, Instance):
                instances.append(found)
            else:
                skipped.append([found, path])
        origin: dict[str, Any] = {"dataset": "openimages", "image_id": image, "split": self.split, "licence": ""}
        if image in self._info:
            subset, url, licence = self._info[image]
            origin |= {"split": subset, "url": url, "licence": licence}
        return Record(
            key=f"openimages-{self.split}-{image}", image=content, extension="jpg", width=width, height=height,
            instances=instances, origin={**origin, "skipped": skipped} if skipped else origin,
        )

    def describe(self) -> Mapping[str, Any]:
        """Split, folders, and the annotation files' names and hashes."""
        return self._about

    def _instance(self, path: str, label: str, box_id: str, group: bool, size: tuple[int, int]) -> Instance | str:
        """The object at the image's size (width, height), or the reason why there is none."""
        if label not in self._names:
            return "unknown_class"
        flat = self.mask_folder / path
        try:
            mask = read_mask(flat if flat.is_file() else self.mask_folder / path[0] / path)
        except FileNotFoundError:
            return "missing_mask"
        except BAD_PICTURE:
            return "unreadable_mask"
        height, width = mask.shape
        if abs(width * size[1] / (height * size[0]) - 1) > _ASPECT_SLACK:
            return "mask_of_another_shape"
        scaled = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        if not scaled.any():
            return "empty_mask"
        return instance_of(box_id, self._names[label], encode_mask(scaled), crowd=group)


def _rows(path: str, columns: tuple[str, ...]) -> Iterator[list[str]]:
    """The named columns of a CSV file, line by line."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            for column in columns:
                if column not in header:
                    raise ValueError(f"openimages: {path} has no column '{column}'; is it the right file?")
            places = [header.index(column) for column in columns]
            for row in reader:
                if row:
                    yield [row[place] for place in places]
    except FileNotFoundError:
        raise ValueError(f"openimages: no file {path}") from None
    except IndexError:
        raise ValueError(f"openimages: {path} line {reader.line_num} has too few columns") from None


def _class_names(path: str) -> dict[str, str]:
    """Class code -> the name people use."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row[0]: row[1] for row in csv.reader(file) if len(row) >= 2}
    except FileNotFoundError:
        raise ValueError(f"openimages: no file {path}") from None


def _groups(path: str, wanted: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """The boxes marked as a group of objects, for images that have masks."""
    return {
        _place(image, label, corners)
        for image, label, *corners, is_group in _rows(path, _BOX_COLUMNS) if is_group == "1" and image in wanted
    }


def _place(image: str, label: str, corners: list[str]) -> tuple[str, ...]:
    """What a mask and its box have in common: the same box is written with four to six digits."""
    return (image, label, *(f"{float(corner):.4f}" for corner in corners))
