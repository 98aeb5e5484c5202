"""The KL autoencoder of latent diffusion (arXiv 2112.10752), with the block structure and names of SD's own.

Legend: B batch, H W pixels, h w latent cells, C latent channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sb.models.attention import Attention
from sb.models.latents import Autoencoder, Posterior
from sb.models.layers import Downsample, GroupNorm, ResnetBlock, Upsample
from sb.registry import register

EPS = 1e-6  # of every norm in SD's VAE


class CellAttention(Attention):
    """One-head attention between all cells, behind a norm and added to its input."""

    def __init__(self, width: int, groups: int):
        super().__init__(width, heads=1, bias=True)
        self.group_norm = GroupNorm(groups, width, EPS)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, width, h, w) to the same shape; a context has no place here."""
        cells = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        return x + rearrange(super().forward(cells), "b (h w) c -> b c h w", h=x.shape[2])


class Level(nn.Module):
    """The blocks of one resolution, then an optional change of resolution."""

    def __init__(self, in_width: int, width: int, blocks: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(in_width if i == 0 else width, width, groups=groups, eps=EPS) for i in range(blocks)]
        )
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, h, w) to (B, width, h', w')."""
        for block in self.resnets:
            x = block(x)
        for change in self.downsamplers or self.upsamplers or ():
            x = change(x)
        return x


class Middle(nn.Module):
    """Two blocks at latent resolution, with attention between them if asked."""

    def __init__(self, width: int, groups: int, attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList([CellAttention(width, groups)] if attention else [])
        self.resnets = nn.ModuleList([ResnetBlock(width, width, groups=groups, eps=EPS) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Encoder(nn.Module):
    """Picture (B, 3, H, W) to twice the latent channels (B, 2C, h, w)."""

    def __init__(self, widths: list[int], blocks: int, latent_channels: int, attention: bool, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(i - 1, 0)], width, blocks, groups)
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample(width, asymmetric=True)])
            self.down_blocks.append(level)
        self.mid_block = Middle(widths[-1], groups, attention)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2C, h, w)."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, C, h, w) to a picture (B, 3, H, W); one block more per level than the encoder."""

    def __init__(self, widths: list[int], blocks: int, latent_channels: int, attention: bool, groups: int):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid_block = Middle(widths[-1], groups, attention)
        self.up_blocks = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            level = Level(widths[min(i + 1, len(widths) - 1)], width, blocks + 1, groups)
            if i > 0:
                level.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(level)
        self.conv_norm_out = GroupNorm(groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, H, W)."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


@register("vae", "kl")
class KLVAE(Autoencoder):
    """SD's autoencoder: widths ``channels * multipliers``, factor ``2^(len(multipliers) - 1)``.

    The defaults are SD1's and SD2's (whose scale is 0.18215). Raises ValueError where a width is not a multiple
    of ``norm_groups``.
    """

    def __init__(
        self,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        latent_channels: int = 4,
        mid_attention: bool = True,
        norm_groups: int = 32,
        scale: float = 1.0,
        shift: float = 0.0,
    ):
        super().__init__(scale, shift)
        widths = [channels * m for m in multipliers]
        for width in widths:
            if width % norm_groups:
                raise ValueError(f"vae 'kl': width {width} does not divide into norm_groups {norm_groups}")
        self.factor, self.latent_channels = 2 ** (len(widths) - 1), latent_channels
        self.encoder = Encoder(widths, blocks, latent_channels, mid_attention, norm_groups)
        self.decoder = Decoder(widths, blocks, latent_channels, mid_attention, norm_groups)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, image: Tensor) -> Posterior:
        """image (B, 3, H, W) in [-1, 1] to z (B, C, h, w); log variance clamped to [-30, 20]."""
        mean, log_variance = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return Posterior(mean, torch.exp(0.5 * log_variance.float().clamp(-30, 20)).to(mean.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """z (B, C, h, w) to an image (B, 3, H, W), about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z))
