"""Sheets of finished pictures for fixed requests, so that two moments of a run can be compared by eye."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sb.callbacks.board import grid, tinted, writer
from sb.registry import register
from sb.types import Request, Result

Paint = Callable[[list[Request]], list[Result]]


@register("callback", "sample_log")
class SampleLog(Callback):
    """Paints fixed requests with the weights that are validated and writes one sheet per task to TensorBoard.

    A row is one request: input, user's mask, predicted mask (black without a mask head), result; the texts stand
    beside it under ``samples/<task>/text``. At most once in ``every_images`` images, at the end of a validation, on
    rank zero. ``paint`` and ``requests`` (task -> requests) are given at runtime; no random state is disturbed.
    """

    def __init__(self, paint: Paint, requests: Mapping[str, Sequence[Request]], every_images: int = 0):
        self.paint, self.requests, self.every_images = paint, requests, every_images
        self._last: int | None = None

    @property
    def state_key(self) -> str:
        return "sample_log"

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = state_dict["last"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        if trainer.sanity_checking or (self._last is not None and images - self._last < self.every_images):
            return
        self._last = images
        board = writer(trainer)
        if board is None or not trainer.is_global_zero:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for task, requests in self.requests.items():
                results = self.paint(list(requests))
                rows = [_row(request, result) for request, result in zip(requests, results, strict=True)]
                board.add_image(f"samples/{task}", grid(rows), global_step=images)
                board.add_text(f"samples/{task}/text", _table(requests), global_step=images)


def _row(request: Request, result: Result) -> list[Tensor]:
    predicted = torch.zeros_like(request.mask).float() if result.predicted is None else result.predicted
    seen = (predicted.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    return [request.image, tinted(request.image, request.mask), seen, result.pixels]


def _table(requests: Sequence[Request]) -> str:
    lines = [f"| {i} | {r.text or '(none)'} | {r.level:g} | {r.seed} |" for i, r in enumerate(requests, 1)]
    return "\n".join(["| row | text | level | seed |", "|---|---|---|---|", *lines])
