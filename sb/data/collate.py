"""Samples to one parcel that travels between processes, and the parcel to a checked Batch.

Every tensor that a worker sends costs its process a connection and a file handle, so a parcel holds only one.
Legend: B batch, S the side of the square a model sees, in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sb.types import Batch, Skip


@dataclass
class Sample:
    """One finished sample: image (S, S, 3) uint8, or moments (C or 2C, h, w) int16, outline (S, S) uint8, and what was
    skipped on the way to it."""

    image: NDArray[np.uint8] | None
    outline: NDArray[np.uint8]
    level: int
    task: int
    text: str
    key: str
    skipped: Skip | None = None
    moments: NDArray[np.int16] | None = None


@dataclass
class Parcel:
    """B samples for the way from a worker to the main process; ``body`` holds the bytes of all ``fields`` (name, dtype,
    shape), one behind the other."""

    body: Tensor
    fields: list[tuple[str, torch.dtype, tuple[int, ...]]]
    level: list[int]
    task: list[int]
    text: list[str]
    key: list[str]
    skipped: list[Skip]

    def pin_memory(self) -> "Parcel":
        """The same parcel in page-locked memory, called by the loader."""
        return replace(self, body=self.body.pin_memory())

    def batch(self) -> Batch:
        """The Batch, checked; image, outline, moments and features are views of the parcel's bytes."""
        views: dict[str, Tensor | None] = {"image": None}
        start = 0
        for name, dtype, shape in self.fields:
            end = start + math.prod(shape) * dtype.itemsize
            views[name] = self.body[start:end].view(dtype).view(shape)
            start = end
        return Batch(
            **views,  # type: ignore[arg-type]
            level=torch.tensor(self.level, dtype=torch.int64),
            task=torch.tensor(self.task, dtype=torch.int64),
            text=self.text, key=self.key, skipped=self.skipped,
        ).check()


def collate(samples: Sequence[Sample], features: NDArray[np.int16] | None = None) -> Parcel:
    """B samples as a parcel; integers only, fields by name. features: (B + 1, n), of their texts and the empty one."""
    count, side, moments = len(samples), samples[0].outline.shape[0], samples[0].moments
    fields: list[tuple[str, torch.dtype, tuple[int, ...]]] = []  # those of two bytes first: a view has to be aligned
    if features is not None:
        fields.append(("features", torch.int16, features.shape))
    if moments is not None:
        fields.append(("moments", torch.int16, (count, *moments.shape)))
    else:
        fields.append(("image", torch.uint8, (count, 3, side, side)))
    fields.append(("outline", torch.uint8, (count, 1, side, side)))
    body = torch.empty(sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in fields), dtype=torch.uint8)
    parts, start = {}, 0
    for name, dtype, shape in fields:
        end = start + math.prod(shape) * dtype.itemsize
        parts[name] = body.numpy()[start:end].view(np.int16 if dtype is torch.int16 else np.uint8).reshape(shape)
        start = end
    if features is not None:
        parts["features"][:] = features
    for row, sample in enumerate(samples):
        parts["outline"][row, 0] = sample.outline
        if sample.moments is not None:
            parts["moments"][row] = sample.moments
        elif sample.image is not None:
            parts["image"][row] = sample.image.transpose(2, 0, 1)
    return Parcel(
        body, fields, [s.level for s in samples], [s.task for s in samples], [s.text for s in samples],
        [s.key for s in samples], [s.skipped for s in samples if s.skipped is not None],
    )
