"""Fixed frames: of an image, not of a run; around its objects, each in turn; and what lies in them."""

import numpy as np
import pytest

from sb.data.crop import Crop, Frame
from sb.data.pipeline import Look, Samples
from sb.data.shards import ShardStore
from sb.data.tasks import ObjectTask, TaskContext, TextToImageTask
from sb.data.variants import shown_in, variant_frame

CONTEXT = TaskContext([1.0] * 6, min_area=0.0, max_area=1.0)


def thing(box, area=900, **other):
    return {"id": str(box), "label": "block", "box": box, "area": area, "crowd": False, **other}


def a_record(*boxes, size=(400, 300)):
    return {"width": size[0], "height": size[1], "instances": [thing(list(box)) for box in boxes]}


def frames(record, key="a", crop=Crop(variants=6), size_px=32, flip=0.5, area=(0.0, 1.0)):
    return [variant_frame(record, key, v, crop, size_px, flip, area) for v in range(crop.variants)]


def test_frames_are_distinct_and_follow_from_key_and_variant_alone():
    record = a_record((100, 100, 30, 30))
    assert frames(record) == frames(record) and len(set(frames(record))) == 6
    assert not set(frames(record)) & set(frames(record, key="b"))


def test_frames_hold_the_objects_in_turn():
    boxes = [(10, 10, 30, 30), (200, 50, 40, 20), (300, 220, 30, 60)]
    record = a_record(*boxes)
    held = [
        {box for box in boxes if f.x <= box[0] and f.y <= box[1] and box[0] + box[2] <= f.x + f.side
         and box[1] + box[3] <= f.y + f.side}
        for f in frames(record, crop=Crop(max_context=2.0, variants=3))
    ]
    assert set.union(*held) == set(boxes) and all(held)


def test_only_eligible_objects_have_frames_around_them():
    record = a_record((10, 10, 30, 30))
    record["instances"] += [thing([350, 250, 30, 30], crowd=True), thing([350, 10, 30, 30], area=9)]
    for frame in frames(record, crop=Crop(max_context=1.6, variants=8), area=(0.001, 0.5)):
        assert frame.x <= 10 and frame.y <= 10 and frame.side <= 48


@pytest.mark.parametrize("flip, mirrored", [(0.0, {0}), (0.5, {2}), (1.0, {4}), (0.25, {1})])
def test_the_share_that_is_mirrored_is_exact(flip, mirrored):
    record = a_record((100, 100, 30, 30))
    assert {sum(f.flip for f in frames(record, str(n), Crop(variants=4), flip=flip)) for n in range(20)} == mirrored


def test_a_whole_scene_has_two_frames_as_drawn_and_mirrored():
    record = a_record((4, 4, 9, 9), size=(32, 32))
    for area in ((0.0, 1.0), (0.99, 1.0)):  # with an object, and without one
        made = frames(record, crop=Crop(1.0, 1.0, None, 1.0, variants=2), area=area)
        assert {f[:3] for f in made} == {(0, 0, 32)} and {f.flip for f in made} == {True, False}


def test_an_object_lies_in_a_frame_with_half_of_its_box():
    frame = Frame(100, 100, 50, False)
    inside, half, less = (100, 100, 10, 10), (140, 100, 20, 10), (141, 100, 20, 10)
    longer, beside = (0, 110, 400, 20), (200, 200, 10, 10)
    record = a_record(inside, half, less, longer, beside)
    assert [tuple(i["box"]) for i in shown_in(record, frame)["instances"]] == [inside, half, longer]
    assert len(record["instances"]) == 5


def reader(folder, seed=0, **crop):
    tasks = [ObjectTask(CONTEXT), TextToImageTask(CONTEXT)]
    return Samples([ShardStore(folder)], [1.0], tasks, [0.7, 0.3], Look(24, Crop(**crop)), seed)


def test_every_sample_of_an_image_shows_one_of_its_frames(tiny, tmp_path):
    folder = tiny.set(tmp_path, [6])
    pictures = {}
    for seed in (0, 1):
        samples = reader(folder, seed, variants=2, min_side_px=1)
        for j in range(120):
            made = samples.sample(j)
            pictures.setdefault((made.key, seed), set()).add(made.image.tobytes())
    assert all(len(found) == 2 for found in pictures.values())
    assert all(pictures[(f"tiny-{n:06d}", 0)] == pictures[(f"tiny-{n:06d}", 1)] for n in range(6))
    fresh = reader(folder, variants=0, min_side_px=1)
    assert len({fresh.sample(j).image.tobytes() for j in range(60)}) > 40  # of 12 at most, were they fixed


def test_an_object_out_of_the_frame_is_never_asked_for(tiny, tmp_path):
    def two(number, sample):  # a second object in the far corner, in few of the first one's frames
        pixel = {"size": [40, 48], "counts": sample["json"]["instances"][0]["mask"]["counts"]}
        far = {**sample["json"]["instances"][0], "id": "1", "label": "far", "box": [44, 36, 4, 4], "mask": pixel}
        return {**sample, "json": {**sample["json"], "instances": [sample["json"]["instances"][0], far]}}

    samples = reader(tiny.set(tmp_path, [20], spoil=two), variants=4, max_context=1.5, min_side_px=1)
    asked = 0
    for j in range(100):
        raw = samples.stores[0].read(0, j % 20, j % 4)
        try:
            _, plan, frame = samples.plan(raw, 0, np.random.default_rng(j))
        except Exception as error:
            assert getattr(error, "reason", "") == "no_object"
            continue
        box = plan.instance["box"]
        assert frame.x < box[0] + box[2] and box[0] < frame.x + frame.side
        asked += 1
    assert asked > 50


def test_fewer_than_no_variants_are_refused():
    with pytest.raises(ValueError, match="variants >= 0, not 1.5, 4.0, 1.3 and -1"):
        Crop(variants=-1)
