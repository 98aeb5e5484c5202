"""Text towers: OpenCLIP's text transformer, by published name or in any size, and its tokeniser.

Only the text half of a CLIP model is built. Texts are cleaned here before they are tokenised (entities, quotes,
ligatures), because published tokenisers differ there.

Legend: B batch, T tokens, D width, P pooled width.
"""

import html
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sb.registry import register
from sb.types import TextFeatures

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"'})


def clean_text(text: str) -> str:
    """One spelling for every way of writing a text: entities resolved, NFKC, straight quotes, single spaces."""
    text = html.unescape(html.unescape(text))
    return " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).split())


class TextTower(nn.Module):
    """``forward(tokens) -> TextFeatures``; the hidden states of one layer after the final norm.

    layer: -1 the last (SD1), -2 the one before (SD2). pool: ``mean`` over the text's own tokens, ``eos`` the end
    token through the projection, ``none``. pad: what fills the rest of the context, ``zero`` or ``eos`` (SD1's
    tokeniser).
    """

    def __init__(self, transformer: nn.Module, layer: int, pool: str, pad: str):
        super().__init__()
        from open_clip.tokenizer import SimpleTokenizer

        if pool not in ("mean", "eos", "none") or pad not in ("zero", "eos"):
            raise ValueError(f"text: pool '{pool}' must be mean, eos or none; pad '{pad}' must be zero or eos")
        self.transformer: Any = transformer
        self.layer, self.pool, self.pad = layer, pool, pad
        self.context_length = int(self.transformer.context_length)
        self.tokenizer = SimpleTokenizer(context_length=self.context_length)
        self.width = int(self.transformer.width)
        self.pooled_width = {"mean": self.width, "eos": self.transformer.output_dim, "none": 0}[pool]

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
            intermediates_only=self.pool != "eos",
        )
        hidden = out["text_intermediates"][0]
        if self.pool == "none":
            return TextFeatures(hidden, None)
        if self.pool == "eos":
            return TextFeatures(hidden, out["text_features"])
        end = (tokens == self.tokenizer.eot_token_id).int().cumsum(1)
        own = ((end == 0) | (tokens == self.tokenizer.eot_token_id) & (end == 1)).to(hidden.dtype).unsqueeze(-1)
        return TextFeatures(hidden, (hidden * own).sum(1) / own.sum(1))

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Texts to features on the tower's own device."""
        return self(self.tokenize(texts).to(self.transformer.positional_embedding.device))


@register("text", "openclip")
def openclip(
    model: str = "ViT-H-14", layer: int = -2, pool: str = "none", pad: str = "zero", quick_gelu: bool = False
) -> TextTower:
    """The text half of a published OpenCLIP architecture (``ViT-L-14``, ``ViT-H-14``, ...), weights loaded later."""
    import open_clip
    from open_clip.transformer import QuickGELU, TextTransformer

    config = open_clip.get_model_config(model)
    if config is None or "hf_model_name" in config["text_cfg"]:
        raise ValueError(f"text: open_clip has no text transformer called '{model}'; see open_clip.list_models()")
    activation = QuickGELU if quick_gelu or config.get("quick_gelu") else nn.GELU
    tower = TextTransformer(**config["text_cfg"], output_dim=config["embed_dim"], act_layer=activation)
    return TextTower(tower, layer, pool, pad)


@register("text", "tiny")
def tiny(
    width: int = 128, layers: int = 2, heads: int = 4, context_length: int = 16, pool: str = "mean", seed: int = 0
) -> TextTower:
    """A small OpenCLIP tower that needs no download; ``seed`` fixes its random weights, which may stay frozen."""
    from open_clip.transformer import TextTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = TextTransformer(
            context_length=context_length, width=width, heads=heads, layers=layers, output_dim=width
        )
    return TextTower(tower, -1, pool, "zero")
