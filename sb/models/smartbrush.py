"""SmartBrush as a LightningModule: the training step in the paper's order; its parts arrive built.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, f pixels per cell side.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sb.conditioning import Conditioning
from sb.losses import DenoisingObjective
from sb.masks import Ladder
from sb.models.clock import ImagesClock
from sb.models.weights import digest
from sb.registry import register
from sb.schedule import Schedule
from sb.types import Batch, Condition


class Draws(NamedTuple):
    """What a step leaves to chance: times t (B,), noise eps (B, C, h, w), and whose text is dropped (B,) bool."""

    t: Tensor
    eps: Tensor
    dropped: Tensor


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
        conditioning: Conditioning,
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
        self._place: torch.device | None = None  # where they are
        self.__dict__["_outside"] = {"vae": vae.eval().requires_grad_(False)}
        if train_text:
            self.text_tower = text
        else:
            self._outside["text"] = text.eval().requires_grad_(False)

    @property
    def vae(self) -> Any:
        """The frozen autoencoder, on this module's device."""
        return self._placed()["vae"]

    @property
    def text(self) -> Any:
        """The text tower, on this module's device."""
        return self._placed().get("text") or self.text_tower

    def _placed(self) -> dict[str, nn.Module]:
        """The frozen parts, moved where this module has gone since: walking through them takes a while."""
        if self._place != self.device:
            self._place = self.device
            for module in self._outside.values():
                module.to(self.device)
        return self._outside

    @cached_property
    def _frozen(self) -> dict[str, int]:
        return {name: digest(module) for name, module in self._outside.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clock, and by what frozen parts the network was trained."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["frozen"] = self._frozen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the clock; ValueError where the frozen parts are not those that the network was trained by."""
        super().on_load_checkpoint(checkpoint)
        others = [name for name, found in checkpoint.get("frozen", {}).items() if self._frozen.get(name) != found]
        if others:
            raise ValueError(
                f"{self.trainer.ckpt_path} was trained with another {' and '.join(others)}: resume with the one of "
                "then, or start from its weights (denoiser.weights) in another run_dir"
            )

    def draw(self, images: Tensor, generator: torch.Generator, text_dropout: float) -> Draws:
        """The draws for images (B, 3, H, W) from one generator, on its device."""
        count, (height, width) = len(images), (side // self.vae.factor for side in images.shape[-2:])
        t = self.schedule.draw(count, generator)
        shape = (count, self.vae.latent_channels, height, width)
        eps = torch.randn(shape, generator=generator, device=generator.device)
        return Draws(t, eps, torch.rand(count, generator=generator, device=generator.device) < text_dropout)

    def step(self, batch: Batch, draws: Draws) -> dict[str, Any]:
        """One noised batch through the network: the losses, and what the callbacks want to see of it."""
        factor, (t, eps, dropped) = self.vae.factor, draws
        mask = self.ladder(batch.outline, batch.level)  # (B, 1, H, W)
        with torch.no_grad():
            canvas = self.conditioning.canvas(self.vae.latents, batch.image.float() / 127.5 - 1, mask, factor)
        x_t = self.conditioning.noised(canvas, eps, t, self.schedule)

        texts = ["" if drop else text for text, drop in zip(batch.text, dropped.tolist(), strict=True)]
        features = self.text.encode(texts)
        cond = Condition(features.tokens, features.pooled, batch.level.float(), batch.task)
        prediction, logits = self.denoiser(self.conditioning.network_input(x_t, canvas), t, cond)

        target = self.schedule.target(canvas.clean, eps, t)
        mask_target = self.conditioning.head_target(batch.outline, factor)
        has_object = self.has_object.to(t.device)[batch.task]
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
        generator = self.generator(self.seed, self.images_seen, self.global_rank)
        out = self.step(batch, self.draw(batch.image, generator, self.text_dropout))
        self.count(batch)
        self.log_step({f"train/{name}": out[name] for name in ("loss", "denoise", "dice")}, len(batch))
        return out

    def validation_step(self, batch: Batch, _: int) -> dict[str, Any]:
        """The held-out loss: a sample's time and noise follow from its key, whatever the batch size and the ranks."""
        each = [
            self.draw(image[None], self.generator(zlib.crc32(key.encode())), 0.0)
            for image, key in zip(batch.image, batch.key, strict=True)
        ]
        out = self.step(batch, Draws(*map(torch.cat, zip(*each, strict=True))))
        logged = {f"val/{name}": out[name] for name in ("loss", "denoise")}
        self.log_dict({**logged, "step": self.clock()}, batch_size=len(batch), sync_dist=True)
        if bool(self.has_object.any()):  # a mean over samples with an object; every rank logs, be it with no weight
            self.log("val/dice", out["dice"], batch_size=int(out["has_object"].sum()), sync_dist=True)
        return out
