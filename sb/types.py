"""The objects that travel between rooms, with their shapes and dtypes, checked once at each border.

Legend: B batch, H W pixels, h w latent cells, C latent channels, k mask channels, T tokens, D text width.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor


class Skip(NamedTuple):
    """A sample that was replaced: the reason (one word a counter is kept under) and the sample's name."""

    reason: str
    name: str


@dataclass
class Batch:
    """What the loader hands to a training step: integers only, so that no precision plugin can touch it.

    image: (B, 3, H, W) uint8, or None where the pictures come encoded. outline: (B, 1, H, W) uint8, 1 = object (all
    ones for text-to-image). level: (B,) int64 on the ladder, 0 = outline. task: (B,) int64, index into the run's task
    list. text, key: B strings. skipped: the samples that were replaced while this batch was made.
    moments: (B, C or 2C, h, w) int16, the bits of fp16: a VAE's mean and, where it has one, std of raw z.
    features: (B + 1, T*D + P) int16, the bits of fp16: the texts' tokens and pooled features, last the empty text's.
    """

    image: Tensor | None
    outline: Tensor
    level: Tensor
    task: Tensor
    text: list[str]
    key: list[str]
    skipped: list[Skip] = field(default_factory=list)
    moments: Tensor | None = None
    features: Tensor | None = None

    def check(self) -> "Batch":
        """Raise ValueError where a field has another shape or dtype than documented; returns itself."""
        size = self.outline.shape[0]
        height, width = (self.outline if self.image is None else self.image).shape[-2:]
        if (self.image is None) == (self.moments is None):
            raise ValueError("batch: holds either images or moments")
        wanted = {
            "image": ((size, 3, height, width), torch.uint8),
            "outline": ((size, 1, height, width), torch.uint8),
            "level": ((size,), torch.int64),
            "task": ((size,), torch.int64),
            "moments": ((size, *(self.moments.shape[1:] if self.moments is not None else ())), torch.int16),
            "features": ((size + 1, *(self.features.shape[1:] if self.features is not None else ())), torch.int16),
        }
        for name, (shape, dtype) in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise ValueError(f"batch.{name} is {tuple(value.shape)} {value.dtype}, not {shape} {dtype}")
        for name in ("text", "key"):
            if len(getattr(self, name)) != size:
                raise ValueError(f"batch.{name} holds {len(getattr(self, name))} strings for {size} images")
        return self

    def __len__(self) -> int:
        return self.outline.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on another device."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: t.to(device, non_blocking=non_blocking) for name, t in tensors.items()})


class TextFeatures(NamedTuple):
    """What a text tower gives: tokens (B, T, D) for cross-attention, pooled (B, P) or None."""

    tokens: Tensor
    pooled: Tensor | None


@dataclass
class Condition:
    """All that a denoiser is told besides x_t and t.

    tokens: (B, T, D). pooled: (B, P) or None. level: (B,) float, fractional between rungs. task: (B,) int64, index into
    the run's task list, where a denoiser is told.
    """

    tokens: Tensor
    pooled: Tensor | None
    level: Tensor
    task: Tensor | None = None


class Denoised(NamedTuple):
    """One denoising answer: x0 (B, C, h, w) and the mask head's logits (B, k, h, w), or None without a head."""

    x0: Tensor
    mask_logits: Tensor | None


@dataclass
class Request:
    """One thing to paint: image (3, H, W) uint8, mask (1, H, W) uint8 with 1 = generate, text, level, seed.

    task: one of the model's tasks by name, "" for its first; it matters to a denoiser that is told the task.
    """

    image: Tensor
    mask: Tensor
    text: str
    level: float = 0.0
    seed: int = 0
    negative: str = ""
    task: str = ""

    def check(self, num_levels: int) -> "Request":
        """Raise ValueError that names what is wrong and what to do; returns itself."""
        if self.image.dtype != torch.uint8 or self.image.ndim != 3 or self.image.shape[0] != 3:
            raise ValueError(f"image must be (3, H, W) uint8, not {tuple(self.image.shape)} {self.image.dtype}")
        if self.mask.dtype != torch.uint8 or tuple(self.mask.shape) != (1, *self.image.shape[1:]):
            height, width = self.image.shape[1:]
            found = "x".join(str(n) for n in reversed(self.mask.shape[-2:]))
            raise ValueError(f"the mask is {found} px and the image {width}x{height} px: draw the mask on this image")
        if int(self.mask.max()) > 1:
            raise ValueError(f"a mask holds 0 (keep) and 1 (generate), this one holds {int(self.mask.max())}")
        if not bool(self.mask.any()):
            raise ValueError("the mask is empty: mark at least one pixel to paint")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} is outside 0 ... 2^63 - 1")
        if not 0 <= self.level <= num_levels:
            raise ValueError(f"level {self.level} is outside 0 (outline) to {num_levels} (box)")
        return self


@dataclass
class Result:
    """One painted picture.

    pixels: (3, H, W) uint8, equal to the request's image outside its mask. decoded: (3, H, W) uint8, the picture
    before the paste. predicted: (1, H, W) float in [0, 1], or None without a mask head. seconds: by stage, for
    the batch it was painted in.
    """

    pixels: Tensor
    decoded: Tensor
    predicted: Tensor | None
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def image(self) -> Image.Image:
        """The finished picture."""
        return Image.fromarray(self.pixels.permute(1, 2, 0).numpy())

    @property
    def predicted_mask(self) -> Image.Image | None:
        """The mask head's probability as a grey picture, white = object."""
        if self.predicted is None:
            return None
        return Image.fromarray((self.predicted[0] * 255).round().to(torch.uint8).numpy())
