"""VAE training as a LightningModule, and its objective.

Legend: B batch, H W pixels, h w latent cells, C latent channels.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from sb.estimate import forward_flops
from sb.losses import gradient_l1
from sb.models.clock import ImagesClock
from sb.models.critic import PatchCritic, adaptive_weight, hinge
from sb.models.latents import Autoencoder, Posterior, moments, scale_and_shift
from sb.models.perceptual import Perceptual
from sb.registry import register
from sb.types import Batch

PAIRS_SHOWN = 8


@register("objective", "vae")
class VAEObjective(nn.Module):
    """``l1 |e| + mse e^2 + gradient |grad e| + kl KL(z)``, and optionally a perceptual distance and a patch critic.

    A tiny VAE has no posterior std: its KL is ``mean^2 / 2``, and ``noise_std`` (a fixed noise on z while training)
    makes its latents smooth. ``perceptual_path`` names a file of VGG16 weights. ``critic_weight`` above 0 adds
    the critic, which learns on detached pictures inside the same loss (so one optimizer, clipping and
    accumulation hold for both) and pulls at the VAE from ``critic_start_images`` on.
    """

    perceptual: Perceptual | None

    def __init__(
        self,
        l1: float = 1.0,
        mse: float = 1.0,
        gradient: float = 0.5,
        kl: float = 1e-6,
        noise_std: float = 0.0,
        perceptual_path: str | None = None,
        perceptual_weight: float = 1.0,
        critic_weight: float = 0.0,
        critic_start_images: int = 0,
        critic_width: int = 64,
    ):
        super().__init__()
        self.l1, self.mse, self.gradient, self.kl, self.noise_std = l1, mse, gradient, kl, noise_std
        self.perceptual_weight = perceptual_weight
        self.critic_weight, self.critic_start_images = critic_weight, critic_start_images
        self.critic = PatchCritic(critic_width) if critic_weight > 0 else None
        # outside the module tree: neither trained, saved nor averaged
        self.__dict__["perceptual"] = Perceptual(perceptual_path) if perceptual_path else None

    def draw(self, posterior: Posterior, generator: torch.Generator) -> Tensor:
        """The z (B, C, h, w) that training decodes: a draw from the posterior, plus the fixed noise."""
        widened = posterior.std.square().add(self.noise_std**2).sqrt()
        return Posterior(posterior.mean, widened).sample(generator)

    def reconstruction(self, picture: Tensor, target: Tensor, posterior: Posterior) -> dict[str, Tensor]:
        """The parts without the critic and their weighted sum ``loss``, from (B, 3, H, W) in [-1, 1]."""
        error = picture.float() - target
        parts = {
            "l1": error.abs().mean(),
            "mse": error.square().mean(),
            "gradient": gradient_l1(picture.float(), target),
            "kl": posterior.kl(),
        }
        loss = sum((getattr(self, name) * part for name, part in parts.items()), error.new_zeros(()))
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual.to(target.device)(picture.float(), target)
            loss = loss + self.perceptual_weight * parts["perceptual"]
        return {"loss": loss, **parts}

    def forward(self, picture: Tensor, target: Tensor, posterior: Posterior, images_seen: int) -> dict[str, Tensor]:
        """One training step's losses; only ``loss`` carries a gradient."""
        parts = self.reconstruction(picture, target, posterior)
        loss = parts.pop("loss")
        if self.critic is not None:
            parts["critic"] = hinge(self.critic(target), self.critic(picture.detach()))
            if images_seen >= self.critic_start_images:
                parts["adversarial"] = -self.critic.score_frozen(picture).float().mean()
                balance = adaptive_weight(loss, parts["adversarial"], picture)
                loss = loss + self.critic_weight * balance * parts["adversarial"]
            loss = loss + parts["critic"]
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


@register("system", "vae")
class VAESystem(ImagesClock):
    """Trains ``vae`` to reconstruct ``batch.image``; validation measures its latents' scale and shift."""

    def __init__(
        self,
        vae: Autoencoder,
        objective: VAEObjective,
        optimizer: Callable[..., Any],
        total_images: int,
        batch_size: int,
        seed: int,
    ):
        super().__init__(optimizer, total_images, batch_size, seed)
        self.vae, self.objective = vae, objective
        self._moments = torch.zeros(3, dtype=torch.float64)

    def flops(self, image_size: int, pictures: bool, texts: bool) -> int:
        """FLOPs of training on one image: three forwards of encoder and decoder; perceptual net and critic left out."""
        cells, meta = image_size // self.vae.factor, torch.device("meta")
        image = torch.empty(1, 3, image_size, image_size, device=meta)
        latents = torch.empty(1, self.vae.latent_channels, cells, cells, device=meta)
        vae: Any = self.vae
        return 3 * (forward_flops(vae.encoder, image) + forward_flops(vae.decoder, latents))

    def training_step(self, batch: Batch, _: int) -> dict[str, Tensor]:
        """The noise on z follows from (seed, images seen, rank)."""
        target = _to_float(batch)
        generator = self.generator(self.seed, self.images_seen, self.global_rank)
        posterior = self.vae.encode(target)
        picture = self.vae.decode(self.objective.draw(posterior, generator))
        out = self.objective(picture, target, posterior, self.images_seen)
        self.count(batch)
        self.log_step({f"train/{name}": part for name, part in out.items()}, len(batch))
        return out

    def on_validation_epoch_start(self) -> None:
        """Measure the latents anew."""
        self._moments = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss and PSNR of the mode's reconstruction; the first batch is shown above its reconstruction."""
        target = _to_float(batch)
        posterior = self.vae.encode(target)
        picture = self.vae.decode(posterior.mean).float()
        out = {**self.objective.reconstruction(picture, target, posterior), "psnr": psnr(picture, target).mean()}
        self._moments += moments(posterior)
        logged = {f"val/{name}": part for name, part in out.items()}
        self.log_dict({**logged, "step": self.clock()}, batch_size=len(batch), sync_dist=True)
        if index == 0 and self.trainer.is_global_zero and isinstance(self.logger, TensorBoardLogger):
            pair = torch.cat([target, picture.clamp(-1, 1)], dim=2)[:PAIRS_SHOWN] * 0.5 + 0.5
            sheet = rearrange(pair, "b c h w -> c h (b w)").cpu()
            self.logger.experiment.add_image("val/reconstruction", sheet, global_step=self.images_seen)
        return out

    def on_validation_epoch_end(self) -> None:
        """Set the VAE's scale and shift, the same on every rank."""
        total = torch.as_tensor(self.all_gather(self._moments))  # (3,), or (ranks, 3)
        self.vae.scale, self.vae.shift = scale_and_shift(total.reshape(-1, 3).sum(0))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clock, the scale and the shift."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["latents"] = [self.vae.scale, self.vae.shift]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the clock, the scale and the shift."""
        super().on_load_checkpoint(checkpoint)
        self.vae.scale, self.vae.shift = checkpoint["latents"]


def psnr(picture: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per sample (B,), of (B, 3, H, W) in [-1, 1]; the picture is clamped."""
    error = (picture.float().clamp(-1, 1) - target.float()).flatten(1).square().mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def _to_float(batch: Batch) -> Tensor:
    assert batch.image is not None
    return batch.image.float() / 127.5 - 1  # (B, 3, H, W)
