"""Samples to one checked Batch. Legend: B batch, S the side of the square a model sees, in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

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


def collate(samples: Sequence[Sample]) -> Batch:
    """B samples as a Batch; integers only, fields by name, checked."""
    side = samples[0].image.shape[0]
    image = np.empty((len(samples), 3, side, side), dtype=np.uint8)
    outline = np.empty((len(samples), 1, side, side), dtype=np.uint8)
    for row, sample in enumerate(samples):
        image[row] = sample.image.transpose(2, 0, 1)
        outline[row, 0] = sample.outline
    return Batch(
        image=torch.from_numpy(image),
        outline=torch.from_numpy(outline),
        level=torch.tensor([s.level for s in samples], dtype=torch.int64),
        task=torch.tensor([s.task for s in samples], dtype=torch.int64),
        text=[s.text for s in samples],
        key=[s.key for s in samples],
        skipped=[s.skipped for s in samples if s.skipped is not None],
    ).check()
