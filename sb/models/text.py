"""Text towers: OpenCLIP's text transformer, by published name or in any size, and its tokeniser.

Only the text half of a CLIP model is built. Texts are cleaned here before they are tokenised (entities, quotes,
ligatures), because published tokenisers differ there.

Legend: B batch, T tokens, D width, P pooled width.
"""

import html
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sb.config import nearest
from sb.models.weights import load_state, read_state
from sb.registry import register
from sb.types import TextFeatures

log = logging.getLogger(__name__)
# what CLIP files hold beside their text half
_NOT_TEXT = ("visual", "logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"'})


def clean_text(text: str) -> str:
    """One spelling for every way of writing a text: entities resolved, NFKC, straight quotes, single spaces."""
    text = html.unescape(html.unescape(text))
    return " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).split())


class Standardise(nn.Module):
    """(x - mean) / std per feature of (B, P): what a tower says of every text alike hides what it says of one."""

    mean: Tensor
    std: Tensor

    def __init__(self, sample: Tensor):
        super().__init__()
        self.register_buffer("mean", sample.mean(0))
        self.register_buffer("std", sample.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class TextTower(nn.Module):
    """``forward(tokens) -> TextFeatures``; the hidden states of one layer after the final norm.

    layer: -1 the last (SD1), -2 the one before (SD2). pool: ``mean`` over the text's own tokens, ``eos`` the end
    token through the projection, ``none``. pad: what fills the rest of the context, ``zero`` or ``eos`` (SD1's
    tokeniser). What the features do not depend on (later blocks, an unused projection) is neither run nor trained.
    untrained: what to call the tower in the one warning at its first use without loaded weights; "" for none.
    """

    def __init__(self, transformer: Any, layer: int, pool: str, pad: str, untrained: str = ""):
        super().__init__()
        from open_clip.tokenizer import SimpleTokenizer

        if pool not in ("mean", "eos", "none") or pad not in ("zero", "eos"):
            raise ValueError(f"text: pool '{pool}' must be mean, eos or none; pad '{pad}' must be zero or eos")
        self.transformer: Any = transformer
        blocks = transformer.transformer.resblocks
        if not -len(blocks) <= layer <= -1:
            raise ValueError(f"text: layer {layer} must lie in -{len(blocks)} ... -1, counted from the last")
        self.layer, self.pool, self.pad, self.untrained = layer, pool, pad, untrained
        self.standardise: nn.Module = nn.Identity()  # of the mean over tokens
        self.register_load_state_dict_post_hook(_weights_are_loaded)
        if pool != "eos":  # a parameter that never gets a gradient stops distributed training
            blocks[len(blocks) + layer + 1:].requires_grad_(False)
            for name, parameter in transformer.named_parameters():
                if name.startswith("text_projection"):
                    parameter.requires_grad_(False)
        self.context_length = int(transformer.context_length)
        self.tokenizer = SimpleTokenizer(context_length=self.context_length)
        self.width = int(transformer.width)
        self.pooled_width = {"mean": self.width, "eos": transformer.output_dim, "none": 0}[pool]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Cleaned texts as token ids (B, T) int64; a longer text is cut and keeps its end token."""
        tokens = self.tokenizer([clean_text(text) for text in texts], context_length=self.context_length)
        if self.pad == "eos":
            after_end = (tokens == self.tokenizer.eot_token_id).cumsum(1) > 0
            tokens = tokens.masked_fill(after_end, self.tokenizer.eot_token_id)
        return tokens

    def forward(self, tokens: Tensor) -> TextFeatures:
        """tokens (B, T) int64 -> tokens (B, T, D) and pooled (B, P) or None."""
        depth = len(self.transformer.transformer.resblocks)
        out = self.transformer.forward_intermediates(
            tokens, indices=[depth + self.layer], output_fmt="NLC", normalize_intermediates=True,
            intermediates_only=self.pool != "eos", stop_early=self.pool != "eos",
        )
        hidden = out["text_intermediates"][0]
        if self.pool == "none":
            return TextFeatures(hidden, None)
        if self.pool == "eos":
            return TextFeatures(hidden, out["text_features"])
        end = (tokens == self.tokenizer.eot_token_id).int().cumsum(1)
        own = ((end == 0) | (tokens == self.tokenizer.eot_token_id) & (end == 1)).to(hidden.dtype).unsqueeze(-1)
        return TextFeatures(hidden, self.standardise((hidden * own).sum(1) / own.sum(1)))

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Texts to features on the tower's own device."""
        if self.untrained:
            log.warning("text tower %s has random weights: give text.pretrained or text.weights", self.untrained)
            self.untrained = ""
        return self(self.tokenize(texts).to(self.transformer.positional_embedding.device))


@register("text", "openclip")
def openclip(
    model: str = "ViT-H-14", layer: int = -2, pool: str = "none", pad: str = "zero", quick_gelu: bool = False,
    pretrained: str | None = None,
) -> TextTower:
    """The text half of a published OpenCLIP architecture (``ViT-L-14``, ``ViT-H-14``, ...).

    pretrained: an open_clip tag (``laion2b_s32b_b79k``), downloaded on first use, or the path of a CLIP or text-half
    file; null leaves random weights, and a warning at the first use unless weights were loaded by then.
    Raises ValueError for an unknown architecture, tag or file, and for weights that do not fit.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transformer import QuickGELU, TextTransformer

    config = open_clip.get_model_config(model)
    if config is None or {"hf_model_name", "hf_tokenizer_name"} & set(config["text_cfg"]):
        raise ValueError(f"text: open_clip has no text transformer called '{model}'; see open_clip.list_models()")
    quick_gelu = quick_gelu or bool(config.get("quick_gelu"))
    if pretrained and get_pretrained_cfg(model, pretrained).get("quick_gelu") and not quick_gelu:
        raise ValueError(f"text.pretrained: {model} '{pretrained}' was trained with QuickGELU; set quick_gelu: true")
    activation = QuickGELU if quick_gelu else nn.GELU
    transformer = TextTransformer(**config["text_cfg"], output_dim=config["embed_dim"], act_layer=activation)
    if pretrained:
        path = _weights_file(model, pretrained)
        load_state(transformer, _text_half(read_state(path), path), str(path))
    return TextTower(transformer, layer, pool, pad, "" if pretrained else model)


def openclip_numbers(model: str, quick_gelu: bool = False) -> dict[str, Any]:
    """A published architecture's ``heads`` and ``quick_gelu``, which its weights do not show."""
    import open_clip

    config = open_clip.get_model_config(model)
    return {"heads": config["text_cfg"]["heads"], "quick_gelu": quick_gelu or bool(config.get("quick_gelu"))}


@register("text", "clip")
def clip(
    width: int, layers: int, heads: int, context_length: int = 77, projection: int = 0, quick_gelu: bool = False,
    layer: int = -1, pool: str = "none", pad: str = "zero", vocabulary: int = 49408, mlp_ratio: float = 4.0,
) -> TextTower:
    """A CLIP text tower by its numbers, as checkpoints hold it: SD1's is ``width=768, layers=12, heads=12,
    quick_gelu=true, pad=eos``, SD2's ``width=1024, layers=24, heads=16, layer=-2``.

    projection: width of the projection after the end token, 0 for none. Its random weights are for loading over.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    if pool == "eos" and not projection:
        raise ValueError("text 'clip': pool 'eos' needs a projection")
    transformer = TextTransformer(
        context_length=context_length, vocab_size=vocabulary, width=width, heads=heads, layers=layers,
        mlp_ratio=mlp_ratio, output_dim=projection, act_layer=QuickGELU if quick_gelu else nn.GELU,
    )
    return TextTower(transformer, layer, pool, pad, f"of width {width}")


def _weights_are_loaded(tower: TextTower, _: Any) -> None:
    tower.untrained = ""


def _weights_file(model: str, pretrained: str) -> Path:
    """A path as it is; the file of an open_clip tag, from open_clip's cache or the network."""
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    if Path(pretrained).is_file():
        return Path(pretrained)
    tag = get_pretrained_cfg(model, pretrained)
    if not tag:
        hint = nearest(pretrained, list_pretrained_tags_by_model(model))
        raise ValueError(f"text.pretrained '{pretrained}' is neither a file nor a tag of {model}; {hint}")
    try:
        return Path(download_pretrained(tag))
    except (OSError, RuntimeError, ValueError):  # what Hugging Face's client and urllib raise without a network
        raise ValueError(
            f"text.pretrained: cannot download {model} '{pretrained}'; without a network give the path of its file"
        ) from None


def _text_half(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The text transformer's tensors of a CLIP, CustomTextCLIP or text-half file, under their own names."""
    marker = "token_embedding.weight"
    found = [name.removesuffix(marker) for name in state if name.endswith(marker)]
    if not found:
        raise ValueError(f"{path} holds no text transformer: no '{marker}' in it")
    prefix = min(found, key=len)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in own.items() if name.split(".")[0] not in _NOT_TEXT}


@register("text", "tiny")
def tiny(
    width: int = 128, layers: int = 2, heads: int = 4, context_length: int = 16, pool: str = "mean", seed: int = 0
) -> TextTower:
    """A small OpenCLIP tower that needs no download; ``seed`` fixes its random weights, which may stay frozen.

    Random weights are told apart from published ones by two things that let a network learn words sooner: token
    embeddings of unit std, where the others start at 0.02, and a pooled mean that is standardised over random texts.
    """
    from open_clip.transformer import TextTransformer

    if context_length < 3 or heads < 1 or width % heads:
        raise ValueError(
            "text 'tiny': needs context_length >= 3 and a width that heads divide, not "
            f"{context_length}, {width} and {heads}"
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        transformer = TextTransformer(
            context_length=context_length, width=width, heads=heads, layers=layers, output_dim=width
        )
        nn.init.normal_(transformer.token_embedding.weight)
        tower = TextTower(transformer, -1, pool, "zero")
        if pool == "mean":
            tower.standardise = Standardise(tower(_random_texts(tower)).pooled)
    return tower


def _random_texts(tower: TextTower) -> Tensor:
    """512 texts of 1 to 8 random tokens between start and end, (512, T)."""
    start, end = tower.tokenizer.sot_token_id, tower.tokenizer.eot_token_id
    place, length = torch.arange(tower.context_length), torch.randint(1, min(8, tower.context_length - 2) + 1, (512, 1))
    tokens = torch.randint(1, start, (512, tower.context_length))
    tokens = tokens.masked_fill(place == 0, start).masked_fill(place == length + 1, end)
    return tokens.masked_fill(place > length + 1, 0)
