"""Pasting: nothing changes outside the object and its shadow, the outline is the alpha, the old rim is gone."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sb.data.composites_paste import FLOOR, MAX_ENLARGED, Place, draw_place, paste

PLACE = Place(20, 24, 30, 30)


def disk(size=60, rim=None):
    """A red disk, where asked with a rim of another colour three pixels wide."""
    picture = Image.new("RGBA", (size, size))
    ImageDraw.Draw(picture).ellipse((0, 0, size - 1, size - 1), fill=(200, 30, 20, 255), outline=rim, width=3)
    return picture


@pytest.fixture
def ground():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_only_the_object_and_its_shadow_change(ground):
    made = paste(ground, disk(), PLACE, shadow=0.5)
    same = (made.picture == ground).all(-1)
    assert same[(made.alpha == 0) & (made.shadow == 0)].all()
    shaded = (made.alpha == 0) & (made.shadow > 0.05)
    assert shaded.sum() > 20 and (made.picture <= ground)[shaded].all() and not same[shaded].all()
    assert made.shadow.max() <= 0.5 and (made.picture[made.alpha == 1] == (200, 30, 20)).all()
    rows = np.flatnonzero(made.shadow.any(1))
    assert rows.min() > PLACE.top + PLACE.height / 2 and rows.max() >= PLACE.top + PLACE.height  # it lies at the foot
    assert not paste(ground, disk(), PLACE, shadow=0).shadow.any()


def test_the_outline_is_where_alpha_is_above_half(ground):
    made = paste(ground, disk(), PLACE, shadow=0.4)
    assert (made.outline == (made.alpha > 0.5)).all() and made.outline.dtype == np.uint8
    y, x = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(x - 35, y - 39)
    assert made.outline[distance < 13].all() and not made.outline[distance > 15].any()
    soft = (made.alpha > 0) & (made.alpha < 1)
    assert soft.any() and (abs(distance[soft] - 14) < 3.5).all()  # blurred, and only at the edge


def test_a_light_rim_does_not_shine_on_a_dark_ground():
    made = paste(np.zeros((64, 64, 3), np.uint8), disk(rim=(255, 255, 255, 255)), PLACE, shadow=0.4)
    assert made.picture[..., 0].max() >= 199 and made.picture[..., 1:].max() < 90


def test_places_lie_in_the_scene_and_what_is_large_stands_low():
    rng = np.random.default_rng(0)
    places = [draw_place(rng, (80, 50), 128, 0.2, 0.9) for _ in range(400)]
    for left, top, width, height in places:
        assert 0 <= left <= 128 - width and 0 <= top <= 128 - height
        assert 0.2 * 128 - 1 <= width <= 0.9 * 128 and height == pytest.approx(width * 5 / 8, abs=1)
        assert round(FLOOR[0] * 128) <= top + height <= round(FLOOR[1] * 128)
    bottoms = np.array([place.top + place.height for place in places])
    wide = np.array([place.width for place in places]) > 60
    assert bottoms[wide].mean() > bottoms[~wide].mean() + 8
    assert draw_place(rng, (20, 10), 512, 0.5, 0.5).width == MAX_ENLARGED * 20
