"""Checkpoints by images seen, whole or not at all, and the model folder beside them.

``run_dir/checkpoints`` holds ``last.ckpt``, ``best.ckpt`` and ``images-000100000.ckpt``. A checkpoint is written to the
side and renamed into place, so that an older one survives a full disk or a killed process.
"""

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from sb.callbacks.ema import EMA
from sb.callbacks.guard import NotFiniteError
from sb.checkpoints import FOLDER, LAST, StraightToFile, place
from sb.registry import register
from sb.sharding import whole_state

Export = Callable[[Path, dict[str, dict[str, Tensor]]], None]


class SaveError(ValueError):
    """A checkpoint could not be written; the older ones are intact."""


@register("callback", "save")
class Save(Checkpoint):
    """Writes ``last.ckpt`` every ``every_images`` and at the end, ``best.ckpt`` when ``monitor`` improves, and keeps
    ``images-N.ckpt`` every ``keep_images`` (null: none).

    Images are counted at optimizer steps, after which the module's ``images_seen`` must be complete. After each save
    ``export(run_dir/model, weights)`` writes the model folder; weights hold complete state dicts: ``raw`` and, with an
    EMA callback, ``ema``. An interrupted run of one process is saved as of its last optimizer step, unless its loss
    was not finite; with several ranks the last regular checkpoint stands, for a failing rank cannot wait for others.
    Being one of Lightning's Checkpoint callbacks it runs after all others.
    """

    def __init__(
        self,
        run_dir: str | Path,
        every_images: int,
        keep_images: int | None = None,
        monitor: str | None = "val/loss",
        mode: str = "min",
        export: Export | None = None,
    ):
        for key, value in {"every_images": every_images, "keep_images": keep_images}.items():
            if value is not None and value < 1:
                raise ValueError(f"save: {key} must be at least 1, not {value}")
        if mode not in ("min", "max"):
            raise ValueError(f"save: mode '{mode}' is neither 'min' nor 'max'")
        self.run_dir, self.every_images, self.keep_images = Path(run_dir), every_images, keep_images
        self.monitor, self.mode, self.export = monitor, mode, export
        self.best: float | None = None
        self._step = 0
        self._images: int | None = None  # at the last optimizer step; None before training
        self._saved: int | None = None  # what last.ckpt holds

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the best score: ``checkpoint["callbacks"]["save"]``."""
        return "save"

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score."""
        self.best = state_dict["best"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read and write checkpoints with ``StraightToFile``."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StraightToFile()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from here."""
        self._step, self._images = trainer.global_step, int(pl_module.images_seen)  # type: ignore[arg-type]
        self._saved = self._images  # nothing new yet

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where an interval of images ended with this optimizer step."""
        if trainer.global_step == self._step:  # half-accumulated gradients are in no checkpoint
            return
        assert self._images is not None
        before, now = self._images, int(pl_module.images_seen)  # type: ignore[arg-type]
        self._step, self._images = trainer.global_step, now
        names = [LAST] if before // self.every_images != now // self.every_images else []
        if self.keep_images is not None and before // self.keep_images != now // self.keep_images:
            names = [f"images-{now:09d}.ckpt", LAST]
        if names:
            self._save(trainer, pl_module, names)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save where this validation is the best so far."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(f"save: monitor '{self.monitor}' is not logged in validation; there is: {known}")
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "min" else -1
        better = score == score and (self.best is None or sign * score < sign * self.best)
        if trainer.strategy.broadcast(better):
            self.best = score
            self._save(trainer, pl_module, ["best.ckpt"])

    def save_now(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what is new since the last save, and the model folder; called on all ranks after an optimizer step."""
        self.on_train_batch_end(trainer, pl_module, None, None, 0)  # where this step has not been counted yet
        if trainer.validating:  # resume with training, not in the middle of a validation
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
        self._save(trainer, pl_module, [LAST] if self._saved != self._images else [])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what is new, and the model folder in any case: the last validation may have measured the VAE anew."""
        self.save_now(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save an interrupted run as of its last optimizer step."""
        nothing_new = self._images is None or self._saved == self._images
        if nothing_new or trainer.world_size > 1 or isinstance(exception, (NotFiniteError, SaveError)):
            return
        pl_module.images_seen = self._images  # type: ignore[assignment]
        if trainer.validating:  # resume with training, not in the middle of a validation
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset()
        try:
            self._save(trainer, pl_module, [LAST])
        except (ValueError, RuntimeError) as error:
            rank_zero_warn(f"the interrupted run could not be saved: {error}")

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, names: list[str]) -> None:
        """One checkpoint under each of the names, then the model folder; called on all ranks, which fail together."""
        folder, model = self.run_dir / FOLDER, self.run_dir / "model"
        aside, target = folder / ".writing.ckpt", folder / names[-1] if names else model
        failed: Exception | None = None
        if names:
            trainer.save_checkpoint(aside, weights_only=False)
            failed = getattr(trainer.strategy.checkpoint_io, "failed", None)
        weights = {} if self.export is None else _weights(trainer, pl_module)
        if trainer.is_global_zero and failed is None:
            try:
                if names:
                    place(aside, folder, names)
                if self.export is not None:
                    self.export(model, weights)
            except (OSError, RuntimeError, ValueError) as error:
                failed = error
        line = trainer.strategy.broadcast(None if failed is None else _explain(target, failed))
        if line is not None:
            raise SaveError(line) from failed
        if LAST in names:
            self._saved = self._images


def _weights(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, dict[str, Tensor]]:
    """Complete state dicts by name; the averages are fp32. On all ranks; rank zero has them all."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
    state = whole_state(pl_module, trainer.is_global_zero)
    return {"raw": state} if ema is None else {"ema": state | ema.values(ema.primary), "raw": state | ema.raw()}


def _explain(path: Path, error: BaseException) -> str:
    short = "inline_container" in str(error)  # torch.save's way to say that fewer bytes were written than it gave
    full = short or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    with suppress(OSError):
        free = shutil.disk_usage(path.parent).free / 2**30
        if full:
            return f"the disk is full: cannot write {path} ({free:.1f} GiB free); the older checkpoints are intact"
    return f"cannot write {path}: {error}; the older checkpoints are intact"
