"""The denoiser: Stable Diffusion's UNet with a mask input, a mask-head output and a precision embedding.

Parameter names and block structure are those of diffusers' UNet2DConditionModel, so that a model moves there as it
is. The mask's k channels are part of the input (C + k), the mask head is the last k channels of the final
convolution (C + k), and the precision level, and the task where asked, are the UNet's class embedding: a row each
(``num_class_embeds``), or, where a pooled text goes in as well, a linear map of both
(``class_embed_type="simple_projection"``).

Legend: B batch, C latent channels, k mask channels, h w latent cells, T tokens, D text width, P pooled width.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sb.models.attention import SpatialTransformer
from sb.models.layers import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    timestep_embedding,
    zero_,
)
from sb.registry import register
from sb.types import Condition


class Stage(nn.Module):
    """One resolution: residual blocks, each with attention where the stage has it, then a change of resolution."""

    def __init__(
        self,
        resnets: Sequence[ResnetBlock],
        attentions: Sequence[SpatialTransformer],
        down: Downsample | None = None,
        up: Upsample | None = None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.changes = down is not None or up is not None
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        if down is not None:
            self.downsamplers = nn.ModuleList([down])
        if up is not None:
            self.upsamplers = nn.ModuleList([up])

    def change(self, x: Tensor) -> Tensor:
        """Half or double the resolution."""
        return (self.downsamplers if hasattr(self, "downsamplers") else self.upsamplers)[0](x)

    def block(self, index: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Residual block ``index`` and its attention."""
        x = self.resnets[index](x, time)
        return self.attentions[index](x, context) if hasattr(self, "attentions") else x


class MidStage(nn.Module):
    """The coarsest resolution: block, attention, block."""

    def __init__(self, resnets: Sequence[ResnetBlock], attention: SpatialTransformer):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)


