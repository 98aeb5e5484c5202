"""Running averages of the trained weights, in fp32, with clocks that count images.

Every average is ``e <- w + (e - w) * 0.5 ** (images since the last step / half life)``, once per optimizer step. During
warm-up the half life is a share of the images seen so far (the ramp-up of EDM2, arXiv 2312.02696), so that a young
average forgets the initial weights.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from sb.config import check_keys
from sb.registry import register

Weights = dict[str, Tensor]


@register("callback", "ema")
class EMA(Callback):
    """Several averages by name, of the trainable parameters only; validation runs on the ``primary`` one.

    averages: name -> ``half_life_images`` and ``warmup_share`` (the half life is at most this share of the images
    seen; default 0.05; null for a constant half life). The module holds its raw weights at all other times: they
    are put aside for validation and come back bit for bit, after an exception too, and a checkpoint taken in between
    stores them in their place. The averages never pass through the module's dtype.
    """

    def __init__(self, averages: Mapping[str, Mapping[str, Any]], primary: str):
        if primary not in averages:
            raise ValueError(f"ema: primary '{primary}' is none of the averages {', '.join(averages) or '(none)'}")
        self.primary = primary
        self._clocks: dict[str, tuple[float, float | None]] = {}
        for name, spec in averages.items():
            check_keys(f"ema: average '{name}'", spec, ("half_life_images", "warmup_share"))
            half_life, share = spec.get("half_life_images"), spec.get("warmup_share", 0.05)
            if not isinstance(half_life, (int, float)) or half_life <= 0:
                raise ValueError(f"ema: average '{name}' needs half_life_images > 0, not {half_life!r}")
            if share is not None and not (isinstance(share, (int, float)) and share > 0):
                raise ValueError(f"ema: average '{name}': warmup_share must be > 0 or null, not {share!r}")
            self._clocks[name] = (float(half_life), share)
        self._values: dict[str, Weights] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._aside: Weights | None = None
        self._restored: dict[str, Any] | None = None
        self._images = 0
        self._step = 0

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the averages: ``checkpoint["callbacks"]["ema"]``."""
        return "ema"

    @property
    def swapped(self) -> bool:
        """True while the module holds the primary average instead of its raw weights."""
        return self._aside is not None

    def values(self, name: str) -> Weights:
        """One average as fp32 tensors by parameter name."""
        if name not in self._values:
            raise ValueError(f"ema: no average '{name}'; there are: {', '.join(self._values) or 'none before fit'}")
        return dict(self._values[name])

    def raw(self) -> Weights:
        """The raw trained weights by parameter name, wherever they are at this moment."""
        return dict(self._aside) if self._aside is not None else {n: p.detach() for n, p in self._trained.items()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._settle(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._settle(pl_module)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still accumulating
            return
        self._step = trainer.global_step
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        with torch.no_grad():
            weights = [p.detach().float() for p in self._trained.values()]
            for name, (half_life, share) in self._clocks.items():
                half_life = half_life if share is None else min(half_life, share * images)
                kept = 0.5 ** ((images - self._images) / half_life)
                torch._foreach_lerp_(list(self._values[name].values()), weights, 1 - kept)
        self._images = images

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._settle(pl_module)
        if not self.swapped:
            self._aside = {name: p.detach().clone() for name, p in self._trained.items()}
            self._fill(self._values[self.primary])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._swap_back()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._aside is not None:
            checkpoint["state_dict"].update(self._aside)

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._images, "averages": {name: dict(values) for name, values in self._values.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the averages until the parameters are on their device."""
        self._restored = state_dict

    def _settle(self, pl_module: L.LightningModule) -> None:
        """Start the averages at the raw weights, or at what a checkpoint held."""
        trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        if [id(p) for p in trained.values()] != [id(p) for p in self._trained.values()]:  # not met before
            self._trained = trained
            self._values = {
                name: {n: p.detach().to(torch.float32, copy=True) for n, p in self._trained.items()}
                for name in self._clocks
            }
            self._images = int(pl_module.images_seen)  # type: ignore[arg-type]
        if self._restored is not None:
            stored = self._restored["averages"]
            if set(stored) != set(self._clocks):
                raise ValueError(
                    f"ema: the checkpoint holds the averages {', '.join(sorted(stored))} and this run asks for "
                    f"{', '.join(sorted(self._clocks))}; use the same names, or start from the weights without resuming"
                )
            for name, values in self._values.items():
                _copy_by_name(f"ema: the checkpoint's average '{name}'", stored[name], values)
            self._images, self._restored = int(self._restored["images"]), None

    def _fill(self, values: Weights) -> None:
        """Copy values into the module, by name; each takes its parameter's dtype."""
        with torch.no_grad():
            torch._foreach_copy_([p.data for p in self._trained.values()], [values[name] for name in self._trained])

    def _swap_back(self) -> None:
        if self._aside is not None:
            self._fill(self._aside)
            self._aside = None


def _copy_by_name(where: str, source: Weights, target: Weights) -> None:
    missing, extra = sorted(set(target) - set(source)), sorted(set(source) - set(target))
    if missing or extra:
        count, verb, name = (len(missing), "lacks", missing[0]) if missing else (len(extra), "has also", extra[0])
        more = f" and {count - 1} more" if count > 1 else ""
        raise ValueError(f"{where} {verb} '{name}'{more}: it belongs to another model, or other parts were trained")
    for name, value in source.items():
        if value.shape != target[name].shape:
            raise ValueError(
                f"{where}: '{name}' is {tuple(value.shape)} and the model's is {tuple(target[name].shape)}: "
                "resume with the widths of the run that wrote it"
            )
        target[name].copy_(value)
