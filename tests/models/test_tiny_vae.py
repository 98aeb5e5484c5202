"""The tiny VAE: shapes, scale and shift. Published weights are in tests/formats/test_source.py."""

import pytest
import torch

from sb.models.latents import Posterior, moments, scale_and_shift
from sb.models.tiny_vae import TinyVAE
from sb.registry import build


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_factor_and_shapes(stages: int) -> None:
    vae = build("vae", {"name": "tiny", "stages": stages, "widths": 8, "blocks": 1, "latent_channels": 5})
    image = torch.rand(2, 3, 16, 32) * 2 - 1
    posterior = vae.encode(image)
    assert vae.factor == 2**stages
    assert posterior.mean.shape == (2, 5, 16 // vae.factor, 32 // vae.factor)
    assert not posterior.std.any()
    assert vae.decode(posterior.mean).shape == image.shape


def test_picture_inverts_latents() -> None:
    vae = TinyVAE(stages=1, widths=8, blocks=1, scale=0.7, shift=-0.2)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    latents = vae.latents(image)
    assert torch.allclose(latents, (vae.encode(image).mean + 0.2) * 0.7)
    assert torch.allclose(vae.picture(latents), vae.decode(vae.encode(image).mean), atol=1e-6)


def test_a_width_for_each_resolution() -> None:
    vae = TinyVAE(stages=2, widths=[8, 12, 16], blocks=[0, 1, 2])
    assert vae.decode(vae.encode(torch.zeros(1, 3, 16, 16)).mean).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="widths has 2 numbers for 3 resolutions"):
        TinyVAE(stages=2, widths=[8, 12])


def test_only_pooled_latents_see_the_whole_picture() -> None:
    for pooled in (False, True):
        torch.manual_seed(0)
        vae = TinyVAE(stages=1, widths=8, blocks=1, pooled=pooled)
        black, spot = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
        spot[..., :4, :4] = 1
        far = (vae.encode(black).mean - vae.encode(spot).mean)[..., -4:, -4:].abs().max()
        assert bool(far > 0) is pooled


def test_measured_scale_and_shift_give_unit_latents() -> None:
    z = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 3 + 2
    zero = torch.zeros_like(z[:4])
    scale, shift = scale_and_shift(moments(Posterior(z[:4], zero)) + moments(Posterior(z[4:], zero)))
    unit = (z - shift) * scale
    assert abs(float(unit.mean())) < 1e-5 and abs(float(unit.std()) - 1) < 1e-3
