"""What every VAE of ours shares: the posterior over latents, and the shift and scale that denoisers see.

Legend: B batch, H W pixels, h w latent cells (H / factor), C latent channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from sb.models.weights import digest
from sb.registry import settings


class Posterior(NamedTuple):
    """A diagonal Gaussian over raw latents z: mean and std, both (B, C, h, w); std is 0 for a plain encoder."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of z (B, C, h, w), with the noise made where the generator lives."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def stored(self, with_std: bool) -> Tensor:
        """The bits of fp16 as int16: the mean (B, C, h, w), or mean and std (B, 2C, h, w)."""
        return torch.cat([self.mean, self.std] if with_std else [self.mean], dim=1).half().view(torch.int16)

    @classmethod
    def read(cls, stored: Tensor, latent_channels: int) -> Self:
        """The inverse of ``stored``, in float32."""
        mean, *std = stored.contiguous().view(torch.float16).float().split(latent_channels, dim=1)
        return cls(mean, std[0] if std else torch.zeros_like(mean))

    def kl(self) -> Tensor:
        """Mean divergence from N(0, 1) per latent number, in nats; without a std, its ``mean^2 / 2`` part alone."""
        mean, variance = self.mean.float(), self.std.float().square()
        spread = variance - 1 - variance.clamp(min=1e-30).log()
        return 0.5 * (mean.square() + torch.where(variance > 0, spread, torch.zeros_like(spread))).mean()


class Autoencoder(nn.Module):
    """Base of the VAEs: ``encode`` and ``decode`` speak raw z, ``latents`` and ``picture`` what a denoiser sees.

    factor: pixels per latent cell side. latents = (z - shift) * scale: plain numbers, measured after training,
    kept beside the weights (never in the state dict, so that published files load as they are).
    """

    factor: int
    latent_channels: int

    def __init__(self, scale: float, shift: float):
        super().__init__()
        self.scale, self.shift = scale, shift

    def encode(self, image: Tensor) -> Posterior:
        """image (B, 3, H, W) in [-1, 1], H and W multiples of ``factor``, to the posterior over z (B, C, h, w)."""
        raise AssertionError("a VAE defines encode")

    def decode(self, z: Tensor) -> Tensor:
        """Raw z (B, C, h, w) to an image (B, 3, H, W), about [-1, 1], not clamped."""
        raise AssertionError("a VAE defines decode")

    def latents(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] to (B, C, h, w) of about unit std: the mode, or a draw with a generator."""
        posterior = self.encode(image)
        z = posterior.mean if generator is None else posterior.sample(generator)
        return (z - self.shift) * self.scale

    def seen(self, posterior: Posterior, noise: Tensor | None = None) -> Tensor:
        """The latents (B, C, h, w) of a posterior in float32: of its mode, or of the draw that ``noise`` makes."""
        z = posterior.mean.float()
        return ((z if noise is None else z + posterior.std.float() * noise) - self.shift) * self.scale

    def picture(self, latents: Tensor) -> Tensor:
        """The inverse of ``latents``: (B, C, h, w) to an image (B, 3, H, W), about [-1, 1], not clamped."""
        return self.decode(latents / self.scale + self.shift)


def facts_of(vae: Autoencoder, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one VAE's latents from another's; scale and shift come after them."""
    sizes = {"digest": digest(vae.state_dict()), "factor": vae.factor, "channels": vae.latent_channels}
    return {**sizes, "settings": settings("vae", spec)}


def tower_facts(tower: nn.Module, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one text tower's features from another's."""
    return {"digest": digest(tower.state_dict()), "settings": settings("text", spec)}


def moments(posterior: Posterior) -> Tensor:
    """Count, sum and sum of squares of the latents, (3,) float64: they add up over batches and ranks."""
    mean = posterior.mean.double()
    square = mean.square() + posterior.std.double().square()
    return torch.stack([mean.new_tensor(mean.numel()), mean.sum(), square.sum()])


def scale_and_shift(total: Tensor) -> tuple[float, float]:
    """From added ``moments`` (3,): scale = 1 / std and shift = mean, so that latents have mean 0 and std 1."""
    count, first, second = total.tolist()
    shift = first / count
    return max(second / count - shift * shift, 1e-12) ** -0.5, shift
