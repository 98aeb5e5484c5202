"""Fills: nothing outside changes, patterns go on through the hole, and a picture without anything known stays."""

import pytest
import torch

from sb.registry import build


def waves(size=64):
    across = torch.arange(size).float()
    wave = 128 + 60 * torch.sin(0.55 * across[None, :] + 0.35 * across[:, None])
    return wave.round().to(torch.uint8).expand(3, -1, -1).contiguous()


def hole(size=64):
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, 22:42, 20:44] = 1
    return mask


def spoiled(picture, mask):
    return torch.where(mask > 0, torch.tensor([250, 10, 10], dtype=torch.uint8).view(3, 1, 1), picture)


def test_none_changes_nothing():
    picture = waves()
    assert build("fill", {"name": "none"})(picture, hole()) is picture


def test_frequency_carries_stripes_on_and_changes_no_pixel_outside():
    picture, mask = waves(), hole()
    filled = build("fill", {"name": "frequency"})(spoiled(picture, mask), mask)
    assert torch.equal(filled * (1 - mask), picture * (1 - mask))
    error = (filled.float() - picture.float())[:, mask[0] > 0].square().mean().sqrt()
    assert error < 6  # of an amplitude of 60; the mean grey is off by 42


def test_frequency_sees_nothing_of_what_the_mask_covers():
    picture, mask = waves(), hole()
    fill = build("fill", {"name": "frequency"})
    assert torch.equal(fill(spoiled(picture, mask), mask), fill(picture, mask))


def test_a_mask_over_everything_leaves_the_picture():
    picture = waves()
    assert torch.equal(build("fill", {"name": "frequency"})(picture, torch.ones_like(hole())), picture)


@pytest.mark.parametrize("pixels", [1, 63 * 64])
def test_the_least_and_the_most_that_can_be_unknown(pixels):
    mask = (torch.arange(64 * 64) < pixels).view(1, 64, 64).to(torch.uint8)
    filled = build("fill", {"name": "frequency"})(waves(), mask)
    assert filled.shape == (3, 64, 64) and torch.equal(filled * (1 - mask), waves() * (1 - mask))
