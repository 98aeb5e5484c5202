"""Random-weight models in the structure of published ones, made by diffusers and transformers, any width."""

from pathlib import Path

import pytest
import torch

KINDS = ("sd1", "sd2", "sd1_inpainting")
FULL = {
    "sd1": {"widths": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 768, "layers": 12},
    "sd2": {"widths": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 1024, "layers": 23},
}
SMALL = {
    "sd1": {"widths": (32, 64), "vae": (32, 64), "text": 64, "layers": 2},
    "sd2": {"widths": (64, 128), "vae": (32, 64), "text": 128, "layers": 2},
}


def make(kind: str, sizes: dict | None = None, seed: int = 0):
    """A diffusers pipeline of kind ``sd1`` (eps, quick-gelu), ``sd2`` (v, linear projections) or ``sd1_inpainting``."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    second = kind == "sd2"
    size = {**(sizes or SMALL)["sd2" if second else "sd1"]}
    widths = size["widths"]
    attends = [True] * (len(widths) - 1) + [False]
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=9 if kind.endswith("inpainting") else 4, out_channels=4, layers_per_block=2,
        block_out_channels=widths, cross_attention_dim=size["text"],
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        attention_head_dim=[w // 64 for w in widths] if second else 8, use_linear_projection=second,
    )
    levels = len(size["vae"])
    vae = diffusers.AutoencoderKL(
        block_out_channels=size["vae"], layers_per_block=2, latent_channels=4, scaling_factor=0.18215,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
    )
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        hidden_size=size["text"], intermediate_size=4 * size["text"], num_hidden_layers=size["layers"],
        num_attention_heads=size["text"] // 64, hidden_act="gelu" if second else "quick_gelu", projection_dim=64,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=0 if second else 49407,
    ))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        steps_offset=1, prediction_type="v_prediction" if second else "epsilon", timestep_spacing="trailing",
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    for module in parts.values():
        module.eval().requires_grad_(False)
    return parts | {"scheduler": scheduler}


def save(kind: str, folder: Path, sizes: dict | None = None) -> dict:
    """The pipeline's folder, with a tokenizer of the published kind; returns the parts."""
    import diffusers
    import transformers

    from sb.formats.tokenizer import write_tokenizer

    parts = make(kind, sizes)
    write_tokenizer(folder / "words", 77, "zero" if kind == "sd2" else "eos")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "words")
    pipeline = diffusers.StableDiffusionInpaintPipeline if kind.endswith("inpainting") else (
        diffusers.StableDiffusionPipeline
    )
    pipeline(**parts, tokenizer=tokenizer, safety_checker=None, feature_extractor=None).save_pretrained(folder / "pipe")
    return parts


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """kind -> (the pipeline's folder, its parts), small and made once; full_width ones are made anew."""
    made: dict[str, tuple[Path, dict]] = {}

    def of(kind: str, full_width: bool = False) -> tuple[Path, dict]:
        if full_width:
            folder = tmp_path_factory.mktemp(f"full-{kind}")
            return folder / "pipe", save(kind, folder, FULL)
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = folder / "pipe", save(kind, folder)
        return made[kind]

    return of


@pytest.fixture(scope="session")
def compvis(published):
    """kind -> the entries of a CompVis file of the same weights, by diffusers' own key tables read backwards.

    Each entry is named by where diffusers' converter takes a tensor from.
    """
    tables = pytest.importorskip("diffusers.loaders.single_file_utils")
    from sb.formats import names
    from sb.models.text import clip

    def of(kind: str) -> dict[str, torch.Tensor]:
        _, parts = published(kind)
        unet, vae, text = (parts[name].state_dict() for name in ("unet", "vae", "text_encoder"))
        ours = names.compvis_unet(2, [True, False])
        entries = {ours(name).names[0]: value.clone() for name, value in unet.items()}
        kl = names.compvis_vae(2)
        entries |= {k: p.clone() for name, value in vae.items() for k, p in kl(name).cut(value).items()}
        back = tables.convert_ldm_unet_checkpoint(dict(entries), dict(parts["unet"].config))
        assert back.keys() == unet.keys() and all(torch.equal(back[name], unet[name]) for name in unet)
        back = tables.convert_ldm_vae_checkpoint(dict(entries), dict(parts["vae"].config))
        assert back.keys() == vae.keys() and all(torch.equal(back[name], vae[name]) for name in vae)
        if kind != "sd2":
            text = {name if name.startswith("text_model.") else f"text_model.{name}": v for name, v in text.items()}
            entries |= {f"cond_stage_model.transformer.{name}": value.clone() for name, value in text.items()}
            return entries
        # SD2's files hold open_clip's tower with one layer more than diffusers' folders, and a projection
        torch.manual_seed(1)
        tower = clip(width=128, layers=3, heads=2, projection=64, layer=-2)
        layout = names.hugging_face_clip("text_model." if "text_model.final_layer_norm.bias" in text else "", 2)
        state = tower.state_dict()
        for name in state:
            if layout(name).names:
                state[name] = layout(name).join([text[key] for key in layout(name).names])
        return entries | {f"cond_stage_model.model.{n.removeprefix('transformer.')}": v for n, v in state.items()}

    return of
