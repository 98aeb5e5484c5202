"""Seams and shifts: an untouched picture scores 1 and 0, a step is seen, and the object's own edge is not counted."""

import math

import pytest
import torch

from sb.evaluate.seams import colour_shift, seams


@pytest.fixture
def scene():
    draw = torch.Generator().manual_seed(0)
    picture = torch.randint(90, 110, (4, 3, 40, 40), dtype=torch.uint8, generator=draw)
    mask = torch.zeros(4, 1, 40, 40, dtype=torch.uint8)
    mask[:, :, 8:32, 8:32] = 1
    thing = torch.zeros_like(mask)
    thing[:, :, 16:24, 16:24] = 1
    return picture, mask, thing


def test_the_untouched_picture_has_no_seam_and_no_shift(scene):
    picture, mask, thing = scene
    found = seams(picture, picture, mask, thing)
    assert not found.gap().any() and found.score() == 1
    assert found.pairs.tolist() == [96.0] * 4  # 24 pairs on each of four sides
    assert colour_shift(picture, picture, mask, thing).tolist() == [0.0] * 4


def test_a_painted_object_inside_is_no_seam(scene):
    picture, mask, thing = scene
    painted = torch.where(thing > 0, torch.full_like(picture, 255), picture)
    assert seams(painted, picture, mask, thing).score() == 1
    assert not colour_shift(painted, picture, mask, thing).any()


def test_a_shift_inside_the_mask_is_a_seam_of_its_size(scene):
    picture, mask, thing = scene
    flat = torch.full_like(picture, 100)
    flat[..., ::2] = 104  # the untouched picture's own steps
    shifted = torch.where(mask > 0, flat + 10, flat)
    assert seams(shifted, flat, mask, thing).score() > 2
    assert seams(shifted, flat, mask, thing).gap().tolist() == pytest.approx([8.0] * 4)  # 10, and 6 or 14 at the sides
    assert colour_shift(shifted, flat, mask, thing).tolist() == pytest.approx([10.0] * 4)


def test_the_objects_own_edge_at_the_border_does_not_count(scene):
    picture, mask, _ = scene
    touching = torch.zeros_like(mask)
    touching[:, :, 8:32, 8:32] = 1
    painted = torch.where(touching > 0, torch.full_like(picture, 255), picture)
    found = seams(painted, picture, mask, touching)
    assert math.isnan(found.score()) and found.gap().isnan().all() and not found.pairs.any()
    assert colour_shift(painted, picture, mask, touching).isnan().all()
