"""Attention over latent cells and from cells to text, with diffusers' parameter names.

Legend: B batch, C channels, h w cells, N = h*w, T tokens, D text width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sb.models.layers import GroupNorm, zero_


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, N, d) each.

    The fused kernel, except for bf16 with gradients on a CPU, where its backward takes about twice the time of
    the explicit softmax.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        weight = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return weight.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head attention of x to itself, or to a context of another width."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, bias: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width or width, width, bias=bias)
        self.to_v = nn.Linear(context_width or width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, N, C), context (B, T, D) -> (B, N, C)."""
        context = x if context is None else context
        q, k, v = (
            rearrange(part, "b n (heads d) -> b heads n d", heads=self.heads)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](rearrange(attend(q, k, v), "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, inner * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU four times as wide, and back."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, width * 4), nn.Identity(), nn.Linear(width * 4, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each behind a norm and added to its input."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the cells of a feature map; ``linear`` projects by linear layers (SD2) or 1x1 convs."""

    def __init__(
        self, width: int, heads: int, context_width: int, depth: int = 1, groups: int = 32, linear: bool = False,
        zero_init: bool = False,
    ):
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads, context_width) for _ in range(depth)])
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        if zero_init:
            zero_(self.proj_out)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, h, w), context (B, T, D) -> (B, C, h, w)."""
        height = x.shape[2]
        hidden = self.norm(x)
        if not self.linear:
            hidden = self.proj_in(hidden)
        hidden = rearrange(hidden, "b c h w -> b (h w) c")
        if self.linear:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        if self.linear:
            hidden = self.proj_out(hidden)
        hidden = rearrange(hidden, "b (h w) c -> b c h w", h=height)
        return x + (hidden if self.linear else self.proj_out(hidden))
