"""What a published checkpoint is, in a run file's words: from a diffusers folder's configs, or from tensor shapes.

Shapes are read as what most tensors agree on, so that one missing or misshapen tensor is named by the check that
follows instead of changing what the file is taken for.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
SD_HEADS, SD2_HEAD_WIDTH = 8, 64  # what no tensor tells: SD1 has eight heads everywhere, SD2 heads of 64 channels
CLIP_HEAD_WIDTH = 64
SD_SCALE = 0.18215  # of Stable Diffusion's latents
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETAS = {"num_steps": 1000, "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's


def unet_of_config(config: Mapping[str, Any], where: str) -> Spec:
    """``denoiser`` of a diffusers UNet2DConditionModel.

    Raises ValueError for a structure that is not Stable Diffusion's 1 or 2.
    """
    types = list(config["down_block_types"])
    depth = config.get("transformer_layers_per_block", 1)
    strange = set(types) - {"CrossAttnDownBlock2D", "DownBlock2D"}
    if strange or not isinstance(depth, int) or config.get("addition_embed_type") or config.get("dual_cross_attention"):
        raise ValueError(f"{where} is no Stable Diffusion 1 or 2 UNet (SDXL and others are not supported)")
    if isinstance(config.get("only_cross_attention"), bool) and config["only_cross_attention"]:
        raise ValueError(f"{where}: only_cross_attention is not supported")
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", SD_HEADS)
    return {
        "name": "unet", "widths": list(config["block_out_channels"]), "blocks": config["layers_per_block"],
        "attention": [kind.startswith("CrossAttn") for kind in types], "heads": heads, "depth": depth,
        "groups": config.get("norm_num_groups", 32), "linear_projection": bool(config.get("use_linear_projection")),
        "scale_shift": config.get("resnet_time_scale_shift", "default") == "scale_shift",
    }


def image_size(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """Side in px of the pictures that a diffusers pipeline was trained on; 512 where its configs do not tell."""
    widths = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [1] * 4
    size = unet.get("sample_size")
    return size * 2 ** (len(widths) - 1) if isinstance(size, int) else 512


def unet_of_shapes(shapes: Shapes, where: str) -> Spec:
    """The same from a CompVis UNet's entries without their prefix."""
    flat = {name: shape for name, shape in shapes.items() if name.startswith("input_blocks.")}
    if not flat or any(name.startswith("label_emb.") and not name.endswith("weight") for name in shapes):
        raise ValueError(f"{where} is no Stable Diffusion 1 or 2 UNet (SDXL and others are not supported)")
    places = sorted({int(name.split(".")[1]) for name in flat})
    downs = sorted({int(n.split(".")[1]) for n in flat if ".op." in n})
    blocks = (downs[0] if downs else places[-1] + 1) - 1
    stages = len(downs) + 1
    inside = [[n for n in flat if (int(n.split(".")[1]) - 1) // (blocks + 1) == i] for i in range(stages)]
    widths = [
        _most(flat[n][0] for n in names if re.search(r"\.0\.(in_layers\.2|out_layers\.[03])\.", n)) for names in inside
    ]
    attention = [any(".transformer_blocks." in name for name in names) for names in inside]
    linear = _most(len(shape) for name, shape in flat.items() if name.endswith("proj_in.weight")) == 2
    depths = {int(m[1]) for name in flat if (m := re.search(r"transformer_blocks\.(\d+)\.", name))}
    return {
        "name": "unet", "widths": widths, "blocks": blocks, "attention": attention,
        "heads": [max(width // SD2_HEAD_WIDTH, 1) for width in widths] if linear else SD_HEADS,
        "depth": len(depths) or 1, "groups": 32, "linear_projection": linear, "scale_shift": False,
    }


def vae_of_config(config: Mapping[str, Any], where: str) -> Spec:
    """``vae`` of a diffusers AutoencoderKL or AutoencoderTiny; ValueError for another kind."""
    kind, scale, shift = config.get("_class_name"), config.get("scaling_factor"), config.get("shift_factor")
    usual = SD_SCALE if kind == "AutoencoderKL" else 1.0  # folders older than that setting do not name it
    ends = {"scale": usual if scale is None else float(scale), "shift": float(shift or 0.0)}
    if kind == "AutoencoderKL":
        widths = list(config["block_out_channels"])
        return {
            "name": "kl", "channels": widths[0], "multipliers": [width // widths[0] for width in widths],
            "blocks": config["layers_per_block"], "latent_channels": config["latent_channels"],
            "mid_attention": config.get("mid_block_add_attention", True),
            "norm_groups": config.get("norm_num_groups", 32), **ends,
        }
    if kind == "AutoencoderTiny":
        blocks = list(config["num_encoder_blocks"])
        return {
            "name": "tiny", "latent_channels": config["latent_channels"], "stages": len(blocks) - 1,
            "widths": list(config["encoder_block_out_channels"]), "blocks": blocks,
            "pooled": False, **ends,
        }
    raise ValueError(f"{where} is a {kind}; AutoencoderKL and AutoencoderTiny are supported")


def vae_of_shapes(shapes: Shapes, where: str) -> Spec:
    """``vae`` of a CompVis autoencoder's entries without their prefix; Stable Diffusion's scale."""
    blocks: dict[int, set[int]] = {}
    widths: dict[int, list[int]] = {}
    for name, shape in shapes.items():
        found = re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.(conv\d|norm2)\.", name)
        if found:
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
            widths.setdefault(int(found[1]), []).append(shape[0])
    if not widths:
        raise ValueError(f"{where} holds no autoencoder's encoder")
    per_level = [_most(widths[level]) for level in sorted(widths)]
    latent_channels = _most(
        shape[0] // (1 if name.startswith("post") else 2)
        for name, shape in shapes.items() if re.match(r"(post_)?quant_conv\.", name)
    )
    return {
        "name": "kl", "channels": per_level[0], "multipliers": [width // per_level[0] for width in per_level],
        "blocks": _most(max(found) + 1 for found in blocks.values()), "latent_channels": latent_channels,
        "mid_attention": any(name.startswith("encoder.mid.attn_1.") for name in shapes), "norm_groups": 32,
        "scale": SD_SCALE, "shift": 0.0,
    }


def tiny_of_shapes(encoder: Shapes) -> Spec:
    """``vae`` of a tiny autoencoder's encoder, whose entries start with layer numbers; scale 1 unless one is known."""
    numbers = {int(name.split(".")[0]) for name in encoder}
    blocks, widths, pooled = [0], [], False
    for number in sorted(numbers)[1:-1]:
        own = {name: shape for name, shape in encoder.items() if name.split(".")[0] == str(number)}
        if any(name.split(".")[1] in ("conv", "pool") for name in own):
            blocks[-1] += 1
            pooled |= any(".pool." in name for name in own)
        else:
            blocks.append(0)
            widths.append(next(iter(own.values()))[1])
    last = encoder[f"{max(numbers)}.weight"]
    return {
        "name": "tiny", "latent_channels": last[0], "stages": len(blocks) - 1, "widths": [*widths, last[1]],
        "blocks": blocks, "pooled": pooled,
    }


def text_of_config(config: Mapping[str, Any], pad: str, where: str) -> Spec:
    """``text`` of a transformers CLIPTextModel: all its layers count, the last one is what the UNet saw."""
    kinds = config.get("architectures") or ["CLIPTextModel"]
    if not set(kinds) <= {"CLIPTextModel", "CLIPTextModelWithProjection"} or config["hidden_act"] not in (
        "quick_gelu", "gelu",
    ):
        raise ValueError(f"{where} is a {kinds[0]} with {config['hidden_act']}, not a CLIP text model")
    return {
        "name": "clip", "width": config["hidden_size"], "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"], "context_length": config["max_position_embeddings"],
        "projection": 0, "quick_gelu": config["hidden_act"] == "quick_gelu", "layer": -1, "pool": "none", "pad": pad,
        "vocabulary": config.get("vocab_size", 49408), "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
    }


def text_of_shapes(shapes: Shapes, open_clip: bool) -> Spec:
    """``text`` of SD2's open_clip half or SD1's CLIPTextModel, entries without their prefix.

    SD2 looks one layer before the last of 24; a file that holds 23 has dropped the one it does not need.
    """
    layers = {int(m[1]) for name in shapes if (m := re.match(r"(?:encoder\.layers|.*resblocks)\.(\d+)\.", name))}
    width = _most(shape[-1] for name, shape in shapes.items() if "embedding" in name and len(shape) == 2)
    context = next((s[0] for n, s in shapes.items() if n.split(".")[-2:-1] != ["token_embedding"]
                    and re.search(r"position(al)?_embedding", n) and len(s) == 2), 77)
    vocabulary = next((s[0] for n, s in shapes.items() if n.endswith("token_embedding.weight")), 49408)
    projection = shapes["text_projection"][1] if "text_projection" in shapes else 0
    penultimate = open_clip and not (width == 1024 and len(layers) == 23)
    return {
        "name": "clip", "width": width, "layers": len(layers), "heads": max(width // CLIP_HEAD_WIDTH, 1),
        "context_length": context, "projection": projection, "quick_gelu": not open_clip,
        "layer": -2 if penultimate else -1, "pool": "none", "pad": "zero" if open_clip else "eos",
        "vocabulary": vocabulary, "mlp_ratio": 4.0,
    }


def schedule_of_config(config: Mapping[str, Any], where: str) -> Spec:
    """``schedule`` of a diffusers scheduler; ValueError for betas or predictions of another kind."""
    betas, prediction = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if betas != "scaled_linear" or config.get("trained_betas") is not None or prediction not in PREDICTIONS:
        raise ValueError(f"{where}: {betas} betas with {prediction} prediction are not supported")
    return {
        "name": "scaled_linear", "num_steps": config["num_train_timesteps"], "beta_start": config["beta_start"],
        "beta_end": config["beta_end"], "prediction": PREDICTIONS[prediction],
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr")),
    }


def _most(values: Iterable[int]) -> int:
    counted = Counter(values).most_common(1)
    if not counted:
        raise ValueError("too many of its tensors are missing to tell what it is")
    return counted[0][0]


def tower_seen(text: Mapping[str, Any]) -> Spec:
    """Of a ``clip`` tower, what its features depend on: the layers up to the one it stops at, and how they work."""
    defaults = {"quick_gelu": False, "pad": "zero", "layer": -1, "pool": "none"}
    text = {**defaults, **text}
    return {
        "layers that count": text["layers"] + 1 + text["layer"],
        **{key: text[key] for key in ("width", "heads", "quick_gelu", "pad", "pool")},
    }


_ALIKE = (  # settings that two descriptions of one network share; the rest shows in the tensors' shapes
    "layers that count", "width", "widths", "blocks", "attention", "heads", "depth", "groups", "linear_projection",
    "scale_shift", "channels", "multipliers", "norm_groups", "quick_gelu", "pad", "pool", "pooled", "stages",
)


def differences(ours: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Settings of one network that a run file and a checkpoint both give, with other values: ``heads is 8, there 5``.

    One number for all resolutions is the same as a list of that number.
    """
    def agree(one: Any, other: Any) -> bool:
        if isinstance(one, Sequence) == isinstance(other, Sequence):
            return list(one) == list(other) if isinstance(one, (list, tuple)) else one == other
        several, single = (one, other) if isinstance(one, Sequence) else (other, one)
        return all(value == single for value in several)

    return [
        f"{key} is {ours[key]}, there {found[key]}"
        for key in _ALIKE if key in ours and key in found and not agree(ours[key], found[key])
    ]
