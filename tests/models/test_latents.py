"""Posteriors: what is stored of them comes back, and what a denoiser sees of them."""

import torch

from sb.models.latents import Posterior
from sb.models.tiny_vae import TinyVAE


def test_what_is_stored_comes_back():
    mean, std = torch.randn(2, 3, 4, 4).half().float(), torch.rand(2, 3, 4, 4).half().float()
    for with_std in (False, True):
        stored = Posterior(mean, std).stored(with_std)
        assert stored.dtype == torch.int16 and stored.shape == (2, 6 if with_std else 3, 4, 4)
        back = Posterior.read(stored, 3)
        assert torch.equal(back.mean, mean) and torch.equal(back.std, std if with_std else torch.zeros_like(std))


def test_a_denoiser_sees_the_mode_or_a_draw():
    vae = TinyVAE(latent_channels=3, stages=2, widths=8, blocks=1, scale=2.0, shift=0.5)
    posterior = Posterior(torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4))
    noise = torch.randn(2, 3, 4, 4)
    assert torch.equal(vae.seen(posterior), (posterior.mean - 0.5) * 2)
    assert torch.allclose(vae.seen(posterior, noise) - vae.seen(posterior), 2 * posterior.std * noise, atol=1e-5)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(vae.seen(vae.encode(image)), vae.latents(image))