@register("denoiser", "unet")
class UNet(nn.Module):
    """Denoiser ``forward(x, t, cond) -> (prediction, mask logits)``.

    widths: channels per resolution. attention: which resolutions attend to the text. heads: one number, or one per
    resolution. mask_head: k output channels for the object's mask, 0 for none. pooled_width: width of a pooled text
    vector that enters beside the level, 0 for none. level_rows: S + 1, 0 for a network without the level. task_rows:
    one per task of the run, after the levels', 0 for a network that is not told the task.
    scale_shift: time, level and pooled text scale and shift features (diffusers' ``resnet_time_scale_shift``) where
    Stable Diffusion's add to them. zero_init starts every residual branch and the output at zero (for training from
    scratch).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mask_head: int,
        text_width: int,
        level_rows: int,
        widths: Sequence[int] = (320, 640, 1280, 1280),
        blocks: int = 2,
        attention: Sequence[bool] = (True, True, True, False),
        heads: int | Sequence[int] = 8,
        depth: int = 1,
        groups: int = 32,
        linear_projection: bool = False,
        pooled_width: int = 0,
        task_rows: int = 0,
        scale_shift: bool = False,
        zero_init: bool = True,
    ):
        super().__init__()
        if len(widths) != len(attention):
            raise ValueError(f"unet: {len(widths)} widths and {len(attention)} attention flags, one of each a stage")
        per_stage = [heads] * len(widths) if isinstance(heads, int) else list(heads)
        if len(per_stage) != len(widths):
            raise ValueError(f"unet: {len(widths)} widths and {len(per_stage)} numbers of heads, one of each a stage")
        self.out_channels, self.mask_head = out_channels, mask_head
        self.pooled_width, self.level_rows, self.task_rows = pooled_width, level_rows, task_rows
        rows = level_rows + task_rows
        self.sinusoid_width = widths[0]
        self.grid = 2 ** (len(widths) - 1)  # what h and w must be multiples of
        time_width = widths[0] * 4

        def resnet(inside: int, outside: int) -> ResnetBlock:
            return ResnetBlock(inside, outside, time_width, groups, 1e-5, zero_init, scale_shift)

        def attend(stage: int) -> SpatialTransformer:
            return SpatialTransformer(
                widths[stage], per_stage[stage], text_width, depth, groups, linear_projection, zero_init
            )

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], time_width)
        if pooled_width:
            self.class_embedding: nn.Module | None = nn.Linear(pooled_width + rows, time_width)
        else:
            self.class_embedding = nn.Embedding(rows, time_width) if rows else None
        if isinstance(self.class_embedding, nn.Embedding):
            nn.init.zeros_(self.class_embedding.weight)

        skips, width = [widths[0]], widths[0]
        self.down_blocks = nn.ModuleList()
        for stage, stage_width in enumerate(widths):
            resnets = [resnet(width if i == 0 else stage_width, stage_width) for i in range(blocks)]
            attentions = [attend(stage) for _ in range(blocks)] if attention[stage] else []
            last = stage == len(widths) - 1
            self.down_blocks.append(Stage(resnets, attentions, down=None if last else Downsample(stage_width)))
            skips += [stage_width] * (blocks if last else blocks + 1)
            width = stage_width
        middle = len(widths) - 1
        self.mid_block = MidStage([resnet(width, width), resnet(width, width)], attend(middle))
        self.up_blocks = nn.ModuleList()
        for stage in reversed(range(len(widths))):
            resnets = []
            for _ in range(blocks + 1):
                resnets.append(resnet(width + skips.pop(), widths[stage]))
                width = widths[stage]
            attentions = [attend(stage) for _ in range(blocks + 1)] if attention[stage] else []
            self.up_blocks.append(Stage(resnets, attentions, up=Upsample(width) if stage else None))
        self.conv_norm_out = GroupNorm(groups, width, 1e-5)
        self.conv_out = nn.Conv2d(width, out_channels + mask_head, 3, padding=1)
        if zero_init:
            zero_(self.conv_out)

    @property
    def blocks(self) -> list[nn.Module]:
        """Residual blocks and transformers of all levels: what is sharded and recomputed as a whole."""
        return [module for module in self.modules() if isinstance(module, (ResnetBlock, SpatialTransformer))]

    def recompute(self) -> None:
        """Keep only what goes into a block for backward, which then computes the block once more: the same gradients
        for less memory and about a third more work (arXiv 1604.06174). Before compiling; names stay as they are."""
        for block in self.blocks:
            if not isinstance(block.forward, partial):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor | None]:
        """x (B, C + k, h, w), t (B,) -> prediction (B, C, h, w) and mask logits (B, k, h, w) or None."""
        out = self.trunk(x, t, cond.tokens, self.class_vector(cond))
        if not self.mask_head:
            return out, None
        return out[:, : self.out_channels], out[:, self.out_channels:]

    def class_vector(self, cond: Condition) -> Tensor | None:
        """Weights over the rows: after the pooled text (B, P), the level's (B, S + 1), a fractional one shared by two,
        and the task's."""
        if self.class_embedding is None:
            return None
        rows = torch.arange(self.level_rows, device=cond.level.device)
        vector = (1 - (cond.level.float()[:, None] - rows).abs()).clamp(min=0)  # (B, S + 1)
        if self.task_rows:
            assert cond.task is not None, "this denoiser is told the task"
            vector = torch.cat([vector, F.one_hot(cond.task, self.task_rows).float()], dim=1)
        if not self.pooled_width:
            return vector
        assert cond.pooled is not None, "this denoiser was built for a text tower with a pooled output"
        return torch.cat([cond.pooled.float(), vector], dim=1)

    def trunk(self, x: Tensor, t: Tensor, context: Tensor, class_vector: Tensor | None) -> Tensor:
        """The UNet proper: (B, C + k, h, w) -> (B, C + k, h, w)."""
        time = self.time_embedding(timestep_embedding(t, self.sinusoid_width).to(self.conv_in.weight.dtype))
        if class_vector is not None:
            class_vector = class_vector.to(time.dtype)
            if isinstance(self.class_embedding, nn.Embedding):
                time = time + class_vector @ self.class_embedding.weight.to(time.dtype)
            elif self.class_embedding is not None:
                time = time + self.class_embedding(class_vector)
        time = F.silu(time)
        x = self.conv_in(x)
        skips = [x]
        for stage in self.down_blocks:
            assert isinstance(stage, Stage)
            for index in range(len(stage.resnets)):
                x = stage.block(index, x, time, context)
                skips.append(x)
            if stage.changes:
                x = stage.change(x)
                skips.append(x)
        x = self.mid_block(x, time, context)
        for stage in self.up_blocks:
            assert isinstance(stage, Stage)
            for index in range(len(stage.resnets)):
                x = stage.block(index, torch.cat([x, skips.pop().to(x.dtype)], dim=1), time, context)
            if stage.changes:
                x = stage.change(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
