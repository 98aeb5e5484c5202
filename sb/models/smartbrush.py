"""SmartBrush as a LightningModule: the training step in the paper's order; its parts arrive built.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, f pixels per cell side.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from sb.conditioning import Canvas, Conditioning
from sb.estimate import forward_flops
from sb.losses import DenoisingObjective
from sb.masks import Ladder
from sb.models.clock import ImagesClock
from sb.models.latents import Posterior
from sb.models.weights import digest
from sb.registry import register
from sb.schedule import Schedule
from sb.sharding import is_sharded
from sb.types import Batch, Condition, TextFeatures


class Draws(NamedTuple):
    """What a step leaves to chance: times t (B,), noise eps (B, C, h, w), whose text is dropped (B,) bool, and the
    posterior's noise (B, C, h, w), None where its mode is taken."""

    t: Tensor
    eps: Tensor
    dropped: Tensor
    spread: Tensor | None

    @classmethod
    def joined(cls, each: Sequence[Self]) -> Self:
        """One batch's draws of several's."""
        t, eps, dropped = (torch.cat(parts) for parts in zip(*(draws[:3] for draws in each), strict=True))
        spread = [draws.spread for draws in each if draws.spread is not None]
        return cls(t, eps, dropped, torch.cat(spread) if spread else None)


