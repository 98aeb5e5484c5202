"""Pictures on TensorBoard: the writer behind a trainer, tinted masks, and grids of cells."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sb.sharding import is_sharded

GAP_PX = 2
PAINT = (255, 64, 32)  # what a mask is shown in


def writer(trainer: L.Trainer) -> Any:
    """The SummaryWriter of the run's TensorBoard logger; None without one (a silent dummy on other ranks)."""
    experiment = getattr(trainer.logger, "experiment", None)
    return experiment if hasattr(experiment, "add_image") else None


class AtValidations(Callback):
    """Base of what is shown at validations, on rank zero, by the validated weights: the first one, and each by which
    another ``every_images`` are complete. Where the weights lie in parts, all ranks do the same and one writes.

    Subclasses say what in ``show``; no random state is disturbed, no gradient kept. ``name`` is the checkpoint's key.
    """

    name: str

    def __init__(self, every_images: int):
        if every_images < 1:
            raise ValueError(f"{self.name}: every_images must be at least 1, not {every_images}")
        self.every_images = every_images
        self._last: int | None = None

    @property
    def state_key(self) -> str:
        return self.name

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = state_dict["last"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        shown = self._last is not None and images // self.every_images == self._last // self.every_images
        if trainer.sanity_checking or shown:
            return
        self._last = images
        board = writer(trainer)
        if board is None or not (trainer.is_global_zero or is_sharded(pl_module)):
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            self.show(board, pl_module, images)

    @abstractmethod
    def show(self, board: Any, pl_module: L.LightningModule, images: int) -> None:
        """Write to the board, at ``global_step=images``."""


def tinted(image: Tensor, mask: Tensor) -> Tensor:
    """The picture (3, H, W) uint8 with a mask or probability (1, H, W) painted over it, half transparent."""
    weight = mask.float().clamp(0, 1) * 0.6
    colour = torch.tensor(PAINT, device=image.device).view(3, 1, 1)
    return (image.float() * (1 - weight) + colour * weight).round().to(torch.uint8)


def grid(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of (3, h, w) uint8 cells of any sizes -> one (3, H, W) uint8 picture on the CPU, white between cells."""
    height = max(cell.shape[1] for row in rows for cell in row) + GAP_PX
    width = max(cell.shape[2] for row in rows for cell in row) + GAP_PX

    def placed(cell: Tensor) -> Tensor:
        return F.pad(cell.cpu(), (0, width - cell.shape[2], 0, height - cell.shape[1]), value=255)

    return torch.cat([torch.cat([placed(cell) for cell in row], dim=2) for row in rows], dim=1)
