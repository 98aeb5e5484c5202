"""How fast the loader is beside a bare loop over the same samples: what order, tasks, collation and workers cost."""

import copy
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sb.data.collate import Sample
from sb.data.crop import Crop, Frame, crop_image, crop_outline, enough_pixels
from sb.data.decode import decode_image, decode_mask
from sb.data.index import is_remote, read_index
from sb.data.pipeline import Look, Samples, ShardLoader, TrainStream
from sb.data.schema import IMAGE_EXTENSIONS
from sb.data.shards import RawSample, ShardStore
from sb.data.tasks import ObjectTask, TaskContext

SEED = 0
WARM_BATCHES = 2
LEVELS = 6


@dataclass
class Job:
    """What the bare loop does for one sample, decided beforehand: where its bytes lie, which object, which square."""

    tar: str
    image: tuple[int, int]
    record: tuple[int, int]
    instance: str
    frame: Frame
    key: str


class _Recorder(Samples):
    """Samples that remember which stored sample, object and frame each one came from."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made: list[tuple[str, str, Frame, str]] = []

    def _make(self, raw: RawSample, task: int, rng: np.random.Generator) -> Sample:
        before = copy.deepcopy(rng)
        sample = super()._make(raw, task, rng)
        _, plan, frame = self.plan(raw, task, before)
        assert plan.instance is not None
        self.made.append((raw.name, plan.instance["id"], frame, sample.key))
        return sample


def benchmark_loader(
    shards: list[str], *, size_px: int = 128, batch_size: int = 32, workers: int = 1, images: int = 1024,
    passes: int = 5, report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Images per second of the loader, of the bare loop and of decoding alone, by alternated passes; and their ratios.

    Every pass sees the same ``images`` samples of the object task (rounded to whole batches). The median over
    passes of the loader's speed divided by the bare loop's, pass by pass, is ``ratio``.
    """
    batches = max(images // batch_size, 1)
    arguments = (
        [ShardStore(shards)], [1.0], [ObjectTask(TaskContext([1.0] * LEVELS))], [1.0],
        Look(size_px, Crop()), SEED,
    )
    if any(is_remote(shard.address) for shard in arguments[0][0].shards):
        raise ValueError("benchmark: give local shards, so that the bare loop can read the same files")
    jobs = _jobs(_Recorder(*arguments), (WARM_BATCHES + batches) * batch_size)[WARM_BATCHES * batch_size:]
    samples = Samples(*arguments)
    speeds: dict[str, list[float]] = {"bare": [], "loader": [], "decode": []}
    for number in range(passes):
        speeds["bare"].append(len(jobs) / _bare_pass(jobs, size_px))
        speeds["loader"].append(len(jobs) / _loader_pass(samples, batches, batch_size, workers, jobs))
        speeds["decode"].append(len(jobs) / _decode_pass(jobs, size_px))
        latest = ", ".join(f"{name} {speed[-1]:.0f}" for name, speed in speeds.items())
        report(f"pass {number + 1}: {latest} images/s")
    result = {name: statistics.median(speed) for name, speed in speeds.items()}
    result["ratio"] = statistics.median(a / b for a, b in zip(speeds["loader"], speeds["bare"], strict=True))
    result["decode_ratio"] = statistics.median(a / b for a, b in zip(speeds["loader"], speeds["decode"], strict=True))
    return result


def _jobs(recorder: _Recorder, count: int) -> list[Job]:
    for j in range(count):
        recorder.sample(j)
    members = _members(recorder.stores[0])
    jobs = []
    for name, instance, frame, key in recorder.made:
        tar, places = members[name]
        image = places[next(e for e in IMAGE_EXTENSIONS if e in places)]
        jobs.append(Job(tar, tuple(image), tuple(places["json"]), instance, frame, key))
    return jobs


def _members(store: ShardStore) -> dict[str, tuple[str, Mapping[str, Any]]]:
    return {
        f"{shard.name}/{sample['key']}": (shard.address, sample["members"])
        for shard in store.shards
        for sample in read_index(shard.address)["samples"]
    }


def _bare_pass(jobs: list[Job], size_px: int) -> float:
    """Seconds to read, parse, decode, crop, resize and decode the RLE of every job, in this process."""
    files = {tar: os.open(tar, os.O_RDONLY) for tar in {job.tar for job in jobs}}
    began = time.perf_counter()
    for job in jobs:
        image, body = (os.pread(files[job.tar], size, offset) for offset, size in (job.image, job.record))
        record = json.loads(body)
        width, height = record["width"], record["height"]
        instance = next(i for i in record["instances"] if i["id"] == job.instance)
        picture = decode_image(image, width, height, enough_pixels(width, height, job.frame, size_px))
        crop_image(picture, width, height, job.frame, size_px)
        crop_outline(decode_mask(instance["mask"], width, height), job.frame, size_px)
    seconds = time.perf_counter() - began
    for file in files.values():
        os.close(file)
    return seconds


def _decode_pass(jobs: list[Job], size_px: int) -> float:
    """Seconds to decode every job's image, its bytes in memory, no smaller than the crop needs."""
    work = []
    for job in jobs:
        with Path(job.tar).open("rb") as file:
            file.seek(job.image[0])
            body = file.read(job.image[1])
        width, height = Image.open(io.BytesIO(body)).size
        work.append((body, width, height, enough_pixels(width, height, job.frame, size_px)))
    began = time.perf_counter()
    for arguments in work:
        decode_image(*arguments)
    return time.perf_counter() - began


def _loader_pass(samples: Samples, batches: int, batch_size: int, workers: int, jobs: list[Job]) -> float:
    """Seconds for the loader to hand over the jobs' batches, after a warm-up; refuses to time other samples."""
    loader = iter(ShardLoader(TrainStream(samples, batch_size), lambda: 0, workers=workers))
    for _ in range(WARM_BATCHES):
        next(loader)
    keys: list[str] = []
    began = time.perf_counter()
    for _ in range(batches):
        keys += next(loader).key
    seconds = time.perf_counter() - began
    loader.close()  # type: ignore[attr-defined]  # ends the workers
    assert keys == [job.key for job in jobs]
    return seconds
