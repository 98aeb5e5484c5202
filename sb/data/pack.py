"""One shard: a slice of a source checked item by item, counted, and written as a plain WebDataset tar with its index.

The tar is written aside and renamed; the file of its counts in ``OUT/.build`` comes last and says it is finished.
"""

import errno
import hashlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset import TarWriter

from sb.config import write_whole
from sb.data.captions import Captions
from sb.data.decode import BAD_PICTURE
from sb.data.index import write_index
from sb.data.schema import TRUTH, Record, Source
from sb.data.verify import read_samples

BUILD = ".build"
NUM_NAMED = 20  # skipped items that are named per reason
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_MAX_KEY = 90  # a plain tar header holds names of 100 characters


@dataclass(frozen=True)
class Plan:
    """What every worker needs to write any shard."""

    source: Source
    out: Path
    images_per_shard: int
    split: str
    captions: str | None
    licences: tuple[str, ...]
    exclude: frozenset[str]
    fingerprint: str


class Skipped(Exception):
    """An item that does not go into the shards; the reason is one word a counter is kept under."""

    def __init__(self, reason: str, name: str):
        super().__init__(reason, name)
        self.reason, self.name = reason, name


class ShardWriter:
    """Writes single shards of a plan; one per process."""

    def __init__(self, plan: Plan, advance: Callable[[int], Any]):
        self.plan, self._advance = plan, advance
        self._captions = Captions(plan.captions) if plan.captions else None

    def write(self, shard: int) -> None:
        """Write tar, index and counts of one shard, each whole or not at all."""
        counts = _no_counts()
        write_shard(self.plan.out, shard, self._samples(shard, counts), counts, self.plan.fingerprint)

    def _samples(self, shard: int, counts: dict[str, Any]) -> Iterator[dict[str, Any]]:
        start = shard * self.plan.images_per_shard
        for index in range(start, min(start + self.plan.images_per_shard, len(self.plan.source))):
            sample = self._sample(index, counts)
            if sample is not None:
                yield sample
            self._advance(1)

    def _sample(self, index: int, counts: dict[str, Any]) -> dict[str, Any] | None:
        """The tar's entry for one item, counted; None where it is left out, counted by reason."""
        try:
            record = self._record(index)
        except Skipped as why:
            skip(counts, why.reason, why.name)
            return None
        for reason, name in record.origin.get("skipped", ()):
            skip(counts, f"instance_{reason}", f"{record.key} {name}")
        counts["told"] += self._captions.add_to(record) if self._captions else 0
        counts["captioned"] += sum(bool(thing.captions) for thing in record.instances)
        counts["samples"] += 1
        counts["instances"] += len(record.instances)
        counts["crowds"] += sum(thing.crowd for thing in record.instances)
        counts["captioned_images"] += bool(record.caption)
        counts["licences"][str(record.origin.get("licence") or "")] += 1
        counts["labels"].update(thing.label for thing in record.instances if not thing.crowd)
        counts["keys"].append(record.key)
        body = json.dumps(record.to_json(), ensure_ascii=False, separators=(",", ":")).encode()
        members = {record.extension: record.image, "json": body}
        return {"__key__": record.key, **members, **({TRUTH: record.truth} if record.truth else {})}

    def _record(self, index: int) -> Record:
        """Item ``index``, checked; raises Skipped where it is left out, ValueError where the build has to stop."""
        try:
            record = self.plan.source.record(index)
        except FileNotFoundError as error:
            raise Skipped("missing_file", Path(str(error.filename)).name) from None
        except (KeyError, *BAD_PICTURE) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk or the network, not this file
            raise Skipped("bad_item", f"item {index}: {error}") from None
        if record is None:
            raise Skipped("filtered", f"item {index}")
        split = record.origin.get("split", self.plan.split)
        if split != self.plan.split:
            raise ValueError(f"{record.key} is of split '{split}' and this build of '{self.plan.split}': "
                             "splits are never mixed in one shard set")
        if not record.key.isascii() or not record.key or "." in record.key or len(record.key) > _MAX_KEY:
            raise ValueError(f"key '{record.key}' must be 1 to {_MAX_KEY} ASCII characters without a dot")
        if self.plan.licences and not _licensed(record, self.plan.licences):
            raise Skipped("licence", record.key)
        record.extension = _check_image(record)
        record.origin["image_sha256"] = hashlib.sha256(record.image).hexdigest()
        if not self.plan.exclude.isdisjoint(_names_of(record.key, record.origin)):
            raise Skipped("excluded", record.key)
        return record


