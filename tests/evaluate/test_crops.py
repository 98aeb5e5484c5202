"""Crops of a mask's box: the right pixels, inside the picture, at one size."""

import pytest
import torch

from sb.evaluate.crops import box_of, crop_box, resize


@pytest.fixture
def coordinates():
    """A picture whose red is x and whose green is y."""
    y, x = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    return torch.stack([x, y, x * 0]).to(torch.uint8)


def test_the_box_is_the_masks():
    mask = torch.zeros(1, 60, 80, dtype=torch.uint8)
    mask[:, 20:29, 10:17] = 1
    assert box_of(mask) == (10, 20, 7, 9)


def test_without_context_and_resizing_a_crop_is_the_boxs_pixels(coordinates):
    crop = crop_box(coordinates, (10, 20, 16, 16), 16, context=1.0)
    assert torch.equal(crop, coordinates[:, 20:36, 10:26])


@pytest.mark.parametrize("box, context, expected", [
    ((30, 20, 20, 10), 1.0, (30, 15, 20)),  # a square about the middle
    ((30, 20, 20, 20), 1.5, (25, 15, 30)),  # with context
    ((0, 0, 20, 20), 1.5, (0, 0, 30)),  # moved into the picture
    ((60, 40, 20, 20), 1.5, (50, 30, 30)),
    ((10, 10, 50, 40), 4.0, (5, 0, 60)),  # no larger than the picture
])
def test_squares_stay_in_the_picture(coordinates, box, context, expected):
    left, top, side = expected
    crop = crop_box(coordinates, box, side, context)
    assert torch.equal(crop, coordinates[:, top: top + side, left: left + side])


def test_where_a_box_is_longer_than_the_picture_is_high_the_edge_is_repeated(coordinates):
    crop = crop_box(coordinates, (0, 10, 80, 40), 80)
    assert torch.equal(crop[:, 10:70], coordinates)
    assert torch.equal(crop[:, 0], coordinates[:, 0]) and torch.equal(crop[:, 79], coordinates[:, 59])


def test_resizing_keeps_the_mean_and_what_is_flat():
    flat = torch.full((1, 3, 50, 30), 201, dtype=torch.uint8)
    assert bool((resize(flat, 16) == 201).all())
    noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    small = resize(noise, 8).float()
    assert float(small.mean()) == pytest.approx(float(noise.float().mean()), abs=2)
    assert float(small.std()) < 20  # anti-aliased: a picked pixel in 64 would keep a spread of 74
