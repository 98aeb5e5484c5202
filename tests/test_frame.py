"""Frames: the mask is always inside, the model's size is kept, and what is put back touches nothing else."""

import pytest
import torch

from sb.frame import frame_of


def mask_of(height, width, top, left, h, w):
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, top: top + h, left: left + w] = 1
    return mask


def test_a_picture_of_the_models_size_is_painted_whole():
    frame = frame_of(mask_of(80, 64, 3, 3, 5, 5), 64, 2.0, 4.0)
    assert frame == (0, 0, 64, 80, (80, 64)) and not frame.scaled
    assert frame_of(mask_of(500, 900, 3, 3, 5, 5), None, 2.0, 4.0).size == (500, 900)


@pytest.mark.parametrize("height, width, box, context, zoom, expected", [
    (1024, 1024, (500, 500, 24, 24), 2.0, 1.0, (480, 480, 64, 64, (64, 64))),  # the model's own pixels
    (1024, 1024, (500, 500, 24, 24), 2.0, 4.0, (488, 488, 48, 48, (64, 64))),  # enlarged to the model's size
    (1024, 1024, (500, 500, 2, 2), 2.0, 4.0, (493, 493, 16, 16, (64, 64))),  # not more than four times
    (1024, 1024, (0, 1020, 4, 4), 2.0, 1.0, (960, 0, 64, 64, (64, 64))),  # moved inside
    (1024, 1024, (100, 100, 200, 100), 2.0, 4.0, (0, 0, 400, 400, (64, 64))),  # made smaller
    (40, 400, (10, 100, 10, 20), 2.0, 1.0, (78, 0, 64, 40, (40, 64))),  # as far as the picture goes
    (1024, 1024, (0, 0, 1024, 1024), 2.0, 4.0, (0, 0, 1024, 1024, (64, 64))),
])
def test_frames_around_known_masks(height, width, box, context, zoom, expected):
    assert frame_of(mask_of(height, width, *box), 64, context, zoom) == expected


def test_the_mask_lies_inside_and_is_never_lost():
    draw = torch.Generator().manual_seed(0)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=draw))

    for _ in range(300):
        height, width = number(33, 400), number(33, 400)
        h, w = number(1, height), number(1, width)
        mask = mask_of(height, width, number(0, height - h), number(0, width - w), h, w)
        frame = frame_of(mask, number(16, 128), 1 + number(0, 30) / 10, 1 + number(0, 30) / 10)
        assert frame.cut(mask).sum() == mask.sum()
        assert frame.shown_mask(mask).shape[1:] == frame.size and frame.shown_mask(mask).any()
        assert min(frame.x, frame.y) >= 0 and frame.x + frame.width <= width and frame.y + frame.height <= height


def test_at_the_pictures_own_scale_not_one_pixel_is_resampled():
    picture = torch.randint(0, 256, (3, 300, 300), dtype=torch.uint8)
    frame = frame_of(mask_of(300, 300, 40, 50, 20, 20), 64, 2.0, 1.0)
    assert torch.equal(frame.shown(picture), picture[:, frame.y: frame.y + 64, frame.x: frame.x + 64])
    assert torch.equal(frame.put_back(frame.shown(picture), picture), picture)


def test_scaling_there_and_back_keeps_a_smooth_picture():
    ramp = torch.linspace(0, 255, 200).expand(3, 200, 200).round().to(torch.uint8)
    frame = frame_of(mask_of(200, 200, 60, 60, 60, 60), 64, 2.0, 4.0)
    assert frame.scaled
    back = frame.unscaled(frame.shown(ramp).float())
    assert (back - frame.cut(ramp)).abs()[:, 4:-4, 4:-4].max() < 2


def test_putting_back_leaves_the_picture_it_was_given_alone():
    picture = torch.zeros(1, 9, 9)
    frame = frame_of(mask_of(9, 9, 1, 1, 2, 2), None, 2.0, 1.0)
    assert frame.put_back(torch.ones(1, 9, 9), picture).sum() == 81 and picture.sum() == 0
