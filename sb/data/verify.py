"""What a shard set holds, and whether every sample of it is sound: the logic behind ``check_shards``."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from sb.data.decode import decode_mask
from sb.data.index import index_address, index_tar, is_remote, open_address, read_index
from sb.data.latents import ROWS, TEXTS, Latents, TextTable, same_latents
from sb.data.ledger import Broken
from sb.data.schema import IMAGE_EXTENSIONS, SCHEMA_VERSION, TRUTH
from sb.data.shards import Shard, list_shards

_FIELDS = {"key": str, "extension": str, "width": int, "height": int, "instances": list, "caption": str,
           "captions": list, "origin": dict}
_NUMBER = (int, float)
_THING = {"id": str, "label": str, "box": list, "area": _NUMBER, "mask": dict, "captions": list, "crowd": bool}
_AREAS = ("< 1 %", "1 to 5 %", "5 to 20 %", "> 20 %")
_BOX_SLACK_PX = 1.5
_NUM_LABELS_SHOWN = 12


@dataclass
class Report:
    """Counts of a shard set and what is wrong with it (one line each: file, key, what).

    areas: instances by share of their image; labels and areas leave crowds out. keys: of every sample.
    """

    shards: int = 0
    samples: int = 0
    instances: int = 0
    crowds: int = 0
    captioned_images: int = 0
    captioned_instances: int = 0
    bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    areas: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Count another report in."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            elif isinstance(mine, list):
                mine.extend(value)
            else:
                setattr(self, name, mine + value)

    def table(self) -> str:
        """The counts as lines of text."""
        def most(counter: Counter[str]) -> str:
            shown = ", ".join(f"{name or '(none)'} {n}" for name, n in counter.most_common(_NUM_LABELS_SHOWN))
            more = len(counter) - _NUM_LABELS_SHOWN
            return shown + (f", and {more} more" if more > 0 else "")

        rows = {
            "shards": f"{self.shards}  ({self.bytes / 2**20:,.1f} MiB)",
            "images": f"{self.samples:,}  ({most(self.formats)}), {self.captioned_images:,} with a caption",
            "instances": f"{self.instances:,}  ({self.crowds:,} crowds), {self.captioned_instances:,} with a caption",
            "sizes": ", ".join(f"{name}: {self.areas[name]:,}" for name in _AREAS) + " of the image",
            f"{len(self.labels)} labels": most(self.labels),
            "licences": most(self.licences),
            "problems": f"{len(self.problems):,}",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def read_samples(where: str | Sequence[str], only: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members (or ``only`` those) of each sample of a shard set, in order, local or remote.

    Raises ValueError where there are no shards, or where a shard ends inside a sample.
    """
    for shard in list_shards(where).shards:
        index = read_index(shard.address)
        with open_address(shard.address) as file:
            for sample in index["samples"]:
                wanted = {name: place for name, place in sample["members"].items() if not only or name in only}
                members = read_members(file, wanted)
                if any(len(members[name]) != size for name, (_, size) in wanted.items()):
                    raise ValueError(f"{shard.address} ends inside {sample['key']}; tools/check_shards.py says more")
                yield sample["key"], members


