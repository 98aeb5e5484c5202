"""Our networks and diffusers' or transformers' with the same weights and inputs, as pairs of calls to compare.

Theirs are built without memory and then given our own Parameter objects, so that Stable Diffusion's size fits twice
where one fits, and one optimizer trains both.

Legend: B batch, C channels, k mask channels, h w latent cells, H W pixels, T tokens, D text width.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sb.models.unet import UNet
from sb.models.vae import KLVAE
from sb.registry import build
from sb.types import Condition

START, END = 49406, 49407  # CLIP's tokens around a text
Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Size:
    """What is built: arguments of our UNet, KL VAE and text tower; latent: cells per side where none are given."""

    latent: int
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]


SIZES = {
    "sd1": Size(
        64,
        {"in_channels": 4, "out_channels": 4, "mask_head": 0, "text_width": 768, "level_rows": 0,
         "widths": (320, 640, 1280, 1280), "attention": (True, True, True, False), "blocks": 2, "heads": 8,
         "groups": 32},
        {"channels": 128, "multipliers": (1, 2, 4, 4), "norm_groups": 32},
        {"width": 768, "layers": 12, "heads": 12, "context_length": 77, "quick_gelu": True, "pad": "eos"},
    ),
    "quickstart": Size(
        16,
        {"in_channels": 20, "out_channels": 4, "mask_head": 16, "text_width": 128, "level_rows": 6,
         "widths": (48, 96, 128), "attention": (False, False, True), "blocks": 1, "heads": 4, "groups": 16,
         "pooled_width": 128, "scale_shift": True},
        {"channels": 32, "multipliers": (1, 2, 4), "norm_groups": 32},
        {"width": 128, "layers": 2, "heads": 4, "context_length": 24},
    ),
    "tiny": Size(
        8,
        {"in_channels": 5, "out_channels": 4, "mask_head": 1, "text_width": 16, "level_rows": 6,
         "widths": (16, 32), "attention": (False, True), "blocks": 1, "heads": 2, "groups": 8,
         "pooled_width": 16, "scale_shift": True},
        {"channels": 8, "multipliers": (1, 2), "norm_groups": 4},
        {"width": 16, "layers": 2, "heads": 2, "context_length": 8},
    ),
}


@dataclass
class Pair:
    """The same computation twice: each side's call gives its outputs, equal when joined along the channels."""

    ours: Call
    theirs: Call
    parameters: list[nn.Parameter]


def library(name: str) -> Any:
    """diffusers or transformers; ValueError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"benchmark: needs {name}: pip install -e '.[test]'") from None


def _share(theirs: nn.Module, ours: nn.Module) -> None:
    """Put our Parameter objects in the place of theirs, by name; a name that one side lacks is an error."""
    own = dict(ours.named_parameters())
    if set(own) != set(theirs.state_dict()):
        odd = sorted(set(own) ^ set(theirs.state_dict()))
        raise ValueError(f"benchmark: {len(odd)} parameters are on one side only: {', '.join(odd[:5])}")
    for name, parameter in own.items():
        path, _, leaf = name.rpartition(".")
        module = theirs.get_submodule(path)
        if getattr(module, leaf).shape != parameter.shape:
            raise ValueError(f"benchmark: {name} has another shape there than {tuple(parameter.shape)}")
        setattr(module, leaf, parameter)


def _layout(tensor: Any, device: torch.device) -> Any:
    """A module or picture-shaped tensor as a GPU's convolutions want it: channels last."""
    return tensor.to(memory_format=torch.channels_last) if device.type == "cuda" else tensor