@register("system", "smartbrush")
class SmartBrush(ImagesClock):
    """Trains ``denoiser`` (and the text tower where ``train_text``) to inpaint.

    posterior: ``mode`` trains on the mean that the VAE gives a picture, ``sample`` on a draw each time (with the same
    noise for the picture and for the picture with its mask greyed out).

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
        posterior: Literal["mode", "sample"] = "mode",
    ):
        super().__init__(optimizer, total_images, batch_size, seed)
        self.denoiser = denoiser
        self.schedule, self.ladder, self.conditioning, self.objective = schedule, ladder, conditioning, objective
        self.tasks, self.object_share, self.text_dropout = list(tasks), object_share, text_dropout
        self.has_object = torch.tensor(list(has_object))
        self.posterior = posterior
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
            self.has_object = self.has_object.to(self.device)  # once: a copy waits for the device
        return self._outside

    def find_frozen(self) -> dict[str, int]:
        """Those of the parts outside too."""
        outside = {name: digest(module.state_dict()) for name, module in self._outside.items()}
        return {**super().find_frozen(), **outside}

    def flops(self, image_size: int, pictures: bool, texts: bool) -> int:
        """FLOPs of training on one image: three forwards of the denoiser (backward is two), one of what is frozen.

        pictures, texts: whether they are encoded in the run, not read from a cache. A text tower that is trained counts
        three times too. Optimizer, losses and masks are left out.
        """
        meta, factor, cells = torch.device("meta"), self.vae.factor, image_size // self.vae.factor
        encoded: list[int] = []

        def latents(image: Tensor) -> Tensor:
            encoded.append(len(image))
            return image.new_empty(len(image), self.vae.latent_channels, cells, cells)

        image = torch.empty(1, 3, image_size, image_size, device=meta)
        mask = torch.empty(1, 1, image_size, image_size, device=meta)
        shown = self.conditioning.canvas(latents, image, mask, factor)
        x = self.conditioning.network_input(shown.clean, shown)
        one = torch.zeros(1, device=meta, dtype=torch.int64)
        text = self.text
        pooled = torch.empty(1, text.pooled_width, device=meta) if text.pooled_width else None
        tokens = torch.empty(1, text.context_length, text.width, device=meta)
        total = 3 * forward_flops(self.denoiser, x, one, Condition(tokens, pooled, one.float(), one))
        if pictures:
            total += sum(encoded) * forward_flops(self.vae.encoder, image)
        if texts:
            reads = torch.zeros(1, text.context_length, dtype=torch.int64, device=meta)
            total += (1 if "text" in self._outside else 3) * forward_flops(text, reads)
        return total

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

    def draw(self, pixels: Tensor, generator: torch.Generator, text_dropout: float) -> Draws:
        """The draws for images or outlines (B, 3 or 1, H, W) from one generator, on its device."""
        count, (height, width) = len(pixels), (side // self.vae.factor for side in pixels.shape[-2:])
        t = self.schedule.draw(count, generator)
        shape = (count, self.vae.latent_channels, height, width)
        eps = torch.randn(shape, generator=generator, device=generator.device)
        dropped = torch.rand(count, generator=generator, device=generator.device) < text_dropout
        if self.posterior == "mode":
            return Draws(t, eps, dropped, None)
        return Draws(t, eps, dropped, torch.randn(shape, generator=generator, device=generator.device))

    def canvas(self, batch: Batch, mask: Tensor, spread: Tensor | None) -> Canvas:
        """Pictures, or what is cached of them, and masks (B, 1, H, W) at latent resolution."""
        vae = self.vae
        if batch.moments is not None:
            clean = vae.seen(Posterior.read(batch.moments, vae.latent_channels), spread)
            return self.conditioning.canvas_of(clean, mask, vae.factor)
        assert batch.image is not None

        def latents(image: Tensor) -> Tensor:
            noise = None if spread is None else spread.repeat(len(image) // len(spread), 1, 1, 1)
            posterior = vae.encode(image)
            if posterior.mean.dtype is torch.bfloat16:  # exact in fp16 but for the smallest: the same as cached ones
                posterior = Posterior.read(posterior.stored(with_std=True), vae.latent_channels)
            return vae.seen(posterior, noise)

        return self.conditioning.canvas(latents, batch.image.float() / 127.5 - 1, mask, vae.factor)

    def told(self, batch: Batch, dropped: Tensor) -> TextFeatures:
        """Features of the batch's texts, cached or encoded here; of the empty text where one is ``dropped`` (B,)."""
        if batch.features is None:
            return self.text.encode(["" if d else text for text, d in zip(batch.text, dropped.tolist(), strict=True)])
        rows = batch.features.view(torch.float16).float()
        rows = torch.where(dropped[:, None], rows[-1:], rows[:-1])
        pooled = self.text.pooled_width
        tokens = rows[:, : rows.shape[1] - pooled].unflatten(1, (-1, self.text.width))
        return TextFeatures(tokens, rows[:, -pooled:] if pooled else None)

    @torch.no_grad()
    def pictures(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Pictures ``rows`` of a batch, (n, 3, H, W) uint8: as they are, or decoded from what is cached of them."""
        if batch.image is not None:
            return batch.image[list(rows)]
        assert batch.moments is not None
        mean = Posterior.read(batch.moments[list(rows)], self.vae.latent_channels).mean
        return ((self.vae.decode(mean).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def step(self, batch: Batch, draws: Draws) -> dict[str, Any]:
        """One noised batch through the network: the losses, and what the callbacks want to see of it."""
        factor, (t, eps, dropped, spread) = self.vae.factor, draws
        mask = self.ladder(batch.outline, batch.level)  # (B, 1, H, W)
        with torch.no_grad():
            canvas = self.canvas(batch, mask, spread)
        x_t = self.conditioning.noised(canvas, eps, t, self.schedule)

        features = self.told(batch, dropped)
        cond = Condition(features.tokens, features.pooled, batch.level.float(), batch.task)
        prediction, logits = self.denoiser(self.conditioning.network_input(x_t, canvas), t, cond)

        target = self.target(batch, canvas, draws, x_t, cond)
        mask_target = self.conditioning.head_target(batch.outline, factor)
        has_object = self.has_object[batch.task]
        losses = self.objective(
            prediction, target, canvas.hole, t, self.schedule, logits, mask_target, has_object, self.object_share
        )
        return {
            **{name: value if name == "loss" else value.detach() for name, value in losses._asdict().items()},
            "predicted": None if logits is None else logits.detach().float().sigmoid(),
            "target": mask_target, "has_object": has_object, "t": t, "mask": mask,
        }

    def target(self, batch: Batch, canvas: Canvas, draws: Draws, x_t: Tensor, cond: Condition) -> Tensor:
        """What the network should have answered at x_t (B, C, h, w)."""
        return self.schedule.target(canvas.clean, draws.eps, draws.t)

    def training_step(self, batch: Batch, _: int) -> dict[str, Any]:
        """Times and noise follow from (seed, images seen, rank)."""
        generator = self.generator(self.seed, self.images_seen, self.global_rank)
        out = self.step(batch, self.draw(batch.outline, generator, self.text_dropout))
        self.count(batch)
        self.log_step({f"train/{name}": out[name] for name in ("loss", "denoise", "dice")}, len(batch))
        return out

    def validation_step(self, batch: Batch, _: int) -> dict[str, Any]:
        """The held-out loss: a sample's time and noise follow from its key, whatever the batch size and the ranks."""
        each = [
            self.draw(outline[None], self.generator(zlib.crc32(key.encode())), 0.0)
            for outline, key in zip(batch.outline, batch.key, strict=True)
        ]
        out = self.step(batch, Draws.joined(each))
        logged = {f"val/{name}": out[name] for name in ("loss", "denoise")}
        self.log_dict({**logged, "step": self.clock()}, batch_size=len(batch), sync_dist=True)
        if bool(self.has_object.any()):  # a mean over samples with an object; every rank logs, be it with no weight
            self.log("val/dice", out["dice"], batch_size=int(out["has_object"].sum()), sync_dist=True)
        return out
