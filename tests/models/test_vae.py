"""The KL VAE: structure and names of SD's, shapes, clamp, padding, and the posterior's laws."""

import pytest
import torch

from sb.models.latents import Posterior
from sb.models.vae import KLVAE
from sb.registry import build

# names and shapes in a published SD VAE in diffusers' layout
PUBLISHED = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.down_blocks.0.resnets.0.norm1.weight": (128,),
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
    "encoder.down_blocks.2.downsamplers.0.conv.weight": (512, 512, 3, 3),
    "encoder.mid_block.attentions.0.group_norm.weight": (512,),
    "encoder.mid_block.attentions.0.to_q.weight": (512, 512),
    "encoder.mid_block.attentions.0.to_out.0.bias": (512,),
    "encoder.conv_norm_out.weight": (512,),
    "encoder.conv_out.weight": (8, 512, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
    "post_quant_conv.weight": (4, 4, 1, 1),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "decoder.mid_block.resnets.1.conv2.weight": (512, 512, 3, 3),
    "decoder.up_blocks.0.upsamplers.0.conv.weight": (512, 512, 3, 3),
    "decoder.up_blocks.2.resnets.0.conv_shortcut.weight": (256, 512, 1, 1),
    "decoder.up_blocks.3.resnets.2.conv2.weight": (128, 128, 3, 3),
    "decoder.conv_norm_out.weight": (128,),
    "decoder.conv_out.weight": (3, 128, 3, 3),
}


def test_default_is_published_sd() -> None:
    with torch.device("meta"):
        state = KLVAE().state_dict()
    assert len(state) == 248
    assert sum(value.numel() for value in state.values()) == 83_653_863
    assert {name: tuple(state[name].shape) for name in PUBLISHED} == PUBLISHED
    assert not any("downsamplers" in name for name in state if ".down_blocks.3." in name)
    assert not any("upsamplers" in name for name in state if ".up_blocks.3." in name)


@pytest.mark.parametrize("multipliers, factor", [([1, 2, 2], 4), ([1, 1, 2, 2], 8)])
def test_factor_and_shapes(multipliers: list[int], factor: int) -> None:
    vae = build("vae", {"name": "kl", "channels": 8, "multipliers": multipliers, "blocks": 1, "norm_groups": 4})
    image = torch.rand(2, 3, 32, 64) * 2 - 1
    posterior = vae.encode(image)
    assert vae.factor == factor
    assert posterior.mean.shape == posterior.std.shape == (2, 4, 32 // factor, 64 // factor)
    assert bool((posterior.std > 0).all())
    assert vae.decode(posterior.mean).shape == image.shape


def test_log_variance_is_clamped() -> None:
    vae = KLVAE(channels=8, multipliers=[1, 1], blocks=1, norm_groups=4)
    for bias, limit in ((1e3, 20), (-1e3, -30)):
        vae.quant_conv.bias.data.fill_(bias)  # type: ignore[union-attr]
        std = vae.encode(torch.zeros(1, 3, 8, 8)).std
        assert torch.allclose(std.log() * 2, torch.full_like(std, limit), atol=1e-3)


def test_middle_attention_is_a_switch() -> None:
    with_attention, without = (
        KLVAE(channels=8, multipliers=[1, 1], blocks=1, norm_groups=4, mid_attention=on).state_dict()
        for on in (True, False)
    )
    assert {name for name in with_attention if name not in without} == {
        name for name in with_attention if ".attentions.0." in name
    } != set()


def test_width_must_divide() -> None:
    with pytest.raises(ValueError, match="width 24 does not divide into norm_groups 32"):
        KLVAE(channels=24)


def test_posterior_divergence_and_draws() -> None:
    mean, std = torch.full((1, 1, 64, 64), 2.0), torch.full((1, 1, 64, 64), 0.5)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(2.0, 0.5), torch.distributions.Normal(0, 1))
    assert torch.allclose(Posterior(mean, std).kl(), expected)
    assert float(Posterior(mean, torch.zeros_like(mean)).kl()) == pytest.approx(2.0)
    assert float(Posterior(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).kl()) == 0
    draw = Posterior(mean, std).sample(torch.Generator().manual_seed(0))
    assert torch.equal(draw, Posterior(mean, std).sample(torch.Generator().manual_seed(0)))
    assert float(draw.mean()) == pytest.approx(2, abs=0.05) and float(draw.std()) == pytest.approx(0.5, abs=0.05)
