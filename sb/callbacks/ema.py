"""Running averages of the trained weights, in fp32, with clocks that count images.

Every average is ``e <- w + (e - w) * 0.5 ** (images since the last update / half life)``, at every optimizer step.
During warm-up the half life is a share of the images seen so far (the ramp-up of EDM2, arXiv 2312.02696), so that a
young average forgets the initial weights. Each rank averages the part of the weights that it trains (``sharding``), so
an update needs no exchange under any strategy.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sb.config import check_keys
from sb.registry import register
from sb.sharding import Part, shape_of, trained_parts, whole_values

Weights = dict[str, Tensor]


class _Clock(NamedTuple):
    """When an average starts, and how fast it forgets: half life in images, at most ``share`` of those seen."""

    half_life: float
    share: float | None
    start: float

    def kept(self, images: int, since: int) -> float:
        """What is left of the average after ``since`` images up to ``images``; nothing before it starts."""
        half_life = self.half_life if self.share is None else min(self.half_life, self.share * images)
        return 0.0 if images < self.start else 0.5 ** (since / half_life)


@register("callback", "ema")
class EMA(Callback):
    """Several averages by name, of the trainable parameters only; validation runs on the ``primary`` one.

    averages: name -> ``half_life_images``, ``warmup_share`` (the half life is at most this share of the images seen;
    default 0.05; null for a constant half life) and ``start_images`` (until then it is the weights themselves; default
    0). every_images: images between two updates; 0 for every optimizer step. device: ``cpu`` keeps the averages in
    host memory, where updates are slow and want to be rare; null where the weights are.

    The module holds its raw weights at all other times: they are put aside for validation and come back bit for bit,
    after an exception too, and a checkpoint taken in between stores them in their place. The averages never pass
    through the module's dtype. ``values`` and ``state_dict`` are called on all ranks.
    """

    def __init__(
        self, averages: Mapping[str, Mapping[str, Any]], primary: str, every_images: int = 0, device: str | None = None
    ):
        if primary not in averages:
            raise ValueError(f"ema: primary '{primary}' is none of the averages {', '.join(averages) or '(none)'}")
        if every_images < 0 or device not in (None, "cpu"):
            raise ValueError(f"ema: needs every_images >= 0 and device cpu or null, not {every_images} and {device}")
        self.primary, self.every_images, self.device = primary, every_images, device
        self._clocks: dict[str, _Clock] = {}
        for name, spec in averages.items():
            check_keys(f"ema: average '{name}'", spec, ("half_life_images", "warmup_share", "start_images"))
            half_life, share = spec.get("half_life_images"), spec.get("warmup_share", 0.05)
            start = spec.get("start_images", 0)
            if not isinstance(half_life, (int, float)) or half_life <= 0:
                raise ValueError(f"ema: average '{name}' needs half_life_images > 0, not {half_life!r}")
            if share is not None and not (isinstance(share, (int, float)) and share > 0):
                raise ValueError(f"ema: average '{name}': warmup_share must be > 0 or null, not {share!r}")
            if not isinstance(start, (int, float)) or start < 0:
                raise ValueError(f"ema: average '{name}': start_images must be >= 0, not {start!r}")
            self._clocks[name] = _Clock(float(half_life), share, float(start))
        self._values: dict[str, Weights] = {}
        self._parts: dict[str, Part] = {}
        self._aside: Weights | None = None
        self._restored: dict[str, Any] | None = None
        self._images = 0  # at the last update
        self._step = 0
        self._fresh = True  # neither restored nor updated
        self._keep = True  # whether this rank writes checkpoints

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the averages: ``checkpoint["callbacks"]["ema"]``."""
        return "ema"

    @property
    def swapped(self) -> bool:
        """True while the module holds the primary average instead of its raw weights."""
        return self._aside is not None

    def values(self, name: str) -> Weights:
        """One average as whole fp32 tensors by parameter name; on rank zero where they lie in parts."""
        if name not in self._values:
            raise ValueError(f"ema: no average '{name}'; there are: {', '.join(self._values) or 'none before fit'}")
        return whole_values(self._parts, self._values[name], self._keep)

    def raw(self) -> Weights:
        """The raw trained weights by parameter name, wherever they are at this moment; like ``values``."""
        parts = {name: part.values() for name, part in self._parts.items()}
        return whole_values(self._parts, parts if self._aside is None else {**parts, **self._aside}, self._keep)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._keep = trainer.is_global_zero
        self._settle(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._restored is None and self._fresh:  # some strategies restore weights behind on_fit_start
            self._parts = {}
        self._settle(pl_module)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still accumulating
            return
        self._step = trainer.global_step
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        if images - self._images < self.every_images:
            return
        self._fresh = False
        with torch.no_grad():
            weights = [p.values().to(self.device, torch.float32) for p in self._parts.values()]
            for name, clock in self._clocks.items():
                kept = clock.kept(images, images - self._images)
                torch._foreach_lerp_(list(self._values[name].values()), weights, 1 - kept)
        self._images = images

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._settle(pl_module)
        if not self.swapped:
            self._aside = {
                name: part.values().clone() for name, part in self._parts.items() if not part.own_copy
            }
            self._show(self._values[self.primary])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.world_size == 1:
            self._swap_back()
        elif self._aside is not None:  # perhaps of this rank alone: only what needs no other
            for name, value in self._aside.items():
                self._parts[name].show(value)
            self._aside = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._aside:
            checkpoint["state_dict"].update(self.raw())

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._images, "averages": {name: self.values(name) for name in self._values}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the averages until the parameters are on their device."""
        self._restored = state_dict

    def _settle(self, pl_module: L.LightningModule) -> None:
        """Start the averages at the raw weights, or at what a checkpoint held."""
        parts = trained_parts(pl_module)
        if [id(p.parameter) for p in parts.values()] != [id(p.parameter) for p in self._parts.values()]:  # not met yet
            self._parts = parts
            self._values = {
                name: {
                    n: p.values().to(self.device, torch.float32, copy=True) for n, p in self._parts.items()
                }
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
                self._load(f"ema: the checkpoint's average '{name}'", stored[name], values)
            self._images, self._restored, self._fresh = int(self._restored["images"]), None, False

    def _show(self, values: Weights) -> None:
        """Let the network work with these; each takes its parameter's dtype."""
        with torch.no_grad():
            for name, part in self._parts.items():
                part.show(values[name])

    def _swap_back(self) -> None:
        if self._aside is not None:
            self._show({n: self._aside[n] if n in self._aside else p.values() for n, p in self._parts.items()})
            self._aside = None

    def _load(self, where: str, source: Weights, target: Weights) -> None:
        missing, extra = sorted(set(target) - set(source)), sorted(set(source) - set(target))
        if missing or extra:
            count, verb, name = (len(missing), "lacks", missing[0]) if missing else (len(extra), "has also", extra[0])
            more = f" and {count - 1} more" if count > 1 else ""
            raise ValueError(f"{where} {verb} '{name}'{more}: it belongs to another model, or other parts were trained")
        for name, value in source.items():
            own = shape_of(self._parts[name].parameter)
            if tuple(value.shape) != own:
                raise ValueError(
                    f"{where}: '{name}' is {tuple(value.shape)} and the model's is {own}: "
                    "resume with the widths of the run that wrote it"
                )
            target[name].copy_(self._parts[name].cut(value))
