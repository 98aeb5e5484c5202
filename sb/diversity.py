"""How much variations of one request differ: the mean distance of all pairs, where they were painted.

Legend: N variations, P pairs of them, H W pixels, h w pixels of the mask's bounding box.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# two stacks of pictures (P, 3, h, w) in [-1, 1] -> how far each pair is apart (P,); LPIPS is one
Distance = Callable[[Tensor, Tensor], Tensor]


def diversity(pictures: Sequence[Tensor], mask: Tensor, distance: Distance | None = None) -> float:
    """The mean over all pairs of N pictures (3, H, W) uint8 of their distance inside the mask (1, H, W).

    distance: of what the mask's bounding box holds; without one, ``sqrt(mean (a - b)^2)`` over the mask's pixels and
    three channels, in grey levels: 0 where all are equal, d where two differ by d everywhere. ValueError for fewer
    than two pictures, and for an empty mask.
    """
    if len(pictures) < 2 or not bool(mask.any()):
        raise ValueError(f"diversity needs two pictures and a mask, not {len(pictures)} and {int(mask.sum())} px")
    marked = mask[0] > 0
    one, two = torch.triu_indices(len(pictures), len(pictures), 1)  # (P,) each
    if distance is None:
        painted = torch.stack([picture[:, marked] for picture in pictures]).float()  # (N, 3, pixels)
        apart = [(painted[i] - painted[j]).square().mean().sqrt() for i, j in zip(one, two, strict=True)]
        return float(torch.stack(apart).mean())
    rows, columns = (marked.any(dim).nonzero()[:, 0] for dim in (1, 0))
    box = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    shown = torch.stack([picture[box] for picture in pictures]).float() / 127.5 - 1  # (N, 3, h, w)
    return float(distance(shown[one], shown[two]).mean())
