"""A hull is what scipy's half-planes say of every pixel's centre, covers its mask, and is its own hull."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from sb.evaluate.hulls import hull_of


def inside_half_planes(mask: np.ndarray) -> np.ndarray:
    """The pixels whose centre no facet of scipy's hull has on its outer side."""
    rows, columns = np.nonzero(mask)
    planes = ConvexHull(np.stack([columns, rows], 1)).equations  # (facets, 3): a x + b y + c <= 0 inside
    y, x = np.indices(mask.shape)
    return ((planes[:, :2] @ np.stack([x.ravel(), y.ravel()]) + planes[:, 2:]).max(0) <= 1e-7).reshape(mask.shape)


@pytest.mark.parametrize("pixels", [4, 9, 40, 600])
def test_it_is_scipys_hull_to_the_pixel(pixels):
    rng = np.random.default_rng(pixels)
    for _ in range(10):
        mask = np.zeros((61, 83), np.uint8)
        mask[rng.integers(5, 50, pixels), rng.integers(9, 80, pixels)] = 1
        hull = hull_of(mask)
        assert np.array_equal(hull == 1, inside_half_planes(mask))
        assert (hull >= mask).all() and np.array_equal(hull_of(hull), hull)


@pytest.mark.parametrize("turned", [False, True])
def test_known_answers(turned):
    def answer(mask):
        return hull_of(mask.T).T if turned else hull_of(mask)

    mask = np.zeros((9, 12), np.uint8)
    assert not answer(mask).any()
    mask[4, 3] = 1
    assert np.array_equal(answer(mask), mask)  # a point
    mask[4, 9] = 1
    assert answer(mask).sum() == 7 and answer(mask)[4, 3:10].all()  # a line
    mask[8, 3] = 1
    triangle = [[4, 3, 9], [5, 3, 7], [6, 3, 6], [7, 3, 4], [8, 3, 3]]  # row, first, last: 9 - 1.5 (row - 4)
    assert answer(mask).sum() == sum(last - first + 1 for _, first, last in triangle)
    assert all(answer(mask)[row, first: last + 1].all() for row, first, last in triangle)
    ring = np.ones((9, 12), np.uint8)
    ring[2:7, 2:9] = 0
    assert hull_of(ring).all()
