"""Metrics of one painting at a time: each is called with paintings and gives a value per request, NaN where undefined.

Which way is better a metric's class says in ``better`` (sb.evaluate.summary.better), and in ``share`` that its values
are 1 for yes and 0 for no, whose mean is a share of the requests.

What the object is, for metrics of the background: names without a suffix leave out the case's outline, which is the
same for every system; names that end in ``_predicted`` leave out what the system's own mask head calls the object, and
are defined only where it has one. Both leave 3 px around it out.

Legend: B requests, H W pixels, P side of a crop, D width of an embedding.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sb.diversity import Distance, diversity
from sb.evaluate.crops import box_of, crop_box
from sb.evaluate.features import FeatureNetwork
from sb.evaluate.oracle import CONTEXT
from sb.evaluate.painting import IS_OBJECT, Painting, by_shape, values_of
from sb.evaluate.readers import Reader
from sb.evaluate.seams import colour_shift, seams
from sb.evaluate.shapes_metrics import decibel, iou
from sb.evaluate.summary import Side
from sb.registry import register

OBJECTS = {"": "outline", "_predicted": "predicted"}  # suffix of a metric's name -> what it leaves out
Values = dict[str, Tensor]  # (B,) float64 by name


@register("metric", "class_accuracy")
class ClassAccuracy:
    """1 where the reader sees the case's label in the box of the mask, else 0; upper and lower case are the same."""

    needs: ClassVar[tuple[str, ...]] = ("reader",)
    better: ClassVar[Side] = "higher"
    share: ClassVar[bool] = True

    def __init__(self, reader: Reader):
        self.reader = reader

    def __call__(self, paintings: Sequence[Painting]) -> Values:
        """``class_accuracy``."""
        values = torch.empty(len(paintings), dtype=torch.float64)
        for indexes in by_shape(paintings, lambda painting: painting.pixels.shape):
            some = [paintings[i] for i in indexes]
            boxes = torch.tensor([box_of(painting.mask) for painting in some])
            labels = self.reader.read(torch.stack([painting.pixels for painting in some]), boxes)
            for index, painting, label in zip(indexes, some, labels, strict=True):
                values[index] = label.strip().lower() == painting.case.label.strip().lower()
        return {"class_accuracy": values}


@register("metric", "clip_score")
class ClipScore:
    """``max(100 cos(picture, text), 0)`` (Hessel et al., 2021, as torchmetrics has it) of the crop of the mask's box
    and the case's text; ``clip_score_whole`` is of the whole picture."""

    needs: ClassVar[tuple[str, ...]] = ("clip",)
    better: ClassVar[Side] = "higher"

    def __init__(self, clip: FeatureNetwork, context: float = CONTEXT):
        from sb.evaluate.clip import ClipTower

        if not isinstance(clip.module, ClipTower):
            raise ValueError(f"clip_score needs the feature network 'clip', not '{clip.name}'")
        self.clip, self.tower, self.context = clip, clip.module, context

    def __call__(self, paintings: Sequence[Painting]) -> Values:
        """``clip_score`` and ``clip_score_whole``."""
        texts = self.tower.texts([painting.case.text for painting in paintings]).double()
        boxes = [crop_box(p.pixels, box_of(p.mask), self.tower.side_px, self.context) for p in paintings]
        return {
            name: 100 * torch.cosine_similarity(self.clip.rows(shown).double(), texts).clamp(min=0)
            for name, shown in (("clip_score", boxes), ("clip_score_whole", [p.pixels for p in paintings]))
        }


class _Overlap:
    """The predicted mask against the outline; NaN where either is missing."""

    needs: ClassVar[tuple[str, ...]] = ()
    better: ClassVar[Side] = "higher"
    name: ClassVar[str]

    def __call__(self, paintings: Sequence[Painting]) -> Values:
        """The metric's own name."""
        return {self.name: self.of_iou(values_of(paintings, _iou))}

    def of_iou(self, overlap: Tensor) -> Tensor:
        """The metric of an intersection over union."""
        return overlap


@register("metric", "mask_iou")
class MaskIou(_Overlap):
    """Intersection over union of the predicted mask and the outline."""

    name = "mask_iou"


@register("metric", "mask_dice")
class MaskDice(_Overlap):
    """``2 |A B| / (|A| + |B|)`` of the predicted mask and the outline."""

    name = "mask_dice"

    def of_iou(self, overlap: Tensor) -> Tensor:
        """``2 IoU / (1 + IoU)``, the same number."""
        return 2 * overlap / (1 + overlap)


def _iou(painting: Painting) -> float | None:
    if painting.predicted is None or painting.outline is None:
        return None
    return float(iou((painting.predicted > IS_OBJECT)[None], painting.outline[None]))


