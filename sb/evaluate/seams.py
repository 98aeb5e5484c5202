"""What shows at the border of an edit, and how far the kept background's colour has moved.

Legend: B requests, H W pixels. Pictures (B, 3, H, W) uint8; masks and objects (B, 1, H, W), 1 = painted, object.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sb.masks import dilate

CLEAR_PX = 3  # the object's own edge is no seam: border pixels nearer than this do not count


class Seam(NamedTuple):
    """Sums over border pairs: steps across the border in the result, in the untouched picture, and their number."""

    result: Tensor
    untouched: Tensor
    pairs: Tensor

    def score(self) -> float:
        """Mean step of the result over that of the untouched picture, pooled: 1 = no seam. NaN without a border."""
        return float(self.result.sum() / self.untouched.sum()) if float(self.untouched.sum()) else float("nan")

    def gap(self) -> Tensor:
        """The same as a difference (B,), of 255: 0 = no seam, positive = a border that shows. NaN without a border."""
        return (self.result - self.untouched) / self.pairs


def seams(result: Tensor, untouched: Tensor, mask: Tensor, object_: Tensor) -> Seam:
    """Steps |a - b| between neighbours of which one lies in the mask and one outside, both clear of the object; each
    sum is (B,), of the mean over colours."""
    far = ~dilate(object_.float(), CLEAR_PX).bool()
    sums = [torch.zeros(len(mask), device=mask.device) for _ in range(3)]
    for dim in (2, 3):
        length = mask.shape[dim] - 1
        (one, two), clear = (mask.narrow(dim, 0, length), mask.narrow(dim, 1, length)), far
        counted = (one != two) & clear.narrow(dim, 0, length) & clear.narrow(dim, 1, length)
        for total, picture in zip(sums, (result, untouched), strict=False):
            total += (picture.float().diff(dim=dim).abs().mean(1, keepdim=True) * counted).sum((1, 2, 3))
        sums[2] += counted.sum((1, 2, 3))
    return Seam(*sums)


def colour_shift(result: Tensor, untouched: Tensor, mask: Tensor, object_: Tensor) -> Tensor:
    """How far the mean colour of the mask's other pixels has moved (B,), of 255: mean over colours of the absolute
    shift. NaN where the object fills the mask."""
    rest = (mask > 0) & ~dilate(object_.float(), CLEAR_PX).bool()
    count = rest.sum((2, 3))
    shift = ((result.float() - untouched.float()) * rest).sum((2, 3)) / count
    return shift.abs().mean(1)
