"""What published files call our tensors. A layout is a function from our name to the file's ``Piece``.

Our own names are diffusers' for UNet and VAE and open_clip's for the text tower, so those layouts are the identity.
One direction is enough: to read, every tensor of ours is gathered from the pieces its layout names; to write, it is
cut into them.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Where a tensor is kept: in one entry, or cut into equal parts along its first dimension; () for nowhere.

    square: the file holds a linear layer's weight (O, I) as that of a 1x1 convolution (O, I, 1, 1).
    """

    names: tuple[str, ...]
    square: bool = False

    def cut(self, tensor: Tensor) -> dict[str, Tensor]:
        """Ours as the file's entries."""
        if not self.names:
            return {}
        tensor = tensor[:, :, None, None] if self.square else tensor
        return dict(zip(self.names, tensor.chunk(len(self.names)), strict=True))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of ``cut``."""
        tensor = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return tensor[:, :, 0, 0] if self.square else tensor


Layout = Callable[[str], Piece]


def plain(prefix: str = "") -> Layout:
    """Our own names behind a prefix."""
    return lambda name: Piece((prefix + name,))


def averaged(layout: Layout) -> Layout:
    """The exponential average beside the weights of a CompVis file: dots dropped, under ``model_ema``."""
    def of(name: str) -> Piece:
        piece = layout(name)
        names = ("model_ema." + n.removeprefix("model.").replace(".", "") for n in piece.names)
        return Piece(tuple(names), piece.square)

    return of


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb", "conv_norm_out": "out.0", "conv_out": "out.2",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


def compvis_unet(blocks: int, attention: Sequence[bool], prefix: str = "model.diffusion_model.") -> Layout:
    """CompVis' UNet: flat ``input_blocks`` and ``output_blocks``.

    blocks: residual blocks per stage of the way down (one more on the way up). attention: which stages attend.
    """
    stages = len(attention)

    def place(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if stem in _UNET_ENDS:
            return f"{_UNET_ENDS[stem]}.{leaf}"
        way, *rest = name.split(".")
        if way == "mid_block":
            return f"middle_block.{_MIDDLE['.'.join(rest[:2])]}.{_inside(rest[0], rest[2:])}"
        stage, kind, index = int(rest[0]), rest[1], int(rest[2])
        if way == "down_blocks":
            if kind == "downsamplers":
                return f"input_blocks.{(stage + 1) * (blocks + 1)}.0.op.{rest[-1]}"
            return f"input_blocks.{1 + stage * (blocks + 1) + index}.{kind == 'attentions':d}.{_inside(kind, rest[3:])}"
        if kind == "upsamplers":
            after = 1 + attention[stages - 1 - stage]
            return f"output_blocks.{stage * (blocks + 1) + blocks}.{after}.conv.{rest[-1]}"
        return f"output_blocks.{stage * (blocks + 1) + index}.{kind == 'attentions':d}.{_inside(kind, rest[3:])}"

    return lambda name: Piece((prefix + place(name),))


def _inside(kind: str, rest: Sequence[str]) -> str:
    return ".".join((_RESNET[rest[0]], *rest[1:]) if kind == "resnets" else rest)


_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_CELL_ATTENTION = re.compile(r"(.*mid_block\.attentions\.0\.)(group_norm|to_q|to_k|to_v|to_out\.0)\.(weight|bias)")


def compvis_vae(levels: int, prefix: str = "first_stage_model.") -> Layout:
    """CompVis' autoencoder of so many resolutions; attention in 1x1 convolutions."""

    def of(name: str) -> Piece:
        found = _CELL_ATTENTION.fullmatch(name)
        if found:
            half, part, leaf = found.groups()
            new = f"{half.split('.')[0]}.mid.attn_1.{_ATTENTION[part]}.{leaf}"
            return Piece((prefix + new,), square=part != "group_norm" and leaf == "weight")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        return Piece((prefix + name,))

    return of


def old_diffusers_vae(name: str) -> Piece:
    """diffusers' VAE as it was saved before attention had its present names."""
    found = _CELL_ATTENTION.fullmatch(name)
    if not found or found[2] not in _OLD_ATTENTION:
        return Piece((name,))
    return Piece((f"{found[1]}{_OLD_ATTENTION[found[2]]}.{found[3]}",))


def sequences(name: str) -> Piece:
    """A published pair of tiny autoencoder files, whose names are bare layer numbers.

    Their decoder counts the squashing of z as layer 0; ours, like diffusers', has no layer for it.
    """
    half, _, number, rest = name.split(".", 3)
    return Piece((f"{half}:{int(number) + (half == 'decoder')}.{rest}",))


_CLIP_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP_ENDS = {
    "transformer.token_embedding.weight": "embeddings.token_embedding.weight",
    "transformer.positional_embedding": "embeddings.position_embedding.weight",
    "transformer.ln_final.weight": "final_layer_norm.weight", "transformer.ln_final.bias": "final_layer_norm.bias",
}


def hugging_face_clip(prefix: str, num_layers: int) -> Layout:
    """transformers' CLIPTextModel of so many layers; it has no place for a projection or for further layers.

    prefix: what stands before ``embeddings`` and ``encoder``: ``text_model.``, or nothing in recent folders.
    """

    def of(name: str) -> Piece:
        if name in _CLIP_ENDS:
            return Piece((prefix + _CLIP_ENDS[name],))
        found = re.fullmatch(r"transformer\.transformer\.resblocks\.(\d+)\.(.+)", name)
        if not found or int(found[1]) >= num_layers:
            return Piece(())
        layer, rest = f"{prefix}encoder.layers.{found[1]}.", found[2]
        if rest.startswith("attn.in_proj_"):
            leaf = rest.removeprefix("attn.in_proj_")
            return Piece(tuple(f"{layer}self_attn.{part}_proj.{leaf}" for part in "qkv"))
        stem, _, leaf = rest.rpartition(".")
        return Piece((f"{layer}{_CLIP_BLOCK[stem]}.{leaf}",))

    return of


def open_clip_text(prefix: str = "cond_stage_model.model.") -> Layout:
    """open_clip's text half, as in SD2 files: what our tower keeps under ``transformer``, and nothing else of it."""
    ours = "transformer."
    return lambda name: Piece((prefix + name.removeprefix(ours),) if name.startswith(ours) else ())
