"""Our networks in the files of others: a diffusers folder, or one file in Stable Diffusion's layout.

Nothing is lost: what a format has no place for goes into a file or under a prefix of our own, and is named.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sb.config import write_whole
from sb.formats import describe, names
from sb.formats.part import pad
from sb.formats.source import ABOUT_FILE, ABOUT_KEY, BESIDE, EXTRAS_FILE, with_beside
from sb.formats.tokenizer import write_tokenizer
from sb.models.text import openclip_numbers
from sb.models.weights import write_state
from sb.registry import filled

_NAMED = ("vae", "text", "denoiser", "schedule")
State = Mapping[str, Tensor]
Sections = Mapping[str, Any]
PREDICTIONS = {ours: theirs for theirs, ours in describe.PREDICTIONS.items()}


def write_diffusers(folder: Path, states: Mapping[str, State], config: Sections, meta: Sections) -> list[str]:
    """A diffusers pipeline folder, or that of a VAE alone; returns the names of what went into
    ``smartbrush.safetensors`` beside it.

    states: ``vae``, ``text`` and ``unet`` under our names. What the folder cannot say of a model (precision levels, a
    mask head) is in ``smartbrush.json``, the run file's sections and ``meta``, without which it is not read back.
    Raises ValueError for parts that diffusers has no class for.
    """
    said, config = config, {**config, **{name: filled(name, config[name]) for name in _NAMED if name in config}}
    vae_config, vae_state = _vae(config["vae"], states["vae"])
    if "unet" not in states:
        write_state(vae_state, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        _write_json(folder / "config.json", vae_config)
        if vae_state is not states["vae"]:
            _write_json(folder / ABOUT_FILE, {"vae": said["vae"], "meta": meta})
        return []
    text_config = _text(config["text"], states["text"])
    cut = _cut(states["text"], with_beside(names.hugging_face_clip("text_model.", text_config["num_hidden_layers"])))
    beside = {name: value for name, value in cut.items() if name.startswith(BESIDE)}
    scheduler = _scheduler(config["schedule"])
    unet_config = _unet(config, states)
    for part, stem, state in (
        ("unet", "diffusion_pytorch_model", states["unet"]), ("vae", "diffusion_pytorch_model", vae_state),
        ("text_encoder", "model", {name: value for name, value in cut.items() if name not in beside}),
    ):
        write_state(state, folder / part / f"{stem}.safetensors", {"format": "pt"})
    for place, content in (
        ("unet/config.json", unet_config), ("vae/config.json", vae_config),
        ("text_encoder/config.json", text_config), ("scheduler/scheduler_config.json", scheduler),
        ("model_index.json", _index(config, vae_config["_class_name"])),
    ):
        _write_json(folder / place, content)
    write_tokenizer(folder / "tokenizer", text_config["max_position_embeddings"], config["text"].get("pad", "zero"))
    if beside:
        write_state(beside, folder / EXTRAS_FILE)
    if beside or _is_ours(config):
        _write_json(folder / ABOUT_FILE, {**said, "meta": meta})
    return sorted(beside)


def write_single_file(path: Path, states: Mapping[str, State], config: Sections, meta: Sections) -> list[str]:
    """One .safetensors file in CompVis' layout, with the run file's sections and ``meta`` in its header.

    Returns the names of what that layout has no place for; they are kept behind ``sb.``.
    """
    said, config = config, {**config, **{name: filled(name, config[name]) for name in _NAMED if name in config}}
    vae, prefix = config["vae"], "first_stage_model."
    kl = vae["name"] == "kl"
    layouts = {"vae": names.compvis_vae(len(vae["multipliers"]), prefix) if kl else names.plain(prefix)}
    if "unet" in states:
        denoiser = config["denoiser"]
        if denoiser["name"] != "unet":
            raise ValueError(f"a single file has no place for the denoiser '{denoiser['name']}'")
        layouts["unet"] = names.compvis_unet(denoiser["blocks"], denoiser["attention"])
        layouts["text"] = with_beside(text_layout(config["text"]))
    entries = {key: value for part, state in states.items() for key, value in _cut(state, layouts[part]).items()}
    write_state(entries, path, {"format": "pt", ABOUT_KEY: json.dumps({**said, "meta": meta})})
    return sorted(name for name in entries if name.startswith(BESIDE))


def _is_ours(config: Sections) -> bool:
    """Whether a model needs more to be said of it than a folder in diffusers' format can."""
    denoiser, vae = config["denoiser"], config["vae"]
    return (
        denoiser.get("with_level", True) or denoiser.get("with_mask_head", True) or config["text"]["name"] != "clip"
        or denoiser.get("with_task") or config["conditioning"]["name"] == "smartbrush"
        or config["text"]["pool"] != "none"
        or vae["name"] == "tiny" and not isinstance(vae["widths"], int) and len(set(vae["widths"])) > 1
    )


