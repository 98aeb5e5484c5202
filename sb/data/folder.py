"""A plain folder of images, masks and labels as a source: nothing to convert, no annotation tool needed.

Layout, in the folder or in any folder below it::

    NAME.jpg               an image (jpg, jpeg, png or webp)
    NAME.txt               its captions, one per line (optional)
    NAME.OBJECT.mask.png   the mask of one object, of the image's size: white (or 1) is the object
    NAME.OBJECT.txt        line 1 the object's label, further lines its captions (optional)

OBJECT is any word, different for each object of an image (``1``, ``left-cup``).
"""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sb.data.coco import encode_mask, instance_of
from sb.data.decode import BAD_PICTURE
from sb.data.schema import Instance, Record
from sb.registry import register

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_MASK = ".mask.png"
_ORIENTATION = 0x0112  # the EXIF tag
_KEY_LENGTH = 48


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A mask picture as (H, W) uint8, 1 = object: above half white, or any 1 in a picture of zeros and ones."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    return (grey > (127 if grey.max(initial=0) > 1 else 0)).astype(np.uint8)


def slug(name: str) -> str:
    """A name as part of a sample's key: letters, digits, - and _; what had to change is told apart by a hash."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:_KEY_LENGTH]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@register("source", "folder")
class FolderSource:
    """A folder in the layout above; ``title`` (the folder's name if empty) starts the keys and names the data set.

    ``licence`` is noted for every image. A photo that its EXIF data turns is stored upright, as PNG, because that
    is how its masks were drawn; every other image is copied as it is.
    """

    def __init__(self, root: str, split: str = "train", title: str = "", licence: str = ""):
        self.root, self.split, self.licence = Path(root), split, licence
        if not self.root.is_dir():
            raise ValueError(f"folder: no folder {root}")
        self.title = title or self.root.resolve().name
        files = sorted(path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
        masks = [path for path in files if path.name.endswith(_MASK)]
        self._images = [p for p in files if p.suffix.lower() in _IMAGES and not p.name.endswith(_MASK)]
        if not self._images:
            raise ValueError(f"folder: {root} holds no image (NAME{', NAME'.join(_IMAGES)})")
        self._masks: dict[str, list[str]] = {}
        stems: dict[str, Path] = {}
        for path in self._images:
            twin = stems.setdefault(str(path.with_suffix("")), path)
            if twin != path:
                raise ValueError(f"folder: {twin} and {path} share one name, so their masks cannot be told apart")
        for path in masks:
            whole = str(path)[:-len(_MASK)]
            owner = _owner(whole, stems)
            if owner is None:
                raise ValueError(f"folder: {path} belongs to no image; expected NAME.OBJECT{_MASK} beside NAME.jpg")
            self._masks.setdefault(owner, []).append(whole)
        listing = "\n".join(f"{path} {(self.root / path).stat().st_size}" for path in files)
        self._about = {"name": "folder", "title": self.title, "split": split, "licence": licence,
                       "num_files": len(files), "listing_sha256": hashlib.sha256(listing.encode()).hexdigest()}

    def __len__(self) -> int:
        return len(self._images)

    def record(self, index: int) -> Record:
        """Image ``index`` by name; OSError where a file cannot be read."""
        path = self._images[index]
        stem = str(path.with_suffix(""))
        content, extension, (width, height) = _upright(self.root / path)
        instances: list[Instance] = []
        skipped: list[list[str]] = []
        for whole in self._masks.get(stem, ()):
            name = whole[len(stem) + 1:]
            found = self._instance(whole, name, width, height)
            if isinstance(found, Instance):
                instances.append(found)
            else:
                skipped.append([found, name])
        captions = _lines(self.root / f"{stem}.txt")
        origin: dict[str, Any] = {"dataset": self.title, "image_id": path.as_posix(), "split": self.split,
                                  "licence": self.licence}
        return Record(
            key=f"{slug(self.title)}-{self.split}-{slug(path.with_suffix('').as_posix())}", image=content,
            extension=extension, width=width, height=height, instances=instances,
            caption=captions[0] if captions else "", captions=captions,
            origin={**origin, "skipped": skipped} if skipped else origin,
        )

    def describe(self) -> Mapping[str, Any]:
        """Title, split, licence, and a hash of the names and sizes of all files."""
        return self._about

    def _instance(self, whole: str, name: str, width: int, height: int) -> Instance | str:
        """The object, or the reason why there is none."""
        words = _lines(self.root / f"{whole}.txt")
        if not words:
            return "missing_label"
        try:
            mask = read_mask(self.root / f"{whole}{_MASK}")
        except BAD_PICTURE:
            return "unreadable_mask"
        if mask.shape != (height, width):
            return "mask_of_another_size"
        if not mask.any():
            return "empty_mask"
        thing = instance_of(name, words[0], encode_mask(mask))
        thing.captions = words[1:]
        return thing


def _owner(whole: str, stems: Mapping[str, Path]) -> str | None:
    """The longest image name that ``NAME.OBJECT`` starts with."""
    while "." in Path(whole).name:
        whole = whole.rpartition(".")[0]
        if whole in stems:
            return whole
    return None


def _upright(path: Path) -> tuple[bytes, str, tuple[int, int]]:
    """An image's bytes, extension and size (width, height); turned ones are re-encoded without loss."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        if picture.getexif().get(_ORIENTATION, 1) == 1:
            return content, path.suffix[1:].lower(), picture.size
        turned = ImageOps.exif_transpose(picture)
    file = io.BytesIO()
    turned.save(file, format="PNG")
    return file.getvalue(), "png", turned.size


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank; none where there is no file."""
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
