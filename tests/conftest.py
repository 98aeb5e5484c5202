"""Fixtures for every test: one thread, fixed seeds, a registry that forgets what a test adds,
and tiny shard sets, sound and broken, written with webdataset itself."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests compare digits, and run beside each other

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import webdataset  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402

from sb import registry  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def seeded():
    """Whatever a test draws without a generator is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def own_registry():
    """Entries that the test registers are gone after it; built-in ones that it was the first to import stay."""
    yield
    for entries in registry._TABLE.values():
        for name in [n for n, entry in entries.items() if not entry.__module__.startswith("sb.")]:
            del entries[name]


@pytest.fixture(scope="session")
def shapes_shards(tmp_path_factory):
    """A small shapes world in shards: {"train": folder, "val": folder}, 32 px scenes."""
    from sb.data.shapes import ShapesSource
    from sb.data.write import build_shards

    root = tmp_path_factory.mktemp("shapes")
    for split, images in (("train", 96), ("val", 16)):
        build_shards(ShapesSource(images, size_px=32, split=split), root / split, images_per_shard=32)
    return {"train": str(root / "train"), "val": str(root / "val")}


TINY = [  # overrides that make any run file of ours a matter of seconds
    "image_size=32", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true",
    "trainer.progress_bar=false", "data.batch_size=4", "data.workers=0", "data.val_images=8", "data.max_area=1.0",
    "data.min_area=0.0",
]


SMALL = [  # networks of a run file on the shapes world, too small to learn
    "vae.widths=8", "vae.blocks=1", "vae.weights=null", "denoiser.widths=[16,32]", "denoiser.blocks=1",
    "denoiser.attention=[false,true]", "denoiser.heads=2", "denoiser.groups=8",
    "text={name: tiny, width: 16, layers: 1, heads: 2}", "callbacks.ema.every_images=0",
]


@pytest.fixture(scope="session")
def tiny_settings(shapes_shards):
    """Overrides that shrink a run file and point it at the small shapes world."""
    return [*TINY, *(f"data.{split}=[{{shards: {shapes_shards[split]}}}]" for split in ("train", "val"))]


@pytest.fixture
def tiny_overrides(tiny_settings, tmp_path):
    """The same with a folder of their own and two steps."""
    return [*tiny_settings, f"run_dir={tmp_path}/run", "trainer.images=8", "trainer.val_every_images=8"]


@pytest.fixture(scope="session")
def trained_model(shapes_shards, tmp_path_factory):
    """A run folder of the quickstart's model at tiny widths, its tiny VAE of two widths, after two steps."""
    from sb.assemble import assemble
    from sb.config import CONFIGS, load

    folder = tmp_path_factory.mktemp("trained") / "run"
    run = assemble(load(CONFIGS / "quickstart.yaml", [
        "image_size=32", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.progress_bar=false",
        "data.batch_size=4", "data.workers=0", "data.val_images=4", "trainer.images=8", "trainer.val_every_images=8",
        "vae={name: tiny, latent_channels: 4, stages: 2, widths: [8, 8, 16], blocks: 1, weights: null}",
        "denoiser.blocks=1",
        "denoiser.widths=[16,32]", "denoiser.attention=[false,true]", "denoiser.heads=2", "denoiser.groups=8",
        "text={name: tiny, width: 16, layers: 1, heads: 2}", f"run_dir={folder}", "callbacks.ema.every_images=0",
        f"data.train=[{{shards: {shapes_shards['train']}}}]", f"data.val=[{{shards: {shapes_shards['val']}}}]",
    ]))
    run.fit()
    return folder


@pytest.fixture(scope="session")
def small_run_file(tiny_settings):
    """configs/quickstart.yaml on small networks and the small shapes world, with overrides."""
    from sb import config

    return lambda *overrides: config.load(ROOT / "configs" / "quickstart.yaml", [*SMALL, *tiny_settings, *overrides])


@pytest.fixture(scope="session")
def train():
    """The training command on small networks, as a user starts it: overrides of configs/quickstart.yaml -> finished."""

    def run(*overrides: str, timeout: float = 280, plugins: str = "") -> subprocess.CompletedProcess:
        paths = [str(ROOT), *([str(ROOT / "tests")] if plugins else [])]
        return subprocess.run(
            [sys.executable, "tools/train.py", "configs/quickstart.yaml", *SMALL, f"plugins=[{plugins}]", *overrides],
            cwd=ROOT, capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(paths)},
        )

    return run


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