def text_layout(text: Sections) -> names.Layout:
    """Where a single file keeps a text tower: as transformers' CLIP for SD1's kind, else as open_clip's."""
    if text.get("quick_gelu") and text.get("pad") == "eos":
        return names.hugging_face_clip("cond_stage_model.transformer.text_model.", 10**6)
    return names.open_clip_text()


def _cut(state: State, layout: names.Layout) -> dict[str, Tensor]:
    return {key: part for name, value in state.items() for key, part in layout(name).cut(value).items()}


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def _index(config: Sections, vae_class: str) -> dict[str, Any]:
    inpainting = config["conditioning"]["name"] == "nine_channel"
    return {
        "_class_name": "StableDiffusionInpaintPipeline" if inpainting else "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0", "feature_extractor": [None, None], "image_encoder": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae_class],
    }


def _unet(config: Sections, states: Mapping[str, State]) -> dict[str, Any]:
    spec, state = config["denoiser"], states["unet"]
    if spec["name"] != "unet":
        raise ValueError(f"diffusers has no class for the denoiser '{spec['name']}'")
    attention = [bool(flag) for flag in spec["attention"]]
    heads = spec["heads"] if isinstance(spec["heads"], int) else list(spec["heads"])
    rows = state.get("class_embedding.weight")
    pooled = "class_embedding.bias" in state
    widths = list(spec["widths"])
    context = next(v.shape[1] for n, v in state.items() if n.endswith("attn2.to_k.weight"))
    return {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": heads,
        "block_out_channels": widths, "center_input_sample": False, "cross_attention_dim": context,
        "down_block_types": ["CrossAttnDownBlock2D" if flag else "DownBlock2D" for flag in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(attention)],
        "mid_block_type": "UNetMidBlock2DCrossAttn", "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0,
        "in_channels": state["conv_in.weight"].shape[1], "out_channels": state["conv_out.weight"].shape[0],
        "layers_per_block": spec["blocks"], "mid_block_scale_factor": 1, "norm_eps": 1e-5,
        "norm_num_groups": spec.get("groups", 32), "sample_size": config["image_size"] // factor_of(config["vae"]),
        "transformer_layers_per_block": spec.get("depth", 1),
        "use_linear_projection": bool(spec.get("linear_projection")),
        "resnet_time_scale_shift": "scale_shift" if spec.get("scale_shift") else "default",
        "class_embed_type": "simple_projection" if pooled else None,
        "num_class_embeds": None if pooled or rows is None else rows.shape[0],
        "projection_class_embeddings_input_dim": rows.shape[1] if pooled and rows is not None else None,
    }


def factor_of(vae: Sections) -> int:
    """Pixels per latent cell side of a ``vae`` section."""
    return 2 ** (vae["stages"] if vae["name"] == "tiny" else len(vae["multipliers"]) - 1)


