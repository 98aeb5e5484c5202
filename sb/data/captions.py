"""Captions of single objects: the file they travel in, and running a captioning model over a shard set's crops.

One line per caption, in any order; an instance may have several lines::

    {"image_id": "coco-train-000000000250", "instance_id": "1038967", "text": "a red kite with a long tail"}

``image_id`` is the sample's key or the source's own id of the image (numbers may be written as numbers).
"""

import importlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from sb.data.schema import IMAGE_EXTENSIONS, Record
from sb.data.verify import read_samples

log = logging.getLogger(__name__)
Captioner = Callable[[list[Image.Image]], Sequence[str]]
_FIELDS = ("image_id", "instance_id", "text")


class Captions:
    """The captions of a file, by image and instance. Raises ValueError that names the line it cannot read."""

    def __init__(self, path: str | Path):
        self._texts: dict[tuple[str, str], list[str]] = {}
        try:
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        self._add(line, f"{path} line {number}")
        except FileNotFoundError:
            raise ValueError(f"no captions file {path}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None
        if not self._texts:
            raise ValueError(f"{path} holds no caption")

    def __len__(self) -> int:
        return len(self._texts)

    def add_to(self, record: Record) -> int:
        """Append to each instance of a record the captions told of it; returns how many instances got one."""
        images = dict.fromkeys((record.key, str(record.origin.get("image_id", record.key))))
        captioned = 0
        for instance in record.instances:
            told = [text for image in images for text in self._texts.get((image, instance.id), ())]
            instance.captions += [text for text in dict.fromkeys(told) if text not in instance.captions]
            captioned += bool(told)
        return captioned

    def _add(self, line: str, where: str) -> None:
        try:
            body = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(body, dict) or not set(_FIELDS) <= set(body):
            raise ValueError(f"{where} must be an object with {', '.join(_FIELDS)}")
        image, instance, text = (str(body[field]).strip() for field in _FIELDS)
        if not text:
            raise ValueError(f"{where} has an empty text")
        self._texts.setdefault((image, instance), []).append(text)


@dataclass
class Crop:
    """One object cut out of its image."""

    image_id: str
    instance_id: str
    picture: Image.Image


def caption_shards(
    shards: str, captioner: Captioner, out: str | Path, *, batch_size: int = 16, margin: float = 0.15,
    min_area: float = 0.005,
) -> int:
    """Caption every instance of a shard set and append the lines to ``out``; returns how many were written.

    Whole lines only: what a killed run left half-written is cut off, and instances that have a line are not done
    again. ``margin`` widens the crop by a share of the box's sides; objects under ``min_area`` (share of the image)
    and crowds are left out. Raises ValueError where the captioner gives another number of texts than crops.
    """
    if margin < 0 or batch_size < 1 or not 0 <= min_area <= 1:
        raise ValueError(
            "captions: needs margin >= 0, batches of at least 1 and min_area in [0, 1], not "
            f"{margin}, {batch_size} and {min_area}"
        )
    out = Path(out)
    done = _finished(out)
    written = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "ab") as file, tqdm(desc="captions", unit=" crops", mininterval=0.5) as bar:
        for batch in _batches(_crops(shards, done, margin, min_area), batch_size):
            texts = [" ".join(str(text).split()) for text in captioner([crop.picture for crop in batch])]
            if len(texts) != len(batch):
                raise ValueError(f"the captioner gave {len(texts)} texts for {len(batch)} crops")
            lines = [
                json.dumps(dict(zip(_FIELDS, (crop.image_id, crop.instance_id, text))), ensure_ascii=False) + "\n"
                for crop, text in zip(batch, texts) if text
            ]
            file.write("".join(lines).encode())
            file.flush()
            written += len(lines)
            bar.update(len(batch))
    return written


def load_captioner(where: str, device: str = "cpu", max_tokens: int = 40) -> Captioner:
    """A captioner from a folder of a Hugging Face image-to-text model, or from ``module:function``.

    The function takes a list of PIL images and returns as many strings. Raises ValueError for anything else.
    """
    if Path(where).is_dir():
        return _hugging_face(where, device, max_tokens)
    module, colon, function = where.partition(":")
    if not colon:
        raise ValueError(f"captioner '{where}' is neither a folder nor module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"captioner '{where}' cannot be imported: {error}") from None
    return found  # type: ignore[no-any-return]


def _hugging_face(folder: str, device: str, max_tokens: int) -> Captioner:
    try:
        import transformers
    except ImportError as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"a captioner folder needs transformers ({why}): pip install -e '.[caption]'") from None
    import torch

    try:
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no image-to-text model: {str(error).splitlines()[0]}") from None
    model = model.to(device).eval()

    @torch.inference_mode()
    def captioner(pictures: list[Image.Image]) -> list[str]:
        inputs = processor(images=pictures, return_tensors="pt").to(device)
        tokens = model.generate(**inputs, max_new_tokens=max_tokens)
        texts: list[str] = processor.batch_decode(tokens, skip_special_tokens=True)
        return texts

    return captioner


def _crops(shards: str, done: set[tuple[str, str]], margin: float, min_area: float) -> Iterator[Crop]:
    """The crops still to be captioned; a sample that is broken gives a warning and no crop."""
    for key, members in read_samples(shards):
        try:
            crops = _crops_of(key, members, done, margin, min_area)
        except Exception as error:  # shards hold anything
            log.warning("%s is left out: %r; tools/check_shards.py names all that is broken", key, error)
            continue
        yield from crops


def _crops_of(
    key: str, members: Mapping[str, bytes], done: set[tuple[str, str]], margin: float, min_area: float
) -> list[Crop]:
    body = json.loads(members["json"])
    wanted = [
        thing for thing in body["instances"]
        if not thing["crowd"] and (key, thing["id"]) not in done
        and thing["area"] >= max(1.0, min_area * body["width"] * body["height"])
    ]
    if not wanted:
        return []
    content = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
    with Image.open(io.BytesIO(content)) as picture:
        image = picture.convert("RGB")
    return [Crop(key, thing["id"], image.crop(_frame(thing["box"], margin, image.size))) for thing in wanted]


def _frame(box: Sequence[float], margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (x, y, w, h) widened by ``margin`` of its sides, inside the image, as PIL's four corners."""
    x, y, width, height = box
    return (
        max(0, int(x - margin * width)), max(0, int(y - margin * height)),
        min(size[0], int(x + (1 + margin) * width + 1)), min(size[1], int(y + (1 + margin) * height + 1)),
    )


def _batches(crops: Iterator[Crop], size: int) -> Iterator[list[Crop]]:
    batch: list[Crop] = []
    for crop in crops:
        batch.append(crop)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _finished(out: Path) -> set[tuple[str, str]]:
    """The (image, instance) pairs that have a line; a half-written last line is cut off."""
    done: set[tuple[str, str]] = set()
    if not out.exists():
        return done
    whole = 0
    with open(out, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                body: Any = json.loads(line)
                done.add((str(body["image_id"]), str(body["instance_id"])))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{out} line {number} is not a caption; name another --out") from None
    os.truncate(out, whole)
    return done
