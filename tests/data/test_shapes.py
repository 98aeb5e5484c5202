"""The shapes world: the same seed gives the same scene, and what is said of it is what is drawn."""

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sb.data.shapes import SHAPE_NAMES, ShapesSource, draw_scene, scene_seed
from sb.data.shapes_draw import COLOURS, TEXTURES, TONES, paint_object
from sb.registry import build

SEEDS = [scene_seed("train", 7, index) for index in range(60)]


def test_a_seed_is_a_scene() -> None:
    first, again, other = draw_scene(SEEDS[0]), draw_scene(SEEDS[0]), draw_scene(SEEDS[1])
    assert np.array_equal(first.image, again.image) and first.caption == again.caption
    assert not np.array_equal(first.image, other.image)
    pinned = "a striped orange heart, a striped red crescent and a striped purple heart on a cloudy background"
    assert scene_seed("train", 0, 1) == 8649202198168436672  # of all time, or published figures change their scenes
    assert draw_scene(8649202198168436672).caption == draw_scene(8649202198168436672, 128).caption == pinned


def test_splits_and_indexes_share_no_seed() -> None:
    seeds = [scene_seed(split, 0, i) for split in ("train", "val", "test", "oracle") for i in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert {s % 4 for s in seeds[:200]} == {0} and {s % 4 for s in seeds[400:600]} == {2}
    with pytest.raises(ValueError, match="no split 'tain'"):
        scene_seed("tain", 0, 0)


@pytest.mark.parametrize("size_px", [64, 128])
def test_background_differs_exactly_where_the_target_is(size_px: int) -> None:
    for seed in SEEDS:
        scene = draw_scene(seed, size_px)
        assert scene.image.shape == scene.background.shape == (size_px, size_px, 3)
        assert scene.image.dtype == np.uint8 and [thing.is_target for thing in scene.objects][-1]
        changed = (scene.image != scene.background).any(2)
        target = scene.target.outline.astype(bool)
        assert changed[target].all()
        assert changed.sum() - target.sum() < 2.0 * size_px * 5  # only an edge of mixed pixels beyond the outline
        behind = (scene.background != scene.ground).any(2)
        assert behind.any() == (len(scene.objects) > 1)


def test_outlines_are_disjoint_and_objects_have_their_colour() -> None:
    counts = set()
    for seed in SEEDS:
        scene = draw_scene(seed)
        counts.add(len(scene.objects))
        assert sum(thing.outline.astype(int) for thing in scene.objects).max() == 1  # type: ignore[union-attr]
        for thing in scene.objects:
            seen = scene.image[thing.outline == 1].mean(0) / 255
            tones = np.array(TONES[thing.colour])
            assert (seen > tones.min(0) - 0.2).all() and (seen < tones.max(0) + 0.2).all()
    assert counts == {1, 2, 3}


def test_outline_is_coverage_above_one_half() -> None:
    """Painted in white on black without shading, an object's brightness is its coverage."""
    canvas = np.zeros((64, 64, 3), np.float32)
    outline = paint_object(
        canvas, "circle", "cyan", "plain", centre=(31.3, 33.8), half=15.0, aspect=1.0, angle=0.2, shade=(0, 0), unit=1
    )
    coverage = canvas[..., 2] / TONES["cyan"][0][2]
    assert np.array_equal(coverage > 0.5, outline)
    y, x = np.mgrid[:64, :64] + 0.5
    exact = (x - 31.3) ** 2 + (y - 33.8) ** 2 < 15**2
    assert (exact != outline).sum() <= 8 and abs(coverage.sum() - np.pi * 15**2) < 4


def test_textures_are_two_clear_tones() -> None:
    for texture in TEXTURES:
        canvas = np.zeros((64, 64, 3), np.float32)
        outline = paint_object(
            canvas, "square", "blue", texture, centre=(32, 32), half=18.0, aspect=1.0, angle=0, shade=(0, 0), unit=1
        )
        dark = canvas[outline][:, 1] < 0.375  # between blue's two tones
        assert (dark.mean() == 0) if texture == "plain" else (0.2 < dark.mean() < 0.6)


def test_every_word_occurs() -> None:
    things = [thing for i in range(300) for thing in draw_scene(scene_seed("train", 0, i)).objects]
    assert {t.shape for t in things} == set(SHAPE_NAMES) and {t.colour for t in things} == set(COLOURS)
    assert {t.texture for t in things} == set(TEXTURES)


def test_records_say_what_is_drawn() -> None:
    source = build("source", {"name": "shapes", "num_images": 20, "seed": 3, "split": "val"})
    assert len(source) == 20
    for index in range(20):
        record = source.record(index)
        scene = draw_scene(scene_seed("val", 3, index))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(record.image))), scene.image)
        assert record.caption == scene.caption
        assert scene.caption.endswith(f"{scene.target.caption} on a {scene.background_kind} background")
        assert len(record.instances) == len(scene.objects)
        for instance, thing in zip(record.instances, scene.objects, strict=True):
            assert isinstance(instance.mask["counts"], str)
            assert np.array_equal(coco_mask.decode(instance.mask), thing.outline)
            assert instance.label == thing.shape
            assert instance.captions == [f"{thing.texture} {thing.colour} {thing.shape}"]
            x, y, w, h = (int(n) for n in instance.box)
            assert thing.outline[y: y + h, x: x + w].sum() == instance.area == thing.outline.sum()


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ShapesSource(0)
    with pytest.raises(ValueError, match="at least 32"):
        draw_scene(0, 8)