def _vae(spec: Sections, state: State) -> tuple[dict[str, Any], State]:
    ends = {"scaling_factor": float(spec.get("scale", 1.0)), "shift_factor": float(spec.get("shift", 0.0))}
    if spec["name"] == "kl":
        widths = [spec["channels"] * m for m in spec["multipliers"]]
        levels = len(widths)
        return {
            "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": widths, "in_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
            "latent_channels": spec.get("latent_channels", 4), "layers_per_block": spec.get("blocks", 2),
            "mid_block_add_attention": bool(spec.get("mid_attention", True)), "out_channels": 3,
            "norm_num_groups": spec.get("norm_groups", 32), "sample_size": 64, **ends,
        }, state
    if spec["name"] != "tiny" or spec.get("pooled"):
        raise ValueError(f"diffusers has no class for this vae: {spec['name']}, pooled {spec.get('pooled')}")
    stages = spec["stages"]
    widths = [spec["widths"]] * (stages + 1) if isinstance(spec["widths"], int) else list(spec["widths"])
    blocks = [spec["blocks"]] * (stages + 1) if isinstance(spec["blocks"], int) else list(spec["blocks"])
    return {
        "_class_name": "AutoencoderTiny", "act_fn": "relu", "in_channels": 3, "out_channels": 3,
        "encoder_block_out_channels": [max(widths)] * (stages + 1),
        "decoder_block_out_channels": [max(widths)] * (stages + 1), "num_encoder_blocks": blocks,
        "num_decoder_blocks": list(reversed(blocks)), "latent_channels": spec.get("latent_channels", 4),
        "latent_magnitude": 3, "latent_shift": 0.5, "upsampling_scaling_factor": 2, **ends,
    }, state if len(set(widths)) == 1 else _one_width(state, max(widths))


def _one_width(state: State, width: int) -> State:
    """A tiny autoencoder whose layers all have one width, as AutoencoderTiny wants it: zeros change nothing there."""
    numbers = {h: {int(n.split(".")[2]) for n in state if n.startswith(h)} for h in ("encoder", "decoder")}
    last, entry = ({half: pick(found) for half, found in numbers.items()} for pick in (max, min))
    wide = {}
    for name, value in state.items():
        half, number = name.split(".")[0], int(name.split(".")[2])
        shape = list(value.shape)
        if number != last[half]:
            shape[0] = width
        if value.ndim == 4 and number != entry[half]:
            shape[1] = width
        wide[name] = pad(value, tuple(shape))
    return wide


def _text(spec: Sections, state: State) -> dict[str, Any]:
    """Of the tower up to the layer that the denoiser sees."""
    if spec["name"] not in ("clip", "openclip", "tiny"):
        raise ValueError(f"transformers has no class for the text tower '{spec['name']}'")
    if spec["name"] == "openclip":
        spec = {**spec, **openclip_numbers(spec["model"], spec["quick_gelu"])}
    stem = "transformer.transformer.resblocks."
    present = 1 + max(int(name.removeprefix(stem).split(".")[0]) for name in state if name.startswith(stem))
    width = state["transformer.ln_final.weight"].shape[0]
    inner = state[f"{stem}0.mlp.c_fc.weight"].shape[0]
    ends = "token_embedding.weight", "positional_embedding"
    vocabulary, context = (state[f"transformer.{name}"].shape[0] for name in ends)
    pads = 49407 if spec.get("pad") == "eos" else 0
    return {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": width,
        "num_hidden_layers": present + 1 + int(spec.get("layer", -1)), "num_attention_heads": spec["heads"],
        "intermediate_size": inner, "max_position_embeddings": context, "vocab_size": vocabulary,
        "hidden_act": "quick_gelu" if spec.get("quick_gelu") else "gelu", "layer_norm_eps": 1e-5,
        "projection_dim": width, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": pads,
    }


def _scheduler(spec: Sections) -> dict[str, Any]:
    """DDIM with our times: from the last level in even steps, ending on the clean picture."""
    if spec["name"] != "scaled_linear" or spec.get("prediction", "eps") not in PREDICTIONS:
        raise ValueError(f"diffusers' DDIMScheduler has no {spec['name']} schedule predicting {spec.get('prediction')}")
    return {
        "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": spec.get("beta_start", 0.00085),
        "beta_end": spec.get("beta_end", 0.012), "clip_sample": False,
        "num_train_timesteps": spec.get("num_steps", 1000),
        "prediction_type": PREDICTIONS[spec.get("prediction", "eps")],
        "rescale_betas_zero_snr": bool(spec.get("zero_terminal_snr")),
        "set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "trailing",
    }
