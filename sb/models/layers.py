"""Building blocks shared by the UNet and the VAE, with diffusers' parameter names.

Legend: B batch, C channels, h w cells, E width of the time embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group normalisation that computes bf16 inputs in fp32 on a CPU, where the bf16 kernels are slower."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
        return super().forward(x)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv, + skip.

    zero_init starts it as the skip alone. scale_shift: the time does not add, it scales and shifts the second norm's
    output (arXiv 2105.05233, equation 7), which lets a condition reach further.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
        zero_init: bool = False,
        scale_shift: bool = False,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, out_channels * (1 + scale_shift)) if time_width else None
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        if zero_init:
            zero_(self.conv2)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C_in, h, w), time (B, E) already through SiLU -> (B, C_out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is None or time is None:
            hidden = self.norm2(hidden)
        elif self.scale_shift:
            scale, shift = self.time_emb_proj(time)[:, :, None, None].chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + self.time_emb_proj(time)[:, :, None, None])
        hidden = F.silu(hidden)  # on a line of its own: what it replaces is freed before the convolution
        hidden = self.conv2(hidden)
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve h and w by a strided convolution; ``asymmetric`` pads right and bottom only, as SD's VAE does."""

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double h and w by nearest neighbours and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of times (B,) -> (B, width) fp32: cosines first, wavelengths up to 10,000 (arXiv 1706.03762)."""
    half = width // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = t.float()[:, None] * rate[None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoids."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def zero_(module: nn.Conv2d | nn.Linear) -> None:
    """Zero a layer's weight and bias, so that it starts by adding nothing."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
