"""The pictures that a request list speaks of: out of shards, out of a folder of image files, or drawn again.

Legend: H W pixels of a case, after cropping and resizing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sb.data.decode import decode_image, read_record
from sb.data.index import is_remote, read_index
from sb.data.ledger import Broken
from sb.data.schema import IMAGE_EXTENSIONS
from sb.data.shapes import draw_scene
from sb.data.shards import ShardStore
from sb.evaluate.lists import Case, CaseList
from sb.pictures import open_image

_MAX_PIXELS = 64_000_000


class Photos:
    """Stored pictures by key, cropped and resized (Lanczos, over the area of each new pixel) as a case says.

    addresses: shards, or one folder of image files. There the picture of key ``coco-val-000000000139`` is the file
    named by the whole key or by what follows the split, ``000000000139.jpg`` (COCO 2014: ``COCO_val2014_`` before it).
    Pixels are taken as they are stored, since masks were drawn on those.
    """

    def __init__(self, addresses: Sequence[str] | str):
        addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        self._files = _files(addresses[0]) if len(addresses) == 1 else {}
        self._places: dict[str, tuple[int, int]] = {}
        if self._files:
            return
        self._store = ShardStore(addresses)
        if self._store.latents is not None:
            raise ValueError(f"{addresses[0]} holds latents and no pictures: give the shards that they were made from")
        for number, shard in enumerate(self._store.shards):
            for sample, entry in enumerate(read_index(shard.address)["samples"]):
                self._places[entry["key"]] = number, sample

    def __contains__(self, key: str) -> bool:
        return key in self._places or _file_name(key, self._files) is not None

    def picture(self, case: Case) -> Tensor:
        """What is painted on, (3, H, W) uint8: the true background where there is one, else the stored picture."""
        truth = self.truth(case)
        return self.real(case) if truth is None else truth

    def truth(self, case: Case) -> Tensor | None:
        """The picture as it was before its object was put in, (3, H, W) uint8, where the record carries it."""
        return self._cut(case, true_background=True)

    def real(self, case: Case) -> Tensor:
        """The stored picture, with the object that was annotated in it, (3, H, W) uint8."""
        real = self._cut(case, true_background=False)
        assert real is not None
        return real

    def _cut(self, case: Case, true_background: bool) -> Tensor | None:
        image = self._open(case.image, true_background)
        if image is None:
            return None
        left, top, width, height = case.crop
        if image.size != (case.stored or image.size) or left + width > image.width or top + height > image.height:
            raise ValueError(f"{case.image} is {image.width}x{image.height} px, but the list was made for "
                             f"{'x'.join(map(str, case.stored or ()))} px and the crop {list(case.crop)}")
        rows, columns = case.size
        cut = image.resize((columns, rows), Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()

    def _open(self, key: str, true_background: bool) -> Image.Image | None:
        if key not in self:
            raise ValueError(f"there is no picture {key} in the data: is it the set that the list was made from?")
        if self._files:
            name = _file_name(key, self._files)
            return None if true_background or name is None else open_image(self._files[name]).convert("RGB")
        try:
            raw = self._store.read(*self._places[key], truth=true_background)
            record = read_record(raw.record, _MAX_PIXELS)
            content = raw.truth if true_background else raw.image
            return None if content is None else decode_image(content, record["width"], record["height"])
        except Broken as error:
            raise ValueError(f"picture {key} cannot be read ({error.reason}); run tools/check_shards.py") from None


class Scenes:
    """Scenes of the shapes world, drawn again from their seeds: what is painted on is the scene without its target."""

    def __init__(self, size_px: int):
        self.size_px = size_px

    def picture(self, case: Case) -> Tensor:
        """The true background, (3, H, W) uint8."""
        return torch.from_numpy(draw_scene(int(case.image), self.size_px).background).permute(2, 0, 1).contiguous()

    def truth(self, case: Case) -> Tensor:
        """The same."""
        return self.picture(case)

    def real(self, case: Case) -> Tensor:
        """The scene with its target, (3, H, W) uint8."""
        return torch.from_numpy(draw_scene(int(case.image), self.size_px).image).permute(2, 0, 1).contiguous()


def open_pictures(cases: CaseList, data: Sequence[str] | str | None = None) -> Photos | Scenes:
    """The pictures of a list; ValueError where ``data`` (shards or a folder) lacks some, or is needed and not given."""
    protocol = cases.header["protocol"]
    if protocol == "shapes":
        return Scenes(cases.header["size_px"])
    if not data:
        raise ValueError(f"the pictures of a '{protocol}' list lie in shards or a folder: name them (--data)")
    photos = Photos(data)
    missing = [key for key in dict.fromkeys(case.image for case in cases.cases) if key not in photos]
    if missing:
        where = data if isinstance(data, str) else ", ".join(data)
        raise ValueError(f"{where} lacks {len(missing)} of the list's pictures, the first: {missing[0]}")
    return photos


def _files(folder: str) -> dict[str, Path]:
    """Image files by name without their ending, in a folder that is no shard set."""
    place = Path(folder)
    if is_remote(folder) or not place.is_dir() or any(place.glob("*.tar")):
        return {}
    found = sorted(path for path in place.iterdir() if path.suffix[1:].lower() in IMAGE_EXTENSIONS)
    return {path.stem.rpartition("_")[2] if path.stem.startswith("COCO_") else path.stem: path for path in found}


def _file_name(key: str, files: dict[str, Path]) -> str | None:
    """Which of the files a key means; keys read DATASET-SPLIT-ID."""
    return next((name for name in (key, *key.split("-", 2)[2:]) if name in files), None)
