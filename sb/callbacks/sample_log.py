"""Sheets of finished pictures for fixed requests, so that two moments of a run can be compared by eye."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sb.callbacks.board import AtValidations, grid, tinted
from sb.registry import register
from sb.types import Request, Result

Paint = Callable[[list[Request]], list[Result]]


@register("callback", "sample_log")
class SampleLog(AtValidations):
    """Paints fixed requests with the weights that are validated and writes one sheet per task to TensorBoard.

    A row is one request: input, user's mask, predicted mask (black without a mask head), result; the texts stand
    beside it under ``samples/<task>/text``. At most once in ``every_images`` images, at the end of a validation, on
    rank zero. ``paint`` and ``requests`` (task -> requests) are given at runtime.
    """

    name = "sample_log"

    def __init__(self, paint: Paint, requests: Mapping[str, Sequence[Request]], every_images: int = 0):
        super().__init__(every_images)
        self.paint, self.requests = paint, requests

    def show(self, board: Any, pl_module: L.LightningModule, images: int) -> None:
        """One sheet and one table of texts per task."""
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
