"""Diversity: known distances of known pictures, and only where the mask is."""

import pytest
import torch

from sb.diversity import diversity


def flat(level):
    return torch.full((3, 6, 8), level, dtype=torch.uint8)


@pytest.fixture
def mask():
    drawn = torch.zeros(1, 6, 8, dtype=torch.uint8)
    drawn[:, 1:4, 2:7] = 1
    return drawn


def test_the_same_picture_is_no_variation(mask):
    assert diversity([flat(40)] * 3, mask) == 0


@pytest.mark.parametrize("levels, expected", [((10, 17), 7), ((255, 0), 255), ((0, 30, 60), (30 + 60 + 30) / 3)])
def test_flat_pictures_are_as_far_apart_as_their_levels(mask, levels, expected):
    assert diversity([flat(level) for level in levels], mask) == pytest.approx(expected)


def test_half_of_the_mask_in_one_channel(mask):
    other = flat(0)
    other[0, 1:4, 2:7][:, :5] = 12
    half = other.clone()
    half[0, 2:] = 0  # a third of the rows is left
    assert diversity([flat(0), other], mask) == pytest.approx(12 / 3 ** 0.5)
    assert diversity([flat(0), half], mask) == pytest.approx(12 / 9 ** 0.5)


def test_what_lies_outside_the_mask_does_not_count(mask):
    other = torch.where(mask > 0, flat(5), flat(200))
    assert diversity([flat(5), other], mask) == 0


def test_a_network_sees_pairs_of_the_masks_box(mask):
    seen = []

    def distance(one, two):
        seen.append((one, two))
        return (one - two).abs().mean((1, 2, 3))

    levels = (0, 51, 255)
    assert diversity([flat(level) for level in levels], mask, distance) == pytest.approx((0.4 + 2 + 1.6) / 3)
    one, two = seen[0]
    assert one.shape == two.shape == (3, 3, 3, 5) and float(one.min()) == -1 and float(two.max()) == 1


@pytest.mark.parametrize("count, drawn, says", [(1, 1, "not 1 and 48 px"), (2, 0, "not 2 and 0 px")])
def test_one_picture_or_no_mask_is_refused(count, drawn, says):
    with pytest.raises(ValueError, match=says):
        diversity([flat(0)] * count, torch.full((1, 6, 8), drawn, dtype=torch.uint8))
