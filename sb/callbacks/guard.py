"""Stops a run that has gone wrong: losses or gradients that are not finite, and too many broken samples."""

import math
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from sb.registry import register
from sb.sharding import total_norm

NAMED = 8  # batch keys shown in a message
CHECK_BATCHES = 16  # between two looks at the skipped samples of all ranks


class NotFiniteError(ValueError):
    """The weights of this moment are suspect: nothing should be saved over older ones."""


class Ledger(Protocol):
    """Counts skipped samples; ``gather`` adds up all ranks, ``check`` raises ValueError where they are too many."""

    def add(self, batch: Any) -> None: ...
    def gather(self) -> None: ...
    def check(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@register("callback", "guard")
class Guard(Callback):
    """Logs ``grad/norm`` (before clipping), drops steps that are not finite, and stops after ``patience`` in a row.

    The test is on the reduced gradient's norm, the same on every rank, so that all ranks drop or stop together; a
    loss that is not finite shows there. Weights are never touched by a bad step. While fp16's loss scale is on its way
    down, steps that are not finite are its own business: the scaler drops them. ``ledger`` is given at runtime; every
    16 batches the skips of all ranks are added up, so that all ranks stop or none does.
    """

    def __init__(self, patience: int = 3, ledger: Ledger | None = None):
        if patience < 1:
            raise ValueError(f"guard: patience must be at least 1 step, not {patience}")
        self.patience, self.ledger = patience, ledger
        self._bad = 0
        self._step = 0
        self._loss: Tensor | None = None
        self._keys: list[str] = []

    @property
    def state_key(self) -> str:
        return "guard"

    def state_dict(self) -> dict[str, Any]:
        return {} if self.ledger is None else {"skipped": self.ledger.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.ledger is not None and "skipped" in state_dict:
            self.ledger.load_state_dict(state_dict["skipped"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._keys = list(getattr(batch, "key", ()))
        if self.ledger is None:
            return
        self.ledger.add(batch)
        if (batch_idx + 1) % CHECK_BATCHES == 0:  # the same on every rank
            self.ledger.gather()
            self.ledger.check()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:  # DeepSpeed keeps them to itself
            return
        norm = total_norm(gradients)
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("grad/norm", norm)
        pl_module.gradient_norm = norm  # for clipping, which need not measure it again
        if not self._judge(trainer, pl_module, float(norm)):  # the one moment at which the host waits for the device
            for parameter in parameters:
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """DeepSpeed measures the norm, and drops steps that are not finite, by itself."""
        measured = getattr(trainer.model, "get_global_grad_norm", None)
        norm = measured() if measured is not None and trainer.global_step != self._step else None
        self._step = trainer.global_step
        if norm is not None:
            if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                pl_module.log("grad/norm", float(norm))
            self._judge(trainer, pl_module, float(norm))

    def _judge(self, trainer: L.Trainer, pl_module: L.LightningModule, norm: float) -> bool:
        """Whether the step may be taken; NotFiniteError where too many in a row may not."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if math.isfinite(norm):
            self._bad = 0
            return True
        if scaler is not None and scaler.get_scale() > 1:
            return True
        self._bad += 1
        loss = "unknown" if self._loss is None else f"{float(self._loss):.4g}"
        line = (
            f"loss or gradient is not finite at step {trainer.global_step}, {getattr(pl_module, 'images_seen', '?')} "
            f"images: loss {loss}, gradient norm {norm:.4g}; last batch: {_few(self._keys)}"
        )
        if self._bad >= self.patience:
            raise NotFiniteError(
                f"{line}; {self._bad} in a row: stopped. Lower the learning rate, or look at these samples"
            )
        rank_zero_warn(f"{line}; step skipped ({self._bad} of {self.patience})")
        return False


def _few(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return (", ".join(keys[:NAMED]) or "without keys") + more
