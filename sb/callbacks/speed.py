"""How fast the run goes and what it waits for, and the samples that had to be skipped."""

import resource
import sys
import time
from collections import Counter
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from sb.callbacks.board import writer
from sb.registry import register

GIB = 2**30


@register("callback", "speed")
class Speed(Callback):
    """Every ``every_images``: images per second (all ranks), share of time waiting for data, seconds per batch,
    peak memory (of the GPU, else of this process), and ``data/skipped_<reason>``: samples skipped so far, all ranks;
    after each validation ``data/val_skipped_<reason>``: those that were skipped in it.

    Validation and checkpoints are not counted as training time. A checkpoint between two reports holds the other
    ranks' skips up to the last report.
    """

    def __init__(self, every_images: int = 1000):
        if every_images < 1:
            raise ValueError(f"speed: every_images must be at least 1, not {every_images}")
        self.every_images = every_images
        self._total: Counter[str] = Counter()  # over all ranks, up to the last report
        self._fresh: Counter[str] = Counter()  # on this rank since then
        self._in_validation: Counter[str] = Counter()  # on this rank, in this validation
        self._images = 0
        self._paused = True
        self._ended = 0.0
        self._start_window()

    @property
    def state_key(self) -> str:
        return "speed"

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": dict(self._total + self._fresh)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total, self._fresh = Counter(state_dict["skipped"]), Counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images = int(pl_module.images_seen)  # type: ignore[arg-type]
        self._paused = True
        self._start_window()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = True
        self._in_validation = Counter()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._in_validation.update(skip.reason for skip in getattr(batch, "skipped", ()))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = _over_ranks(self._in_validation)
        board = writer(trainer)
        if board is None or not trainer.is_global_zero or trainer.sanity_checking:
            return
        for reason, count in counts.items():
            board.add_scalar(f"data/val_skipped_{reason}", count, global_step=pl_module.images_seen)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._paused = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()
        if not self._paused:
            self._waited += self._started - self._ended
        self._paused = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = time.perf_counter()
        self._worked += self._ended - self._started
        self._batches += 1
        self._fresh.update(skip.reason for skip in getattr(batch, "skipped", ()))
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        crossed = images // self.every_images != self._images // self.every_images
        self._counted += images - self._images
        self._images = images
        if crossed:
            self._report(trainer, pl_module)
            self._start_window()

    def _start_window(self) -> None:
        self._waited = self._worked = 0.0
        self._counted = self._batches = 0

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = self._waited + self._worked
        speed, waiting = self._counted / seconds, self._waited / seconds
        pl_module.log_dict({"img/s": speed, "wait": waiting}, prog_bar=True, logger=False)
        self._total += _over_ranks(self._fresh)
        self._fresh = Counter()
        board = writer(trainer)
        if board is None or not trainer.is_global_zero:
            return
        scalars = {
            "speed/images_per_second": speed,
            "speed/data_wait": waiting,
            "speed/step_seconds": self._worked / self._batches,
            "speed/memory_gib": _peak_memory(pl_module.device) / GIB,
            **{f"data/skipped_{reason}": count for reason, count in self._total.items()},
        }
        for tag, value in scalars.items():
            board.add_scalar(tag, value, global_step=self._images)


def _over_ranks(counts: Counter[str]) -> Counter[str]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, counts)
    return sum(gathered, Counter())


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU at most, else resident in this process at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
