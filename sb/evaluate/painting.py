"""One painted case with everything that a metric may look at, and where its background is.

Legend: H W pixels.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sb.evaluate.seams import CLEAR_PX
from sb.masks import dilate

if TYPE_CHECKING:
    from sb.evaluate.lists import Case

IS_OBJECT = 0.5  # probability from which a pixel of the predicted mask is object
Item = TypeVar("Item")


@dataclass
class Painting:
    """One case and what a system made of it.

    picture: (3, H, W) uint8, what the system was given. pixels: (3, H, W) uint8, its result. predicted: (1, H, W)
    float in [0, 1], where the system has it. truth: the true background, where it is known. real: the picture with the
    real object. mask, outline: (1, H, W) uint8, the case's.
    """

    case: "Case"
    picture: Tensor
    pixels: Tensor
    predicted: Tensor | None
    truth: Tensor | None
    real: Tensor
    mask: Tensor
    outline: Tensor | None

    @property
    def untouched(self) -> Tensor:
        """What the background is measured against: the truth, or the picture, which holds it outside the outline."""
        return self.picture if self.truth is None else self.truth

    def object_(self, by: str) -> Tensor | None:
        """What does not count as background (1, H, W) bool, or None where that is not known.

        ``outline``: the case's outline, the same for every system. ``predicted``: where the system itself says that
        its object is; without a true background the outline too, because the old object lies there.
        """
        predicted = None if self.predicted is None else self.predicted > IS_OBJECT
        outline = None if self.outline is None else self.outline > 0
        if by == "outline":
            return outline
        if predicted is None or self.truth is not None:
            return predicted
        return None if outline is None else predicted | outline

    def background(self, by: str) -> Tensor | None:
        """The mask's pixels that are farther than 3 px from the object (1, H, W) bool; None where there are none."""
        found = self.object_(by)
        if found is None:
            return None
        rest = (self.mask > 0) & ~dilate(found[None].float(), CLEAR_PX)[0].bool()
        return rest if bool(rest.any()) else None


def by_shape(items: Sequence[Item], shape: Callable[[Item], Hashable]) -> list[list[int]]:
    """The indexes of items that go into one stack, in order: cases of a list may differ in size."""
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(shape(item), []).append(index)
    return list(groups.values())


def values_of(paintings: Sequence[Painting], measure: Callable[[Painting], float | None]) -> Tensor:
    """One value each (B,) float64; NaN where ``measure`` gives None."""
    found = [measure(painting) for painting in paintings]
    return torch.tensor([float("nan") if value is None else value for value in found], dtype=torch.float64)
