"""How fast the run goes and what it waits for, and the samples that had to be skipped."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from sb.callbacks.board import writer
from sb.callbacks.norms import Norms
from sb.estimate import matmul_rate
from sb.registry import register

GIB, TERA = 2**30, 1e12
_DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@register("callback", "speed")
class Speed(Callback):
    """Every ``every_images``: images per second (all ranks), share of time waiting for data, seconds per batch (mean,
    median, 95th percentile, longest), peak memory, learning rate, and ``data/skipped_<reason>``: samples skipped so
    far, all ranks; after each validation ``data/val_skipped_<reason>``: those that were skipped in it. The main ones
    stand in the progress bar. On a GPU the batches are timed by its own clock, which nothing waits for in between.

    ``speed/tflops`` is per device: images/s times the FLOPs of training on one (``flops``, given at runtime: the
    denoiser's forward, as FlopCounterMode counts it, three times, and what is frozen once), ``speed/share_of_peak``
    what that is of ``peak_tflops``; null measures a large matrix product in the run's ``precision`` before training.
    Every ``norms_every_images`` (null: never): ``train/weight_norm``, and ``train/update_norm`` of that optimizer step.

    Validation and checkpoints are not counted as training time. A checkpoint between two reports holds the other
    ranks' skips up to the last report.
    """

    def __init__(
        self, every_images: int = 1000, norms_every_images: int | None = 10000, peak_tflops: float | None = None,
        flops: Callable[[], int] | None = None, precision: str = "32-true",
    ):
        for key, value in (("every_images", every_images), ("norms_every_images", norms_every_images)):
            if value is not None and value < 1:
                raise ValueError(f"speed: {key} must be at least 1, not {value}")
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"speed: peak_tflops must be above 0, not {peak_tflops:g}")
        self.every_images, self.norms_every_images, self.peak_tflops = every_images, norms_every_images, peak_tflops
        self.flops, self.dtype = flops, _DTYPES[precision]
        self._total: Counter[str] = Counter()  # over all ranks, up to the last report
        self._fresh: Counter[str] = Counter()  # on this rank since then
        self._in_validation: Counter[str] = Counter()  # on this rank, in this validation
        self._norms = Norms()
        self._flops_per_image = 0
        self._images = 0  # at the last batch
        self._step, self._stepped = 0, 0  # the last optimizer step, and the images at its end
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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and self.flops is not None:  # while the networks are whole: a strategy may share them out
            self._flops_per_image = self.flops()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images = self._stepped = int(pl_module.images_seen)  # type: ignore[arg-type]
        self._step = trainer.global_step
        if self._flops_per_image and self.peak_tflops is None:
            self.peak_tflops = matmul_rate(pl_module.device, self.dtype) / TERA
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
        if not trainer.sanity_checking:
            tags = {f"data/val_skipped_{reason}": count for reason, count in counts.items()}
            _write(trainer, int(pl_module.images_seen), tags)  # type: ignore[arg-type]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._paused = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        started = time.perf_counter()
        if not self._paused:
            self._waited += started - self._ended
        self._paused = False
        self._marks.append(self._mark(pl_module.device))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        images, every = int(pl_module.images_seen), self.norms_every_images  # type: ignore[arg-type]
        if every is not None and images // every != self._stepped // every:
            self._norms.before(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = time.perf_counter()
        self._marks.append(self._mark(pl_module.device))
        self._fresh.update(skip.reason for skip in getattr(batch, "skipped", ()))
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        crossed = images // self.every_images != self._images // self.every_images
        self._counted += images - self._images
        self._images = images
        if trainer.global_step != self._step:
            self._step, self._stepped = trainer.global_step, images
            _write(trainer, images, {f"train/{name}": value for name, value in self._norms.after().items()})
        if crossed:
            self._report(trainer, pl_module)
            self._start_window()

    def _start_window(self) -> None:
        self._waited, self._counted = 0.0, 0
        self._marks: list[Any] = []  # where each batch starts and ends

    def _mark(self, device: torch.device) -> Any:
        """This moment: of the device's own queue, where it has one."""
        if device.type != "cuda":
            return self._ended if len(self._marks) % 2 else time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self) -> list[float]:
        """Of each batch in the window, sorted; waits for the device once."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if isinstance(self._marks[0], float):
            return sorted(end - start for start, end in pairs)
        self._marks[-1].synchronize()
        return sorted(start.elapsed_time(end) / 1e3 for start, end in pairs)

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = self._seconds()
        seconds = self._waited + sum(steps)
        memory = _peak_memory(pl_module.device)
        scalars = {
            "speed/images_per_second": self._counted / seconds,
            "speed/data_wait": self._waited / seconds,
            "speed/step_seconds": sum(steps) / len(steps),
            "speed/step_p50": steps[len(steps) // 2],
            "speed/step_p95": steps[int(len(steps) * 0.95)],
            "speed/step_max": steps[-1],
            **{f"speed/{name}": size / GIB for name, size in memory.items()},
            "train/learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        names = {
            "img/s": "images_per_second", "wait": "data_wait", "s": "step_p50", "p95": "step_p95", "GiB": "memory_gib",
        }
        if self._flops_per_image and self.peak_tflops:
            rate = self._flops_per_image * scalars["speed/images_per_second"] / trainer.world_size / TERA
            scalars.update({"speed/tflops": rate, "speed/share_of_peak": rate / self.peak_tflops})
            names["peak"] = "share_of_peak"
        self._total += _over_ranks(self._fresh)
        self._fresh = Counter()
        bar = {short: scalars[f"speed/{name}"] for short, name in names.items()}
        logged = {"loss": "train/loss", "grad": "grad/norm"}
        bar |= {s: float(trainer.callback_metrics[n]) for s, n in logged.items() if n in trainer.callback_metrics}
        bar = {short: float(f"{value:.3g}") for short, value in bar.items()}
        pl_module.log_dict({**bar, "skipped": float(self._total.total())}, prog_bar=True, logger=False)
        counts = {f"data/skipped_{reason}": count for reason, count in self._total.items()}
        _write(trainer, self._images, {**scalars, **counts})


def _write(trainer: L.Trainer, images: int, scalars: dict[str, float]) -> None:
    board = writer(trainer)
    if board is None or not trainer.is_global_zero:
        return
    for tag, value in scalars.items():
        board.add_scalar(tag, value, global_step=images)


def _over_ranks(counts: Counter[str]) -> Counter[str]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, counts)
    return sum(gathered, Counter())


def _peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes at most: allocated and reserved on the GPU, else resident in this process."""
    if device.type == "cuda":
        reserved = torch.cuda.max_memory_reserved(device)
        return {"memory_gib": torch.cuda.max_memory_allocated(device), "memory_reserved_gib": reserved}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_gib": peak if sys.platform == "darwin" else peak * 1024}
