import numpy as np
import pytest
from PIL import Image

from sb.data.crop import Crop, Frame, crop_image, crop_outline, draw_frame, enough_pixels, pixel_of


def draws(count=300):
    return (np.random.default_rng(n) for n in range(count))


def test_the_object_stays_in_frame():
    for rng in draws():
        width, height = (int(n) for n in rng.integers(40, 500, 2))
        wide, high = (int(rng.integers(1, limit)) for limit in (width, height))
        box = [int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1)), wide, high]
        frame = draw_frame(rng, width, height, box, Crop(), 32, 0.5)
        assert 0 <= frame.x <= width - frame.side and 0 <= frame.y <= height - frame.side
        for start, first, length in ((frame.x, box[0], wide), (frame.y, box[1], high)):
            inside = start <= first and first + length <= start + frame.side
            within = first <= start and start + frame.side <= first + length  # longer than any square that fits
            assert inside or (within and length > frame.side)


def test_contexts_and_sizes_vary_within_what_was_asked():
    box = [200, 200, 50, 40]
    sides = [draw_frame(rng, 600, 600, box, Crop(1.5, 4.0), 32, 0.5).side for rng in draws()]
    assert 75 <= min(sides) < 80 and 190 < max(sides) <= 200
    assert {draw_frame(rng, 600, 600, box, Crop(1.5, 4.0), 256, 0.5).side for rng in draws(20)} == {256}
    assert min(draw_frame(rng, 600, 600, [9, 9, 2, 2], Crop(min_side_px=40), 256, 0.5).side for rng in draws(20)) == 40
    sides = [draw_frame(rng, 600, 400, None, Crop(max_zoom=2.0), 32, 0.5).side for rng in draws()]
    assert 200 <= min(sides) < 210 and 390 < max(sides) <= 400
    flips = [draw_frame(rng, 60, 60, None, None, 32, 0.25).flip for rng in draws(1000)]
    assert 0.2 < np.mean(flips) < 0.3


def test_a_square_image_without_a_crop_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = (pixels[:, :, 0] > 200).astype(np.uint8)
    frame = draw_frame(np.random.default_rng(1), 64, 64, [3, 4, 20, 20], None, 64, 0.0)
    assert frame == Frame(0, 0, 64, False)
    assert np.array_equal(crop_image(Image.fromarray(pixels), 64, 64, frame, 64), pixels)
    assert np.array_equal(crop_outline(mask, frame, 64), mask)
    mirrored = frame._replace(flip=True)
    assert np.array_equal(crop_image(Image.fromarray(pixels), 64, 64, mirrored, 64), pixels[:, ::-1])
    assert np.array_equal(crop_outline(mask, mirrored, 64), mask[:, ::-1])


@pytest.mark.parametrize(("side", "flip"), [(200, False), (200, True), (64, True), (37, False), (131, True)])
def test_image_and_outline_stay_together(side, flip):
    pixels, mask = np.zeros((240, 300, 3), np.uint8), np.zeros((240, 300), np.uint8)
    pixels[60:110, 80:150], mask[60:110, 80:150] = 255, 1
    frame = Frame(75, 30, side, flip)
    image = crop_image(Image.fromarray(pixels), 300, 240, frame, 64)
    outline = crop_outline(mask, frame, 64)
    assert image.shape == (64, 64, 3) and outline.shape == (64, 64) and set(np.unique(outline)) <= {0, 1}
    different = (image[:, :, 0] > 127) != outline
    assert different.sum() <= 64 and outline.any()


def test_half_covered_counts_and_a_tiny_object_is_never_lost():
    mask = np.zeros((256, 256), np.uint8)
    mask[:, :128], mask[:, 128:132] = 1, 0
    assert crop_outline(mask, Frame(0, 0, 256, False), 64).sum() == 32 * 64
    for size in (1, 2, 3):
        mask = np.zeros((4000, 4000), np.uint8)
        mask[1234 : 1234 + size, 2345 : 2345 + size] = 1
        small = crop_outline(mask, Frame(0, 0, 4000, False), 64)
        assert 1 <= small.sum() <= 4
        assert small[1234 * 64 // 4000, 2345 * 64 // 4000] == 1
    assert not crop_outline(np.zeros((100, 100), np.uint8), Frame(0, 0, 100, False), 64).any()


def test_a_smaller_decode_shows_the_same_frame():
    ramp = np.add.outer(np.arange(480), np.arange(640)) * 255 // 1120
    image = Image.fromarray(np.stack([ramp] * 3, -1).astype(np.uint8))
    frame = Frame(100, 50, 300, False)
    assert enough_pixels(640, 480, frame, 75) == (160, 120)
    whole = crop_image(image, 640, 480, frame, 75)
    half = crop_image(image.resize((320, 240), Image.Resampling.BOX), 640, 480, frame, 75)
    assert np.abs(whole.astype(int) - half).max() <= 2


def test_pixel_of():
    mask = np.zeros((9, 9), np.uint8)
    assert pixel_of(mask) is None
    mask[4, 7] = 1
    assert pixel_of(mask) == [7.0, 4.0, 1.0, 1.0]


def test_a_crop_that_makes_no_sense_is_refused():
    for wrong in ({"min_context": 0.5}, {"min_context": 3.0, "max_context": 2.0}, {"max_zoom": 0.5}):
        with pytest.raises(ValueError, match="crop: needs"):
            Crop(**wrong)
