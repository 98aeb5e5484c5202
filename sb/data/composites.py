"""Composites: cut-outs pasted onto photos, real pixels with an exact outline and the true background behind it.

The cut-outs lie in a folder with ``cutouts.json``, a list with one entry for each::

    {"file": "fruits/train/apple_1.png",   an RGBA picture below the folder; its alpha is the object
     "category": "apple", "coarse": "apple golden", "split": "train", "licence": "CC BY-SA 4.0",
     "source": "coco image 9 ann 1038"}    where it is from; ``DATASET image ID`` names the photo that it was cut from

The photos are shards (of sb.data.coco or any other source): a photo is ``DATASET image ID`` by its record's origin.

Legend: S the side of the square scene in pixels.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sb.data.coco import encode_mask, file_stamp, instance_of
from sb.data.composites_paste import Pixels, draw_place, paste
from sb.data.crop import Crop, crop_image, draw_frame, enough_pixels
from sb.data.decode import decode_image
from sb.data.ledger import Broken
from sb.data.schema import Record
from sb.data.shards import ShardStore
from sb.data.verify import read_samples
from sb.registry import register

FIELDS = ("file", "category", "coarse", "split", "licence", "source")
SHADOW = 0.3, 0.6  # the least and the greatest strength
_PHOTO = Crop(max_zoom=1.6)


class Cutout(NamedTuple):
    """One RGBA picture, what it shows (its label, and more closely its caption), and where it is from."""

    file: str
    label: str
    caption: str
    licence: str
    source: str


class Photo(NamedTuple):
    """One background: where it lies in its shards, ``DATASET image ID``, and what its record says of it."""

    shard: int
    sample: int
    name: str
    width: int
    height: int
    caption: str
    licence: str
    url: str


@register("source", "composites")
class CompositesSource:
    """Scene ``index`` is a function of (seed, index): a class, one of its cut-outs, a photo, a place, a shadow.

    cutouts: the folder above. photos: shards, by any address, all of ``split``: cut-outs and photos of two splits are
    never mixed, and no cut-out comes on the photo that it was cut from. classes: categories or coarse names to paste
    (null: all of them); each is as frequent as any other. min_share, max_share: the object's longer side over S.
    """

    def __init__(
        self, cutouts: str, photos: str | Sequence[str], num_images: int, seed: int = 0, size_px: int = 256,
        split: str = "train", classes: Sequence[str] | None = None, min_share: float = 0.3, max_share: float = 0.65,
    ):
        if num_images < 1 or size_px < 16 or not 0 < min_share <= max_share <= 0.9:
            raise ValueError("composites: needs num_images >= 1, size_px >= 16 and 0 < min_share <= max_share <= 0.9, "
                             f"not {num_images}, {size_px}, {min_share} and {max_share}")
        self.root, self.num_images, self.seed, self.size_px = Path(cutouts), num_images, seed, size_px
        self.split, self.shares = split, (min_share, max_share)
        self._cutouts = read_cutouts(self.root, split, classes)
        self._store = ShardStore(photos)
        self._photos = _read_photos(photos, self._store, split)
        names = "\n".join(photo.name for photo in self._photos)
        self._about = {
            "name": "composites", "split": split, "num_images": num_images, "seed": seed, "size_px": size_px,
            "classes": list(self._cutouts), "min_share": min_share, "max_share": max_share,
            "cutouts": file_stamp(str(self.root / "cutouts.json")),
            "photos": {"number": len(self._photos), "sha256": hashlib.sha256(names.encode()).hexdigest()},
        }
        self._digest = hashlib.sha256(json.dumps({**self._about, "num_images": 0}).encode()).hexdigest()[:8]

    def __len__(self) -> int:
        return self.num_images

    def record(self, index: int) -> Record | None:
        """Scene ``index`` as PNG, without loss; None where there is no photo but the cut-out's own, or the object is
        too thin to be seen at this size; ValueError where a photo or cut-out cannot be read."""
        rng = np.random.default_rng([zlib.crc32(self.split.encode()), self.seed, index])
        label, which, start, strength = rng.random(4).tolist()
        some = self._cutouts[list(self._cutouts)[int(label * len(self._cutouts))]]
        cutout = some[int(which * len(some))]
        first = int(start * len(self._photos))
        turns = (self._photos[(first + step) % len(self._photos)] for step in range(len(self._photos)))
        photo = next((photo for photo in turns if not cut_from(cutout, photo.name)), None)
        if photo is None:
            return None
        truth = self._background(photo, rng)
        with Image.open(self.root / cutout.file) as picture:
            thing = picture.convert("RGBA")
        if rng.random() < 0.5:
            thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = draw_place(rng, thing.size, self.size_px, *self.shares)
        pasted = paste(truth, thing, place, SHADOW[0] + (SHADOW[1] - SHADOW[0]) * strength)
        if not pasted.outline.any():
            return None
        instance = instance_of("0", cutout.label, encode_mask(pasted.outline))
        instance.captions = [cutout.caption] if cutout.caption != cutout.label else []
        caption = f"{photo.caption.rstrip('. ') or 'photo'}, with {cutout.caption} in front"
        return Record(
            key=f"composites-{self.split}-{self._digest}-{index:08d}", image=_png(pasted.picture), extension="png",
            width=self.size_px, height=self.size_px, instances=[instance], caption=caption, captions=[caption],
            origin={
                "split": self.split, "licence": f"{photo.licence} + {cutout.licence}",
                "photo": photo.name, "photo_url": photo.url, "cutout": cutout.file, "cutout_source": cutout.source,
            },
            truth=_png(truth),
        )

    def describe(self) -> Mapping[str, Any]:
        """Every setting, the cut-outs' list and the photos, by name and hash."""
        return self._about

    def _background(self, photo: Photo, rng: np.random.Generator) -> Pixels:
        """A square of a photo (S, S, 3)."""
        frame = draw_frame(rng, photo.width, photo.height, None, _PHOTO, self.size_px, flip=0.5)
        size = photo.width, photo.height
        try:
            body = self._store.read(photo.shard, photo.sample).image
            image = decode_image(body, *size, enough_pixels(*size, frame, self.size_px))
        except Broken as error:
            raise ValueError(f"photo {photo.name} cannot be used ({error.reason})") from None
        return crop_image(image, *size, frame, self.size_px)


