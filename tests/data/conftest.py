"""Tiny shard sets for the tests of the loader, written with webdataset itself."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 48, 40
HOLE = (8, 6, 20, 24)  # left, top, width, height of the only object of every image


def tiny_sample(
    number, *, captions=("red block",), caption="a photo of a block", size=(WIDTH, HEIGHT), extension="png",
):
    """Image ``number`` as a webdataset sample: noise with a red rectangle, and its exact mask."""
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    left, top, wide, high = HOLE
    mask[top : top + high, left : left + wide] = 1
    pixels[mask == 1] = (255, 0, 0)
    rle = coco_mask.encode(np.asfortranarray(mask))
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG" if extension == "png" else "JPEG")
    key = f"tiny-{number:06d}"
    record = {
        "schema_version": 1, "key": key, "width": width, "height": height, "caption": caption,
        "captions": [caption] if caption else [], "origin": {}, "instances": [{
            "id": "0", "label": "block", "captions": list(captions), "box": list(HOLE), "area": int(mask.sum()),
            "crowd": False, "mask": {"size": [height, width], "counts": rle["counts"].decode()},
        }],
    }
    return {"__key__": key, extension: body.getvalue(), "json": record}


def write_tar(path, samples):
    """Write samples to a tar; ``json`` may be a dict."""
    with webdataset.TarWriter(str(path)) as tar:
        for sample in samples:
            body = sample.get("json")
            tar.write({**sample, "json": json.dumps(body).encode()} if isinstance(body, dict) else sample)


def write_set(folder, shards, spoil=None, **options):
    """Tars of so many samples each, their indexes and a manifest. spoil(number, sample) may give another sample."""
    from sb.data.index import write_index

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries, number = [], 0
    for shard, count in enumerate(shards):
        path = folder / f"shard-{shard:06d}.tar"
        samples = []
        for _ in range(count):
            sample = tiny_sample(number, **options)
            samples.append((spoil and spoil(number, sample)) or sample)
            number += 1
        write_tar(path, samples)
        write_index(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"file": path.name, "samples": count, "bytes": path.stat().st_size, "sha256": digest})
    manifest = {
        "schema_version": 1, "source": {"name": "tiny"}, "images": number, "instances": number, "skipped": {},
        "labels": {"block": number}, "licences": {}, "shards": entries, "versions": {}, "captions": "FILE",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def spoiled(number, sample):
    """Five ways to be broken, each 1 %; the fifth, a cut tar, is made afterwards."""
    record, way = dict(sample["json"]), number % 100
    if way == 10:
        sample["png"] = sample["png"][: len(sample["png"]) // 2]
    elif way == 30:
        record["instances"] = [{**record["instances"][0], "mask": {"size": [40, 48], "counts": "garbage"}}]
    elif way == 50:
        return {"__key__": sample["__key__"], "json": record}
    elif way == 70:
        record["width"] = 10**9
    return {**sample, "json": record}


@pytest.fixture
def broken_set(tmp_path):
    """400 samples, 4 of each way of being broken, the fifth way being the last 4 of a tar that is cut."""
    from sb.data.index import read_index

    folder = write_set(tmp_path / "broken", [100] * 4, spoil=spoiled)
    path = tmp_path / "broken" / "shard-000002.tar"
    members = read_index(path)["samples"][96]["members"]
    with path.open("r+b") as file:
        file.truncate(min(offset for offset, _ in members.values()) + 5)
    return folder


@pytest.fixture
def tiny():
    """The makers above, as one object."""
    class Tiny:
        sample, tar, set = staticmethod(tiny_sample), staticmethod(write_tar), staticmethod(write_set)
        width, height, hole = WIDTH, HEIGHT, HOLE

    return Tiny
