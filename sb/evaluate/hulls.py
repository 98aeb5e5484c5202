"""Convex hulls of masks on the pixel grid, without a polygon in between.

The hull of the pixels' centres is, row by row, the span between two envelopes: the largest convex function below the
first pixels of the rows, and the smallest concave one above the last.

Legend: H W pixels.
"""

import numpy as np
from numpy.typing import NDArray

_SLACK = 1e-6  # px; an envelope that misses a whole number misses it by more than 1 / H


def hull_of(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels (H, W) uint8 whose centre lies in the convex hull of the mask's pixel centres; empty stays empty."""
    filled = np.zeros_like(mask, order="C")
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return filled
    marked = mask[rows] != 0
    first, last = marked.argmax(axis=1), mask.shape[1] - 1 - marked[:, ::-1].argmax(axis=1)
    inside = np.arange(rows[0], rows[-1] + 1)
    left = np.ceil(_envelope(rows, first, inside) - _SLACK)
    right = np.floor(-_envelope(rows, -last, inside) + _SLACK)
    columns = np.arange(mask.shape[1])
    filled[inside] = (columns >= left[:, None]) & (columns <= right[:, None])
    return filled


def _envelope(x: NDArray[np.intp], y: NDArray[np.intp], where: NDArray[np.intp]) -> NDArray[np.float64]:
    """The largest convex function that nowhere exceeds the points (x ascending, y), at each place of ``where``."""
    kept: list[tuple[int, int]] = []
    for x2, y2 in zip(x.tolist(), y.tolist()):
        while len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            if (x1 - x0) * (y2 - y0) > (y1 - y0) * (x2 - x0):
                break
            kept.pop()
        kept.append((x2, y2))
    return np.interp(where, [x for x, _ in kept], [y for _, y in kept])