def read_cutouts(root: Path, split: str, classes: Sequence[str] | None = None) -> dict[str, list[Cutout]]:
    """A folder's cut-outs of one split by label, labels sorted; ValueError for a list that is not as above, or where a
    class has none.

    The label is the category, or the coarse name where ``classes`` names that instead. A coarse name that begins with
    the category is in truth the finer one (``apple golden``), and makes the caption (``golden apple``).
    """
    place = root / "cutouts.json"
    try:
        entries = json.loads(place.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"composites: no {place}; cutouts must be a folder that holds cutouts.json") from None
    except ValueError as error:
        raise ValueError(f"composites: {place} is not valid JSON: {error}") from None
    found: dict[str, list[Cutout]] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [None]):
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(name), str) for name in FIELDS):
            raise ValueError(f"composites: {place} must be a list of objects with the strings {', '.join(FIELDS)}; "
                             f"entry {number} is not one")
        coarse, category = str(entry["coarse"]), str(entry["category"])
        label = next((name for name in (category, coarse) if classes is None or name in classes), "")
        if label and entry["split"] == split:
            finer = coarse.removeprefix(category + " ") if coarse.startswith(category + " ") else ""
            found.setdefault(label, []).append(
                Cutout(entry["file"], label, f"{finer} {category}".strip(), entry["licence"], entry["source"]))
    absent = [name for name in classes or () if name not in found]
    if absent or not found:
        raise ValueError(f"composites: {place} has no cut-out of split '{split}'"
                         + (f" and class {', '.join(absent)}" if absent else ""))
    return {label: found[label] for label in sorted(found)}


def cut_from(cutout: Cutout, photo: str) -> bool:
    """Whether a cut-out's source names this photo (``DATASET image ID``)."""
    return f" {photo} " in f" {cutout.source} "


def _read_photos(photos: str | Sequence[str], store: ShardStore, split: str) -> list[Photo]:
    """Every photo of the shards; ValueError for one of another split or without an origin."""
    places = ((shard, sample) for shard, count in enumerate(store.counts) for sample in range(count))
    found = []
    every = read_samples(photos, ("json",))
    for (shard, sample), (key, members) in zip(places, every, strict=True):
        try:
            body = json.loads(members["json"])
            origin = body["origin"]
            of = origin["split"]
            name = f"{origin.get('dataset', '')} image {origin.get('image_id', key)}".strip()
            found.append(Photo(shard, sample, name, body["width"], body["height"], body["caption"],
                               str(origin.get("licence") or ""), str(origin.get("url") or "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"composites: photo {key} has no such record as a background needs ({error!r}); "
                             "run tools/check_shards.py on its shards") from None
        if of != split:
            raise ValueError(f"composites: photo {key} is of split '{of}', these composites of '{split}': "
                             "splits are never mixed; name the photos' own shards of that split")
    return found


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", compress_level=1)
    return file.getvalue()
