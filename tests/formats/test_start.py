"""A run that starts from a published checkpoint: what it takes over, and what it refuses."""

import pytest
import torch
from safetensors.torch import save_file

from sb.networks import build_denoiser, build_text, build_vae
from sb.masks import Ladder
from sb.models.weights import no_init
from sb.types import Condition

TEXT = {
    "sd1": {"name": "clip", "width": 64, "layers": 2, "heads": 1, "quick_gelu": True, "pad": "eos"},
    "sd2": {"name": "clip", "width": 128, "layers": 2, "heads": 2},
}
UNET = {
    "sd1": {"name": "unet", "widths": [32, 64], "attention": [True, False], "heads": 8},
    "sd2": {
        "name": "unet", "widths": [64, 128], "attention": [True, False], "heads": [1, 2], "linear_projection": True,
    },
}
VAE = {"name": "kl", "channels": 32, "multipliers": [1, 2]}


def sections(kind: str, place, **denoiser) -> dict:
    return {
        "vae": {**VAE, "weights": str(place)}, "text": {**TEXT[kind], "weights": str(place)},
        "denoiser": {**UNET[kind], "weights": str(place), **denoiser},
        "conditioning": {"name": "smartbrush", "mask_channels": 1},
    }


def ladder() -> Ladder:
    return Ladder([{"name": "outline"}, {"name": "box"}], [1, 1])


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_smartbrush_starts_as_the_published_model(published, compvis, tmp_path, kind, form):
    place, parts = published(kind)
    if form == "file":
        place = tmp_path / "sd.safetensors"
        save_file(compvis(kind), place)
    cfg = sections(kind, place)
    vae, text = build_vae(cfg), build_text(cfg)
    denoiser = build_denoiser(cfg, ladder(), vae.latent_channels, text)
    text.requires_grad_(False)
    ids = text.tokenize(["a red cat"])
    hidden = parts["text_encoder"](ids)[0]
    assert float((text(ids).tokens - hidden).abs().max()) <= 1e-4 * float(hidden.std())
    x, mask, t = torch.randn(1, 4, 8, 8), torch.ones(1, 1, 8, 8), torch.tensor([500])
    ours = denoiser(torch.cat([x, mask], 1), t, Condition(hidden, None, torch.ones(1)))[0].detach()
    theirs = parts["unet"](x, t, encoder_hidden_states=hidden).sample
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.std())
    assert (vae.scale, vae.shift) == (0.18215, 0.0)


@pytest.mark.parametrize("change, says", [
    ({"heads": 4}, "heads is 4, there 8"), ({"groups": 16}, "groups is 16, there 32"),
    ({"widths": [32, 96]}, r"widths is \[32, 96\], there \[32, 64\]"),
])
def test_what_shapes_do_not_show_is_compared(published, change, says):
    cfg = sections("sd1", published("sd1")[0], **change)
    with pytest.raises(ValueError, match=f"denoiser: .*is another network: {says}"):
        build_denoiser(cfg, ladder(), 4, build_text(cfg))


def test_a_setting_left_to_its_default_is_compared_as_well(published):
    cfg = sections("sd2", published("sd2")[0])
    del cfg["denoiser"]["heads"]  # eight by default, whatever the shapes
    with pytest.raises(ValueError, match=r"heads is 8, there \[1, 2\]"):
        build_denoiser(cfg, ladder(), 4, build_text(cfg))


def test_another_prediction_is_said(published, caplog):
    cfg = sections("sd1", published("sd1")[0]) | {"schedule": {"name": "scaled_linear", "prediction": "v"}}
    build_denoiser(cfg, ladder(), 4, build_text(cfg))
    assert "predicts eps, this run v" in caplog.text


def test_the_run_files_own_scale_wins(published):
    cfg = sections("sd1", published("sd1")[0])
    cfg["vae"]["scale"] = 0.13025
    assert build_vae(cfg).scale == 0.13025


@pytest.mark.parametrize("change, says", [
    ({"quick_gelu": False}, "quick_gelu is False, there True"), ({"pad": "zero"}, "pad is zero, there eos"),
    ({"layers": 3}, "layers that count is 3, there 2"),
])
def test_towers_are_compared(published, change, says):
    cfg = sections("sd1", published("sd1")[0])
    cfg["text"] |= change
    with pytest.raises(ValueError, match=f"text: .*{says}"):
        build_text(cfg)


def test_inpainting_weights_start_a_nine_channel_run_only(published):
    cfg = sections("sd1", published("sd1_inpainting")[0])
    text = build_text(cfg)
    with pytest.raises(ValueError, match="conv_in.weight is .*9.*not .*5"):
        build_denoiser(cfg, ladder(), 4, text)
    cfg["conditioning"] = {"name": "nine_channel", "mask_channels": 1}
    assert build_denoiser(cfg, ladder(), 4, text).mask_head == 1


def test_no_init_draws_no_weights():
    with no_init():
        layer = torch.nn.Linear(4, 4)
        kept = layer.weight
        kept.data.fill_(3)
        layer.reset_parameters()
    assert bool((layer.weight == 3).all())
    layer.reset_parameters()
    assert not bool((layer.weight == 3).any())
