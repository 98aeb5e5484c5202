"""Borders: what travels is checked once, and each refusal carries the numbers."""

import numpy as np
import pytest
import torch

from sb.types import Batch, Request, Result, Skip


def batch(**changes):
    fields = {
        "image": torch.zeros(2, 3, 8, 6, dtype=torch.uint8),
        "outline": torch.ones(2, 1, 8, 6, dtype=torch.uint8),
        "level": torch.tensor([0, 5]),
        "task": torch.tensor([0, 1]),
        "text": ["a star", ""],
        "key": ["k0", "k1"],
        "skipped": [Skip("jpeg", "k7")],
    }
    return Batch(**{**fields, **changes})


def test_a_good_batch_passes_and_travels():
    good = batch().check()
    assert len(good) == 2
    moved = good.to("cpu")
    assert moved.check().text == good.text and moved.skipped == good.skipped and torch.equal(moved.level, good.level)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"image": torch.zeros(2, 3, 8, 6)}, "batch.image is .*float32, not .*uint8"),
        ({"outline": torch.ones(2, 1, 8, 5, dtype=torch.uint8)}, r"batch.outline is \(2, 1, 8, 5\)"),
        ({"outline": torch.ones(2, 8, 6, dtype=torch.uint8)}, "batch.outline"),
        ({"level": torch.tensor([0.0, 1.0])}, "batch.level"),
        ({"task": torch.tensor([0])}, "batch.task"),
        ({"text": ["one"]}, "batch.text holds 1 strings for 2 images"),
    ],
)
def test_a_wrong_batch_names_the_field(change, says):
    with pytest.raises(ValueError, match=says):
        batch(**change).check()


def request_for(**changes):
    mask = torch.zeros(1, 8, 6, dtype=torch.uint8)
    mask[0, 2:5, 1:4] = 1
    return Request(**{"image": torch.zeros(3, 8, 6, dtype=torch.uint8), "mask": mask, "text": "a star", **changes})


@pytest.mark.parametrize("level", [0, 0.0, 2.5, 5])
def test_a_good_request_passes(level):
    assert request_for(level=level).check(5).text == "a star"


@pytest.mark.parametrize(
    "change, says",
    [
        ({"image": torch.zeros(3, 8, 6)}, "image must be .* uint8"),
        ({"image": torch.zeros(1, 8, 6, dtype=torch.uint8)}, "image must be"),
        ({"mask": torch.ones(1, 4, 5, dtype=torch.uint8)}, "the mask is 5x4 px and the image 6x8 px"),
        ({"mask": torch.zeros(1, 8, 6, dtype=torch.uint8)}, "the mask is empty"),
        ({"mask": torch.full((1, 8, 6), 255, dtype=torch.uint8)}, "holds 255"),
        ({"level": 5.5}, r"level 5.5 is outside 0 \(outline\) to 5 \(box\)"),
        ({"level": -1.0}, "outside 0"),
        ({"seed": 2**64}, r"seed 18446744073709551616 is outside 0 \.\.\. 2\^63 - 1"),
    ],
)
def test_a_wrong_request_says_what_to_do(change, says):
    with pytest.raises(ValueError, match=says):
        request_for(**change).check(5)


def test_a_result_gives_pictures():
    pixels = torch.randint(0, 256, (3, 8, 6), dtype=torch.uint8)
    result = Result(pixels, pixels, torch.full((1, 8, 6), 0.5), seed=1)
    assert np.array_equal(np.asarray(result.image), pixels.permute(1, 2, 0).numpy())
    grey = result.predicted_mask
    assert grey is not None and grey.size == (6, 8) and grey.getpixel((0, 0)) == 128
    assert Result(pixels, pixels, None, seed=1).predicted_mask is None
