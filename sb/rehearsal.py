"""A run's first moments in small: its batches, how fast they are read, and one whole training step on one process."""

import logging
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from sb.data.pipeline import Failure, TrainStream
from sb.types import Batch


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's remarks, and without warnings."""
    chatter = logging.getLogger("lightning.pytorch")
    before = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.setLevel(before)


@dataclass
class Step:
    """What one training step showed: its loss, seconds, and the most bytes held (of the device, or the process)."""

    loss: float = float("nan")
    seconds: float = float("nan")
    peak: int = 0


def batches(data: Any) -> Iterator[Batch]:
    """The run's first batches, read in this process. ValueError where a sample cannot be had."""
    for item in TrainStream(data.samples("train"), data.batch_size):
        if isinstance(item, Failure):
            raise ValueError(item.message)
        yield item.batch()


def reading_rate(data: Any, seconds: float) -> float:
    """Images/s of one reader, over at least this long and two batches; the first batch warms up."""
    stream = batches(data)
    next(stream)
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds or not count:
        count += len(next(stream))
    return count / took


class _Watch(L.Callback):
    """Keeps the last step's loss and seconds."""

    def __init__(self, seen: Step):
        self.seen, self.began = seen, 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.seen.loss = float(outputs["loss"])  # waits for the device
        self.seen.seconds = time.perf_counter() - self.began


def step(run: Any, data: Any, device: torch.device, precision: str, clip: float | None) -> Step:
    """Two training steps on the run's first batch, the first to warm up: forward, backward, optimizer.

    One process, without the run's strategy, callbacks and logs. The weights move.
    """
    seen = Step()
    batch = next(batches(data))
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    trainer = L.Trainer(
        accelerator="gpu" if on_gpu else "cpu", devices=[device.index] if on_gpu else 1, num_nodes=1,
        precision=precision, max_steps=2, gradient_clip_val=clip, logger=False,  # type: ignore[arg-type]
        callbacks=[_Watch(seen)], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[LightningEnvironment()], use_distributed_sampler=False,
    )
    trainer.fit(run.system, DataLoader([batch, batch], batch_size=None))  # type: ignore[arg-type]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seen.peak = torch.cuda.max_memory_allocated(device) if on_gpu else resident
    return seen
