"""SmartBrush as a LightningModule: the training step in the paper's order; its parts arrive built.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, f pixels per cell side.
"""

import zlib
from collections.abc import Callable, Sequence
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
from sb.sharding import is_sharded
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

    def find_frozen(self) -> dict[str, int]:
        """Those of the parts outside too."""
        outside = {name: digest(module.state_dict()) for name, module in self._outside.items()}
        return {**super().find_frozen(), **outside}

    def configure_model(self) -> None:
        """Under FSDP2 every block of the network is gathered and freed by itself."""
        if self.device_mesh is None or is_sharded(self):
            return
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]
        for block in getattr(self.denoiser, "blocks", ()):
            fully_shard(block, mesh=mesh)
        fully_shard(self.denoiser, mesh=mesh, reshard_after_forward=True)  # never whole between two calls
        if "text" not in self._outside:
            fully_shard(self.text_tower, mesh=mesh, reshard_after_forward=True)
            register_fsdp_forward_method(self.text_tower, "encode")

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
        logged = {f"train/{name}": out[name] for name in ("loss", "denoise", "dice")}
        self.log_dict({**logged, "step": self.clock()}, batch_size=len(batch))
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
