"""Pictures on TensorBoard: the writer behind a trainer, tinted masks, and grids of cells."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

GAP_PX = 2
PAINT = (255, 64, 32)  # what a mask is shown in


def writer(trainer: L.Trainer) -> Any:
    """The SummaryWriter of the run's TensorBoard logger; None without one (a silent dummy on other ranks)."""
    experiment = getattr(trainer.logger, "experiment", None)
    return experiment if hasattr(experiment, "add_image") else None


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