class _AroundObject:
    """A metric of what is not the object, with both answers to what that is; NaN where one is missing."""

    needs: ClassVar[tuple[str, ...]] = ()
    better: ClassVar[Side] = "higher"
    name: ClassVar[str]

    def __call__(self, paintings: Sequence[Painting]) -> Values:
        """The metric's own name, and the same with ``_predicted``."""
        return {f"{self.name}{end}": values_of(paintings, lambda p: self.one(p, by)) for end, by in OBJECTS.items()}

    def one(self, painting: Painting, by: str) -> float | None:
        """The value of one painting, leaving out the object as ``Painting.object_`` says it."""
        raise AssertionError("a metric of the background defines one")


@register("metric", "background_psnr")
class BackgroundPsnr(_AroundObject):
    """PSNR in the mask outside the object against the true background, or where it is not known, against the picture;
    in dB, at most 60."""

    name = "background_psnr"

    def one(self, painting: Painting, by: str) -> float | None:
        """In dB."""
        where = painting.background(by)
        if where is None:
            return None
        squared = (painting.pixels.double() - painting.untouched.double()).square() * where
        return decibel(float(squared.sum()), 3 * float(where.sum()))


@register("metric", "background_lpips")
class BackgroundLpips(_AroundObject):
    """LPIPS between the crop of the mask's box of the true background, or of the picture, and the same with the
    result's background pixels in it: what lies outside of the mask, and the object, adds nothing."""

    needs = ("lpips",)
    name, better = "background_lpips", "lower"

    def __init__(self, lpips: Distance, side_px: int = 224, context: float = CONTEXT):
        self.lpips, self.side_px, self.context = lpips, side_px, context

    def one(self, painting: Painting, by: str) -> float | None:
        """A distance of 0 or more."""
        where = painting.background(by)
        if where is None:
            return None
        shown = torch.where(where, painting.pixels, painting.untouched)
        pair = [
            crop_box(picture, box_of(painting.mask), self.side_px, self.context).float()[None] / 127.5 - 1
            for picture in (shown, painting.untouched)
        ]
        return float(self.lpips(pair[0], pair[1])[0])


@register("metric", "seam")
class SeamMetric(_AroundObject):
    """The mean step across the mask's border less that of the untouched picture, of 255: 0 is no seam, more a border
    that shows, less one that is smoother than the picture was."""

    name, better = "seam", "zero"

    def one(self, painting: Painting, by: str) -> float | None:
        """In grey levels; NaN where the object hides the border."""
        shown = _stacked(painting, by)
        return None if shown is None else float(seams(*shown).gap())


@register("metric", "colour_shift")
class ColourShift(_AroundObject):
    """How far the mean colour of the background in the mask has moved, of 255."""

    name, better = "colour_shift", "lower"

    def one(self, painting: Painting, by: str) -> float | None:
        """In grey levels."""
        shown = _stacked(painting, by)
        return None if shown is None else float(colour_shift(*shown))


def _stacked(painting: Painting, by: str) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    found = painting.object_(by)
    if found is None:
        return None
    return painting.pixels[None], painting.untouched[None], painting.mask[None], found[None]


@register("metric", "outside_equal")
class OutsideEqual:
    """1 where every pixel outside of the mask is the input's, bit for bit, else 0."""

    needs: ClassVar[tuple[str, ...]] = ()
    better: ClassVar[Side] = "higher"
    share: ClassVar[bool] = True

    def __call__(self, paintings: Sequence[Painting]) -> Values:
        """``outside_equal``."""
        kept = [bool(((p.pixels == p.picture) | (p.mask > 0)).all()) for p in paintings]
        return {"outside_equal": torch.tensor(kept, dtype=torch.float64)}


@register("metric", "diversity")
class Diversity:
    """How much the results of one case under several seeds differ inside its mask, the mean over pairs of seeds.

    In grey levels (root mean square); by LPIPS where one is given. A case is image, instance and level, and all its
    seeds must be in one call: the first of them gets the value, the others NaN, and so does a case of one seed.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    better: ClassVar[Side] = None
    over_seeds: ClassVar[bool] = True  # it is shown every variation of a request, others the first

    def __init__(self, lpips: Distance | None = None):
        self.lpips = lpips

    def __call__(self, paintings: Sequence[Painting]) -> Values:
        """``diversity``, or ``diversity_lpips``."""
        values = torch.full((len(paintings),), torch.nan, dtype=torch.float64)
        for seeds in by_shape(paintings, lambda p: (p.case.image, p.case.instance, p.case.level)):
            if len(seeds) > 1:
                pictures = [paintings[i].pixels for i in seeds]
                values[seeds[0]] = diversity(pictures, paintings[seeds[0]].mask, self.lpips)
        return {"diversity" if self.lpips is None else "diversity_lpips": values}