def write_shard(
    out: Path, shard: int, samples: Iterable[dict[str, Any]], counts: dict[str, Any], fingerprint: str
) -> None:
    """Write samples (``__key__``, and bytes by extension) as a shard of a set: its tar, its index and, to say that it
    is finished, its counts, each whole or not at all. counts: filled while ``samples`` is read."""
    tar = out / shard_name(shard)
    handle, aside = tempfile.mkstemp(dir=out / BUILD, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            with TarWriter(file, encoder=False, mtime=0) as writer:
                for sample in samples:
                    writer.write(sample)
        if counts["samples"]:
            with open(aside, "rb") as file:
                counts |= {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
            os.chmod(aside, 0o644)
            os.replace(aside, tar)
            write_index(tar)
        counts = {**counts, "fingerprint": fingerprint, "file": tar.name}
        write_whole(count_file(out, shard), json.dumps(counts).encode())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"no space left for {tar}; free some and run again to go on, "
                          "finished shards are kept") from None
        raise
    finally:
        Path(aside).unlink(missing_ok=True)


def count_file(out: Path, shard: int) -> Path:
    """Where the counts of a finished shard lie while a set is being built."""
    return out / BUILD / f"{shard_name(shard)}.json"


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"shard-{shard:06d}.tar"


def _check_image(record: Record) -> str:
    """The extension that fits the image's true format; raises Skipped where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(record.image)) as picture:
            picture.load()
            size, kind = picture.size, str(picture.format)
    except Exception:  # whatever a decoder raises, the picture is broken
        raise Skipped("unreadable_image", record.key) from None
    if size != (record.width, record.height):
        raise Skipped("image_of_another_size", f"{record.key} is {size[0]}x{size[1]}, annotated as "
                                               f"{record.width}x{record.height}")
    if kind not in _EXTENSIONS:
        raise Skipped("image_format", f"{record.key} is {kind}, not one of {', '.join(_EXTENSIONS)}")
    return _EXTENSIONS[kind]


def _licensed(record: Record, licences: Sequence[str]) -> bool:
    return not {str(record.origin.get(key)) for key in ("licence", "licence_id", "licence_url")}.isdisjoint(licences)


def _names_of(key: str, origin: Mapping[str, Any]) -> set[str]:
    """What an image is known by, whatever its split or its copy: its id in its data set, and its content."""
    image_id = f"{origin['dataset']}/{origin['image_id']}" if {"dataset", "image_id"} <= set(origin) else key
    return {image_id, str(origin.get("image_sha256", image_id))}


def identities(where: str) -> set[str]:
    """What the images of a shard set are known by: their ids and the hashes of their bytes.

    Raises ValueError for a sample whose json cannot be read: its image would slip through.
    """
    found: set[str] = set()
    for key, members in read_samples(where, ("json",)):
        try:
            found |= _names_of(key, json.loads(members["json"])["origin"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} {key}: no origin in its json ({error!r}); run tools/check_shards.py") from None
    return found


def _no_counts() -> dict[str, Any]:
    return {"samples": 0, "instances": 0, "crowds": 0, "captioned": 0, "told": 0, "captioned_images": 0,
            "labels": Counter(), "licences": Counter(), "skipped": Counter(), "named": {}, "keys": []}


def skip(counts: dict[str, Any], reason: str, name: str) -> None:
    """Count an item that is left out, and name it while there are few."""
    counts["skipped"][reason] += 1
    named = counts["named"].setdefault(reason, [])
    if len(named) < NUM_NAMED:
        named.append(name)
