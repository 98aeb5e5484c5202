"""How well the mask head finds the object, by how precise the user's mask was and by how much noise there is.

Legend: B batch, k mask channels, h w latent cells, H W pixels, S the ladder's last level.
"""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sb.callbacks.board import grid, tinted, writer
from sb.masks import head_to_pixels
from sb.registry import register

BANDS = ("low", "mid_low", "mid_high", "high")  # of noise, equal shares of the schedule


@register("callback", "mask_log")
class MaskLog(Callback):
    """Logs ``mask/iou`` and ``mask/dice`` over the validation samples that have an object (all ranks), also as
    ``_level_0`` ... ``_level_S`` and ``_band_low`` ... ``_band_high``, and pictures of the first ``num_images``.

    IoU is of the thresholded prediction at pixel resolution against the outline; dice is one minus the soft DICE
    loss at the head's own resolution. The pictures are, from the left: input, user's mask, predicted mask, target.
    """

    def __init__(self, num_images: int = 8, threshold: float = 0.5):
        self.num_images, self.threshold = num_images, threshold
        self._sums: Tensor | None = None  # (3, 1 + S + 1 + bands): sum of iou, sum of dice, samples

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs.get("predicted") is None:
            return
        predicted = outputs["predicted"].float()
        pixels = head_to_pixels(predicted, batch.outline.shape[-1] // predicted.shape[-1])  # (B, 1, H, W)
        found, outline = pixels > self.threshold, batch.outline.bool()
        union = (found | outline).flatten(1).sum(1).clamp(min=1)
        iou = (found & outline).flatten(1).sum(1) / union  # (B,)
        bins = self._bins(pl_module, outputs, batch.level)  # (B, n)
        rows = torch.stack([iou, 1 - outputs["dice_each"].float(), torch.ones_like(iou)])  # (3, B)
        sums = rows @ bins
        self._sums = sums if self._sums is None else self._sums + sums
        if batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking:
            self._show(trainer, pl_module, outputs, batch, pixels)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._sums is None:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        levels = sums.shape[1] - 1 - len(BANDS)
        names = ["", *(f"_level_{level}" for level in range(levels)), *(f"_band_{band}" for band in BANDS)]
        for name, (iou, dice, count) in zip(names, sums.t().cpu().tolist(), strict=True):
            if count:
                scores = {f"mask/iou{name}": iou / count, f"mask/dice{name}": dice / count}
                pl_module.log_dict(scores, batch_size=1, sync_dist=True)

    def _bins(self, pl_module: Any, outputs: Any, level: Tensor) -> Tensor:
        """Which averages each sample counts in (B, 1 + levels + bands): all zero for one without an object."""
        band = outputs["t"] * len(BANDS) // len(pl_module.schedule)
        columns = [
            torch.ones_like(level)[:, None],
            F.one_hot(level, pl_module.ladder.num_levels + 1),
            F.one_hot(band.to(level.device), len(BANDS)),
        ]
        return torch.cat(columns, dim=1).float() * outputs["has_object"].float()[:, None]

    def _show(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, pixels: Tensor) -> None:
        board = writer(trainer)
        if board is None or not trainer.is_global_zero:
            return
        chosen = outputs["has_object"].nonzero().flatten()[: self.num_images].tolist()
        images = batch.image[chosen] if batch.image is not None else pl_module.pictures(batch, chosen)
        rows = []
        for i, image in zip(chosen, images, strict=True):
            shown = (outputs["mask"][i], pixels[i], batch.outline[i])
            rows.append([image, *(tinted(image, mask) for mask in shown)])
        if rows:
            board.add_image("mask/input_user_predicted_target", grid(rows), global_step=pl_module.images_seen)