def read_members(file: IO[bytes], members: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
    """The bytes of a sample's members, which an index gives as extension -> (offset, size)."""
    found: dict[str, bytes] = {}
    for extension, (offset, size) in members.items():
        file.seek(offset)
        found[extension] = file.read(size)
    return found


def check_shards(where: str, workers: int = 1) -> Report:
    """Read every sample of a shard set: schema, keys, image or latents, sizes, masks, boxes, index and manifest.

    Nothing is raised for what is found broken: it is in ``problems``. ValueError where there are no shards.
    """
    listing, report = list_shards(where), Report()
    shards, check = listing.shards, partial(_check_tar, latents=same_latents(listing.latents))
    with tqdm(total=len(shards), desc="check", unit=" shards") as bar:
        if workers <= 1 or len(shards) == 1:
            for shard in shards:
                report.add(check(shard))
                bar.update()
        else:
            with ProcessPoolExecutor(min(workers, len(shards)), mp_context=get_context("spawn")) as pool:
                for part in pool.map(check, shards):
                    report.add(part)
                    bar.update()
    twice = [key for key, count in Counter(report.keys).items() if count > 1]
    report.problems += [f"{key}: the key occurs more than once" for key in twice]
    report.problems += [line for made in listing.latents for line in _check_texts(made[1])]
    folder = Path(where)
    if (folder / ".build").is_dir():
        report.problems.append(f"{where}: the build is not finished; run it again")
    listed = {shard.name for shard in shards}
    report.problems += [f"{tar.name}: not in manifest.json" for tar in folder.glob("*.tar") if tar.name not in listed]
    return report


def _check_tar(shard: Shard, latents: Latents | None) -> Report:
    report = Report(shards=1)
    try:
        index = index_tar(shard.address)
    except (OSError, ValueError) as error:
        report.problems.append(str(error))
        return report
    report.bytes = index["tar_bytes"]
    lines = _check_index(shard.address, index)
    if shard.samples is not None and shard.samples != len(index["samples"]):
        lines.append(f"holds {len(index['samples'])} samples, manifest.json says {shard.samples}")
    with open_address(shard.address) as file:
        if shard.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:  # type: ignore[arg-type]
            lines.append("its sha256 is not the one in manifest.json")
        report.problems += [f"{shard.name}: {line}" for line in lines]
        for sample in index["samples"]:
            key, members = sample["key"], read_members(file, sample["members"])
            report.samples += 1
            report.keys.append(key)
            whole = all(len(members[name]) == size for name, (_, size) in sample["members"].items())
            try:
                lines = _check_sample(key, members, report, latents) if whole else ["the tar ends inside this sample"]
            except Exception as error:  # json can hold anything; what is not foreseen below is broken all the same
                lines = [f"cannot be checked: {error!r}"]
            report.problems += [f"{shard.name} {key}: {line}" for line in lines]
    return report


def _check_index(address: str, fresh: Mapping[str, Any]) -> list[str]:
    try:
        with open_address(index_address(address)) as file:
            stored = json.load(file)
    except FileNotFoundError:
        return []
    except ValueError as error:
        return [f"its index is not valid JSON: {error}"]
    return [] if stored == fresh else ["its index is not that of this tar; delete the index file"]


def _check_sample(key: str, members: Mapping[str, bytes], report: Report, latents: Latents | None) -> list[str]:
    """What is wrong with one sample; a sound one is counted."""
    images = [extension for extension in IMAGE_EXTENSIONS if extension in members]
    if latents is None and (len(images) != 1 or "json" not in members):
        return [f"has members {sorted(members)}, not one image and a json"]
    if latents is not None and members.keys() != {"json", *latents.members}:
        return [f"has members {sorted(members)}, not a json and the latents of {len(latents.members)} frames"]
    try:
        body = json.loads(members["json"])
    except ValueError as error:
        return [f"json cannot be read: {error}"]
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version != SCHEMA_VERSION:
        return [f"schema_version {version}, not {SCHEMA_VERSION}"]
    wrong = _wrong_fields(body, _FIELDS)
    if wrong:
        return [f"json {line}" for line in wrong]
    lines = [] if body["key"] == key else [f"json says its key is {body['key']}"]
    pictures = {"image": members[images[0]]} if latents is None else {}
    pictures |= {TRUTH: members[TRUTH]} if TRUTH in members else {}
    lines += [line for what, content in pictures.items() for line in _check_image(what, content, body)]
    lines += _check_latents(members, latents) if latents else []
    if not all(isinstance(thing, dict) for thing in body["instances"]):
        return lines + ["json has an instance that is no object with keys"]
    ids = Counter(str(thing.get("id")) for thing in body["instances"])
    lines += [f"instance {name} occurs {n} times" for name, n in ids.items() if n > 1]
    for thing in body["instances"]:
        found = _check_instance(thing, body["width"], body["height"])
        lines += [f"instance {thing.get('id')}: {line}" for line in found]
    if not lines:
        _count(body, "latents" if latents else images[0], report)
    return lines


def _check_image(what: str, content: bytes, body: Mapping[str, Any]) -> list[str]:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            size = picture.size
    except Exception as error:  # whatever a decoder raises, the picture is broken
        return [f"{what} cannot be decoded: {error}"]
    agree = size == (body["width"], body["height"])
    return [] if agree else [f"{what} is {size[0]}x{size[1]}, json says {body['width']}x{body['height']}"]


def _check_texts(latents: Latents | None) -> list[str]:
    """What is wrong with the features of a local set's texts."""
    if latents is None or latents.text is None or is_remote(latents.where):
        return []
    try:
        TextTable(Path(latents.where) / TEXTS, Path(latents.where) / ROWS)
    except ValueError as error:
        return [str(error)]
    return []


def _check_latents(members: Mapping[str, bytes], latents: Latents) -> list[str]:
    lines = []
    for name in latents.members:
        try:
            if not np.isfinite(latents.read(members[name]).view(np.float16)).all():
                lines.append(f"{name} holds numbers that are not finite")
        except Broken:
            lines.append(f"{name} is no fp16 array of {latents.shape}")
    return lines


def _check_instance(thing: Mapping[str, Any], width: int, height: int) -> list[str]:
    wrong = _wrong_fields(thing, _THING)
    if wrong:
        return wrong
    rle = thing["mask"]
    try:
        if list(rle["size"]) != [height, width]:
            return [f"mask size {rle['size']}, image {[height, width]}"]
        if not isinstance(rle["counts"], str):
            return ["mask counts are not a string"]
        mask = decode_mask(rle, width, height)
    except (Broken, KeyError, TypeError):
        return ["bad mask: its runs do not fill the image"]
    lines = [] if thing["label"].strip() else ["has no label"]
    area, box = int(mask.sum()), [float(n) for n in coco_mask.toBbox(rle)]
    if area != thing["area"] or not area:
        lines.append(f"area {thing['area']}, its mask has {area} px")
    if len(thing["box"]) != 4 or not all(
        isinstance(a, _NUMBER) and abs(a - b) <= _BOX_SLACK_PX for a, b in zip(thing["box"], box)
    ):
        lines.append(f"box {thing['box']}, its mask's is {box}")
    return lines


def _wrong_fields(body: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with the keys and types of a json object."""
    missing = [name for name in fields if name not in body]
    odd = [name for name, kind in fields.items() if name in body and not isinstance(body[name], kind)]
    told = body.get("captions")
    if isinstance(told, list) and not all(isinstance(text, str) for text in told):
        odd.append("captions")
    found = (("has no", missing), ("has another type of", odd))
    return [f"{what} {', '.join(names)}" for what, names in found if names]


def _count(body: Mapping[str, Any], extension: str, report: Report) -> None:
    report.formats[extension] += 1
    report.captioned_images += bool(body["caption"])
    report.licences[str(body["origin"].get("licence") or "")] += 1
    for thing in body["instances"]:
        report.instances += 1
        report.captioned_instances += bool(thing["captions"])
        if thing["crowd"]:
            report.crowds += 1
            continue
        share = thing["area"] / (body["width"] * body["height"])
        report.labels[thing["label"]] += 1
        report.areas[_AREAS[sum(share > limit for limit in (0.01, 0.05, 0.20))]] += 1
