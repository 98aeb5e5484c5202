"""Samples to one parcel that travels between processes, and the parcel to a checked Batch.

Every tensor that a worker sends costs its process a connection and a file handle, so a parcel holds only one.
Legend: B batch, S the side of the square a model sees, in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sb.types import Batch, Skip


@dataclass
class Sample:
    """One finished sample: image (S, S, 3) uint8, outline (S, S) uint8, and what was skipped on the way to it."""

    image: NDArray[np.uint8]
    outline: NDArray[np.uint8]
    level: int
    task: int
    text: str
    key: str
    skipped: Skip | None = None


@dataclass
class Parcel:
    """B samples for the way from a worker to the main process; pixels holds the B images, then the B outlines."""

    pixels: Tensor
    side: int
    level: list[int]
    task: list[int]
    text: list[str]
    key: list[str]
    skipped: list[Skip]

    def pin_memory(self) -> "Parcel":
        """The same parcel in page-locked memory, called by the loader."""
        return replace(self, pixels=self.pixels.pin_memory())

    def batch(self) -> Batch:
        """The Batch, checked; image and outline are views of the parcel's pixels."""
        count, area = len(self.key), self.side * self.side
        image, outline = self.pixels.split([count * 3 * area, count * area])
        return Batch(
            image=image.view(count, 3, self.side, self.side),
            outline=outline.view(count, 1, self.side, self.side),
            level=torch.tensor(self.level, dtype=torch.int64),
            task=torch.tensor(self.task, dtype=torch.int64),
            text=self.text, key=self.key, skipped=self.skipped,
        ).check()


def collate(samples: Sequence[Sample]) -> Parcel:
    """B samples as a parcel; integers only, fields by name."""
    count, side = len(samples), samples[0].image.shape[0]
    pixels = torch.empty(count * 4 * side * side, dtype=torch.uint8)
    flat = pixels.numpy()
    image = flat[: count * 3 * side * side].reshape(count, 3, side, side)
    outline = flat[count * 3 * side * side :].reshape(count, side, side)
    for row, sample in enumerate(samples):
        image[row] = sample.image.transpose(2, 0, 1)
        outline[row] = sample.outline
    return Parcel(
        pixels, side, [s.level for s in samples], [s.task for s in samples], [s.text for s in samples],
        [s.key for s in samples], [s.skipped for s in samples if s.skipped is not None],
    )
