"""Frechet distances over many paintings: of whole pictures and of the crops of the masks' boxes.

They are pooled: each painting adds a row of features for the result and one for the real picture, and any set of rows
has a distance.

Legend: B requests, D features, P side of a crop.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sb.evaluate.crops import box_of, crop_box
from sb.evaluate.features import FeatureNetwork
from sb.evaluate.frechet import Statistics, warn_if_few
from sb.evaluate.oracle import CONTEXT
from sb.evaluate.painting import Painting
from sb.registry import register


@register("metric", "fid")
class Fid:
    """The distance of results from real pictures, or from a stored reference set; of whole pictures, the FID of the
    literature with the network ``inception``.

    reference: a file that ``statistics(...).save`` wrote; ValueError where another network made it, or was shown
    something else.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    name: ClassVar[str] = "fid"

    def __init__(self, features: FeatureNetwork, reference: str | None = None):
        self.network = features
        self.reference = None if reference is None else self._read(reference)
        self._warned = False

    def describe(self) -> dict[str, Any]:
        """The network and what it is shown, as JSON holds them."""
        return {**self.network.describe(), "shown": "whole"}

    def shown(self, picture: Tensor, painting: Painting) -> Tensor:
        """What the network sees of a picture (3, H, W)."""
        return picture

    def features(self, paintings: Sequence[Painting]) -> dict[str, Tensor]:
        """Rows (B, D): ``fake`` of the results and ``real`` of the real pictures; the latter not with a reference."""
        sides = {"fake": [self.shown(p.pixels, p) for p in paintings]}
        if self.reference is None:
            sides["real"] = [self.shown(p.real, p) for p in paintings]
        return {side: self.network.rows(pictures) for side, pictures in sides.items()}

    def pooled(self, fake: Tensor, real: Tensor | None = None) -> dict[str, float]:
        """The distance of rows (N, D), by the metric's name; NaN for fewer than two of either.

        real: rows of real pictures, None for the reference. The first set of fewer pictures than features is said in
        the log.
        """
        if (real is None) != (self.reference is not None):
            raise ValueError(f"{self.name} takes rows of real pictures or a reference, one of the two")
        if min(len(fake), len(fake if real is None else real)) < 2:
            return {self.name: math.nan}
        other = self.reference if real is None else self.statistics(real)
        assert other is not None
        if not self._warned:
            self._warned = warn_if_few(min(len(fake), other.count), fake.shape[1], self.name)
        return {self.name: self.statistics(fake).distance(other)}

    def statistics(self, rows: Tensor) -> Statistics:
        """Of rows (N, D), with what made them: to be saved, and given to another evaluation as its reference."""
        return Statistics.of(rows, self.describe())

    def _read(self, path: str | Path) -> Statistics:
        found = Statistics.load(path)
        try:
            found.check_network(self.describe())
        except ValueError as error:
            raise ValueError(f"{self.name}: {path}: {error}") from None
        return found


@register("metric", "local_fid")
class LocalFid(Fid):
    """The same of the square crops of the masks' boxes, resized to ``side_px``."""

    name = "local_fid"

    def __init__(
        self, features: FeatureNetwork, side_px: int = 299, context: float = CONTEXT, reference: str | None = None
    ):
        self.side_px, self.context = side_px, context
        super().__init__(features, reference)

    def describe(self) -> dict[str, Any]:
        """The network and which crops it is shown, as JSON holds them."""
        return {**self.network.describe(), "shown": "box", "crop_px": self.side_px, "context": self.context}

    def shown(self, picture: Tensor, painting: Painting) -> Tensor:
        """The crop of the mask's box (3, P, P)."""
        return crop_box(picture, box_of(painting.mask), self.side_px, self.context)
