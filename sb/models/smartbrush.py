"""SmartBrush as a LightningModule: the training step in the paper's order; its parts arrive built.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, f pixels per cell side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sb.conditioning import SmartBrushConditioning
from sb.losses import DenoisingObjective
from sb.masks import Ladder
from sb.models.clock import ImagesClock
from sb.registry import register
from sb.schedule import Schedule
from sb.types import Batch, Condition


@register("system", "smartbrush")
class SmartBrush(ImagesClock):
    """Trains ``denoiser`` (and the text tower where ``train_text``) to inpaint.

    The VAE, and a text tower that is not trained, stay outside the module tree: strategies neither wrap, cast, save
    nor average them.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        vae: nn.Module,
        text: nn.Module,
        schedule: Schedule,
        ladder: Ladder,
        conditioning: SmartBrushConditioning,
        objective: DenoisingObjective,
        optimizer: Callable[..., Any],
        tasks: Sequence[str],
        has_object: Sequence[bool],
        object_share: float,
        total_images: int,
        batch_size: int,
        seed: int,
        text_dropout: float = 0.1,
        train_text: bool = False,
    ):
        super().__init__(optimizer, total_images, batch_size, seed)
        self.denoiser = denoiser
        self.schedule, self.ladder, self.conditioning, self.objective = schedule, ladder, conditioning, objective
        self.tasks, self.object_share, self.text_dropout = list(tasks), object_share, text_dropout
        self.has_object = torch.tensor(list(has_object))
        self._outside: dict[str, nn.Module] = {}
        self.__dict__["_outside"] = {"vae": vae.eval().requires_grad_(False)}
        if train_text:
            self.text_tower = text
        else:
            self._outside["text"] = text.eval().requires_grad_(False)

    @property
    def vae(self) -> Any:
        """The frozen autoencoder, on this module's device."""
        return self._outside["vae"].to(self.device)

    @property
    def text(self) -> Any:
        """The text tower, on this module's device."""
        return self._outside["text"].to(self.device) if "text" in self._outside else self.text_tower

    def step(self, batch: Batch, generator: torch.Generator, text_dropout: float) -> dict[str, Any]:
        """One noised batch through the network: the losses, and what the callbacks want to see of it."""
        factor = self.vae.factor
        with torch.no_grad():
            z = self.vae.latents(batch.image.float() / 127.5 - 1).float()  # (B, C, h, w)
        mask = self.ladder(batch.outline, batch.level)  # (B, 1, H, W)
        canvas = self.conditioning.canvas(z, mask, factor)
        t = self.schedule.draw(len(batch), generator)
        eps = torch.randn(z.shape, generator=generator, device=z.device)
        x_t = self.conditioning.noised(canvas, eps, t, self.schedule)

        dropped = (torch.rand(len(batch), generator=generator, device=z.device) < text_dropout).tolist()
        texts = ["" if drop else text for text, drop in zip(batch.text, dropped, strict=True)]
        features = self.text.encode(texts)
        cond = Condition(features.tokens, features.pooled, batch.level.float())
        prediction, logits = self.denoiser(self.conditioning.network_input(x_t, canvas), t, cond)

        target = self.schedule.target(z, eps, t)
        mask_target = self.conditioning.head_target(batch.outline, factor)
        has_object = self.has_object.to(z.device)[batch.task]
        losses = self.objective(
            prediction, target, canvas.hole, t, self.schedule, logits, mask_target, has_object, self.object_share
        )
        return {
            **{name: value if name == "loss" else value.detach() for name, value in losses._asdict().items()},
            "predicted": None if logits is None else logits.detach().float().sigmoid(),
            "target": mask_target, "has_object": has_object, "t": t, "mask": mask,
        }

    def training_step(self, batch: Batch, _: int) -> dict[str, Any]:
        """Times and noise follow from (seed, images seen, rank)."""
        out = self.step(batch, self.generator(self.seed, self.images_seen, self.global_rank), self.text_dropout)
        self.count(batch)
        logged = {f"train/{name}": out[name] for name in ("loss", "denoise", "dice")}
        self.log_dict({**logged, "step": self.clock()}, batch_size=len(batch))
        return out

    def validation_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """The held-out loss: fixed samples, times, noise and masks, so that two values are comparable."""
        out = self.step(batch, self.generator(index, self.global_rank), 0.0)
        logged = {f"val/{name}": out[name] for name in ("loss", "denoise")}
        self.log_dict({**logged, "step": self.clock()}, batch_size=len(batch), sync_dist=True)
        if bool(self.has_object.any()):  # a mean over samples with an object; every rank logs, be it with no weight
            self.log("val/dice", out["dice"], batch_size=int(out["has_object"].sum()), sync_dist=True)
        return out