def unet_pair(size: Size, latent: int, batch: int, device: torch.device) -> Pair:
    """x (B, C + k, h, w) and t (B,) to the whole output (B, C + k, h, w); diffusers gets the class vector made."""
    told = size.unet
    with device:
        ours = _layout(UNet(**told, zero_init=False).eval(), device)
        x = _layout(torch.randn(batch, told["in_channels"], latent, latent), device)
        t = torch.full((batch,), 500)
        tokens = torch.randn(batch, size.text["context_length"], told["text_width"])
        pooled = torch.randn(batch, told["pooled_width"]) if "pooled_width" in told else None
        cond = Condition(tokens, pooled, torch.full((batch,), 1.5))
        class_vector = ours.class_vector(cond)
    names = ["CrossAttn" if attends else "" for attends in told["attention"]]
    classes: dict[str, Any] = {}
    if class_vector is not None:
        classes = {
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": class_vector.shape[1],
            "resnet_time_scale_shift": "scale_shift",
        }
    channels = told["out_channels"] + told["mask_head"]
    with torch.device("meta"):
        theirs = library("diffusers").UNet2DConditionModel(
            sample_size=latent, in_channels=told["in_channels"], out_channels=channels,
            block_out_channels=told["widths"], layers_per_block=told["blocks"], norm_num_groups=told["groups"],
            attention_head_dim=told["heads"], cross_attention_dim=told["text_width"],
            down_block_types=tuple(f"{name}DownBlock2D" for name in names),
            up_block_types=tuple(f"{name}UpBlock2D" for name in reversed(names)), **classes,
        ).eval()
    _share(theirs, ours)

    def our_call() -> tuple[Tensor, ...]:
        return tuple(part for part in ours(x, t, cond) if part is not None)

    def their_call() -> tuple[Tensor, ...]:
        return (theirs(x, t, encoder_hidden_states=tokens, class_labels=class_vector).sample,)

    return Pair(our_call, their_call, list(ours.parameters()))


def vae_pair(size: Size, latent: int, batch: int, device: torch.device) -> Pair:
    """A picture (B, 3, H, W) to the mean of its latents, and back to a picture."""
    told = size.vae
    with device:
        ours = _layout(KLVAE(**told).eval(), device)
        image = _layout(torch.randn(batch, 3, latent * ours.factor, latent * ours.factor), device)
    levels = len(told["multipliers"])
    with torch.device("meta"):
        theirs = library("diffusers").AutoencoderKL(
            block_out_channels=tuple(told["channels"] * m for m in told["multipliers"]), layers_per_block=2,
            norm_num_groups=told["norm_groups"], latent_channels=ours.latent_channels,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        ).eval()
    _share(theirs, ours)

    def our_call() -> tuple[Tensor, ...]:
        return (ours.decode(ours.encode(image).mean),)

    def their_call() -> tuple[Tensor, ...]:
        return (theirs.decode(theirs.encode(image).latent_dist.mean).sample,)

    return Pair(our_call, their_call, list(ours.parameters()))


def text_pair(size: Size, latent: int, batch: int, device: torch.device) -> Pair:
    """Token ids (B, T) to features (B, T, D); theirs holds copies, because ours packs q, k and v in one matrix."""
    transformers, told = library("transformers"), size.text
    length = told["context_length"]
    with device:
        ours = build("text", {"name": "clip", **told}).eval()
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(
            hidden_size=told["width"], intermediate_size=4 * told["width"], num_hidden_layers=told["layers"],
            num_attention_heads=told["heads"], max_position_embeddings=length, projection_dim=told["width"],
            hidden_act="quick_gelu" if told.get("quick_gelu") else "gelu", vocab_size=END + 1,
            bos_token_id=START, eos_token_id=END,
        )).eval()
        tokens = torch.randint(1000, 2000, (batch, length))
        tokens[:, 0], tokens[:, length // 2:] = START, END
    state = _their_text_names(ours.transformer.state_dict())
    prefix = "text_model." if any(name.startswith("text_model.") for name in theirs.state_dict()) else ""
    missing, unexpected = theirs.load_state_dict({prefix + name: t for name, t in state.items()}, strict=False)
    if unexpected or any("position_ids" not in name for name in missing):
        raise ValueError(f"benchmark: text weights differ in name: {', '.join([*missing, *unexpected][:5])}")
    return Pair(
        lambda: (ours(tokens).tokens,), lambda: (theirs(input_ids=tokens).last_hidden_state,), list(ours.parameters()),
    )


def _their_text_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's text transformer under transformers' names, q, k and v apart; without the projection."""
    found = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    renamed = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, tensor in state.items():
        if not name.startswith("transformer.resblocks."):
            continue
        number, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
        if rest.startswith("attn.in_proj_"):
            for letter, chunk in zip("qkv", tensor.chunk(3), strict=True):
                found[f"encoder.layers.{number}.self_attn.{letter}_proj.{rest.removeprefix('attn.in_proj_')}"] = chunk
        else:
            layer, leaf = rest.rsplit(".", 1)
            found[f"encoder.layers.{number}.{renamed[layer]}.{leaf}"] = tensor
    return found
