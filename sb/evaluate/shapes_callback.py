"""The shapes world's scores as curves over images seen, while a model trains."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from sb.callbacks.board import AtValidations
from sb.evaluate.oracle import Oracle, train_oracle, vae_round_trip
from sb.evaluate.requests import Paint, make_cases, masks_at, paint_cases
from sb.evaluate.shapes import painted_of
from sb.evaluate.shapes_metrics import score
from sb.masks import Ladder
from sb.registry import register

CURVE_SEED = 1  # other scenes than an evaluation's default, so that watching the curve chooses nothing there


@register("callback", "shapes_score")
class ShapesScore(AtValidations):
    """Paints ``num_requests`` unseen scenes, with the validated weights, every ``every_images``.

    Writes ``shapes/<outline|box>/<text|shape|colour|texture|iou|occupancy>`` on rank zero. The oracle that reads the
    pictures is trained once (about half a minute on two cores) and kept as ``run_dir/oracle.safetensors``.
    """

    name = "shapes_score"

    def __init__(
        self, paint: Paint, ladder: Ladder, run_dir: Path, num_requests: int = 64, every_images: int = 20000,
        size_px: int = 64, batch: int = 64,
    ):
        self.paint, self.ladder, self.oracle_file = paint, ladder, run_dir / "oracle.safetensors"
        super().__init__(every_images)
        self.num_requests, self.size_px, self.batch = num_requests, size_px, batch

    def show(self, board: Any, pl_module: L.LightningModule, images: int) -> None:
        """Paint, score and write one point of every curve."""
        oracle = self._oracle(pl_module)
        cases = make_cases(self.num_requests, CURVE_SEED, self.size_px)
        for name, level in (("outline", 0), ("box", self.ladder.num_levels)):
            masks = masks_at(cases, self.ladder, level)
            results = paint_cases(self.paint, cases, masks, level, self.batch, f"shapes, {name}")
            scores = score(cases, painted_of(results, masks), oracle)
            for part in ("text", "shape", "colour", "texture", "iou", "occupancy"):
                value = float(getattr(scores, part).float().mean())
                board.add_scalar(f"shapes/{name}/{part}", value, global_step=images)

    def _oracle(self, pl_module: Any) -> Oracle:
        if self.oracle_file.is_file():
            return Oracle.load(self.oracle_file)
        with torch.enable_grad(), torch.inference_mode(False):
            oracle = train_oracle(vae_round_trip(pl_module.vae), size_px=self.size_px)
        oracle.save(self.oracle_file)
        return oracle
