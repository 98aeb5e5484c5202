import numpy as np
import pytest

from sb.data.ledger import Broken
from sb.data.tasks import ObjectTask, RandomMaskTask, RemoveTask, TaskContext, TextToImageTask, pick
from sb.registry import build, names

CONTEXT = TaskContext(level_weights=[1.0] * 6)


def plans(task, record, count=2000):
    rng = np.random.default_rng(0)
    return [task.plan(record, rng) for _ in range(count)]


def instance(label, area, captions=(), crowd=False):
    return {
        "id": label, "label": label, "area": area, "captions": list(captions), "crowd": crowd,
        "box": [0, 0, 1, 1], "mask": {"size": [1, 1], "counts": "0"},
    }


def record(*instances):
    return {"width": 100, "height": 100, "caption": "the whole image", "instances": list(instances)}


def test_built_in_tasks_are_registered():
    assert {"object", "text_to_image", "random_mask"} <= set(names("task"))
    assert build("task", {"name": "object", "label_share": 0.25}, context=CONTEXT).label_share == 0.25
    with pytest.raises(ValueError, match="level_weights needs 6 numbers"):
        build("task", {"name": "object", "level_weights": [1.0]}, context=CONTEXT)
    with pytest.raises(ValueError, match="label_share 3 is outside"):
        build("task", {"name": "object", "label_share": 3}, context=CONTEXT)


def test_label_and_caption_alternate_and_the_images_caption_is_never_used():
    image = record(instance("dog", 1000, ["a brown dog", "a dog that runs"]))
    texts = [p.text for p in plans(ObjectTask(CONTEXT, label_share=0.3), image)]
    assert 0.27 < texts.count("dog") / 2000 < 0.33
    assert 0.32 < texts.count("a brown dog") / 2000 < 0.38
    assert set(texts) == {"dog", "a brown dog", "a dog that runs"}
    assert {p.text for p in plans(ObjectTask(CONTEXT, 0.0), record(instance("dog", 1000)), 50)} == {"dog"}


def test_only_eligible_objects_are_chosen():
    image = record(
        instance("tiny", 150), instance("fits", 300), instance("crowd", 3000, crowd=True), instance("large", 7000),
    )
    assert {p.instance["id"] for p in plans(ObjectTask(CONTEXT), image, 50)} == {"fits"}
    with pytest.raises(Broken, match="no_object"):
        ObjectTask(CONTEXT).plan(record(instance("tiny", 10)), np.random.default_rng(0))
    with pytest.raises(Broken, match="missing_key"):
        ObjectTask(CONTEXT).plan(record({"label": "no area"}), np.random.default_rng(0))


def test_rare_labels_are_drawn_more_often_when_asked():
    image = record(instance("person", 1000), instance("zebra", 1000))
    context = TaskContext([1.0], sample_by="category", labels={"person": 900, "zebra": 100})
    labels = [p.instance["label"] for p in plans(ObjectTask(context), image)]
    assert 0.87 < labels.count("zebra") / 2000 < 0.93
    with pytest.raises(ValueError, match="sample_by must be instance or category"):
        TaskContext([1.0], sample_by="label")


def test_levels_follow_their_weights():
    image = record(instance("dog", 1000))
    levels = [p.level for p in plans(ObjectTask(CONTEXT, level_weights=[1, 0, 0, 0, 0, 3]), image)]
    assert set(levels) == {0, 5} and 0.72 < levels.count(5) / 2000 < 0.78
    assert set(p.level for p in plans(ObjectTask(CONTEXT), image)) == set(range(6))
    assert pick(np.random.default_rng(0), [0, 1, 0]) == 1


def test_text_to_image_paints_everything_from_the_images_caption():
    task, rng = TextToImageTask(CONTEXT), np.random.default_rng(0)
    plan = task.plan(record(instance("dog", 1000)), rng)
    assert plan == (None, "the whole image", 5) and task.outline(None, 16, rng, list).min() == 1
    with pytest.raises(Broken, match="no_caption"):
        task.plan({"width": 1, "height": 1, "caption": "", "captions": [], "instances": []}, rng)
    many = {"captions": ["one", "two"], "caption": "one"}
    assert {p.text for p in plans(task, many, 50)} == {"one", "two"}


@pytest.mark.parametrize("captions", ["a dog", {"a": 1}, [5], [None], 7])
def test_captions_that_are_no_list_of_strings_are_broken(captions):
    rng = np.random.default_rng(0)
    with pytest.raises(Broken, match="bad_schema"):
        TextToImageTask(CONTEXT).plan({"captions": captions, "caption": "one"}, rng)
    with pytest.raises(Broken, match="bad_schema"):
        ObjectTask(CONTEXT).plan(record({**instance("dog", 1000), "captions": captions}), rng)
    for label in ("", None, 5):
        with pytest.raises(Broken, match="bad_schema"):
            ObjectTask(CONTEXT).plan(record(instance(label, 1000)), rng)


def test_random_masks_vary_and_are_never_empty():
    task, rng = RandomMaskTask(CONTEXT), np.random.default_rng(0)
    assert task.plan(record(), rng) == (None, "the whole image", 0)
    masks = np.stack([task.outline(None, 64, rng, list) for _ in range(300)])
    shares = masks.mean((1, 2))
    assert masks.dtype == np.uint8 and set(np.unique(masks)) == {0, 1}
    assert shares.min() > 0 and shares.std() > 0.1 and 0.15 < shares.mean() < 0.6
    boxes = RandomMaskTask(CONTEXT, max_strokes=0).outline(None, 64, rng, list)
    assert boxes.any()
    assert not (task.has_object or TextToImageTask(CONTEXT).has_object) and ObjectTask(CONTEXT).has_object


def disc(size, y, x, radius):
    grid = np.mgrid[:size, :size]
    return ((grid[0] - y) ** 2 + (grid[1] - x) ** 2 <= radius**2).astype(np.uint8)


def test_a_removals_outline_is_the_objects_moved_to_where_there_is_none():
    task, rng = RemoveTask(CONTEXT), np.random.default_rng(0)
    plan = task.plan(record(instance("dog", 1000, ["a brown dog"])), rng)
    assert (plan.instance["id"], plan.text) == ("dog", "") and 0 <= plan.level < 6
    own = disc(64, 20, 20, 8)
    taken = own | disc(64, 20, 50, 6)
    masks = np.stack([task.outline(own, 64, rng, lambda: taken) for _ in range(400)])
    assert masks.any((1, 2)).all() and not (masks & taken).any()
    assert (masks.sum((1, 2)) == own.sum()).all() and masks[:, :, [0, -1]].any() and masks[:, -1].any()
    assert masks.any(0)[40:].mean() > 0.9 and masks.dtype == np.uint8  # anywhere in the empty half


def test_a_removals_outline_shrinks_where_there_is_no_room_and_is_never_empty():
    task, rng = RemoveTask(CONTEXT), np.random.default_rng(0)
    own = disc(64, 32, 32, 20)
    middle = disc(64, 32, 32, 12)
    halved = [task.outline(middle, 64, rng, lambda: middle) for _ in range(50)]
    assert all(0 < mask.sum() < middle.sum() and mask.any(1).sum() > 10 for mask in halved)  # it leaves the image
    beside = [task.outline(own, 64, rng, lambda: own) for _ in range(50)]
    assert all(0 < mask.sum() < own.sum() and not (mask & own).any() for mask in beside)
    full = np.ones((64, 64), dtype=np.uint8)
    ring = disc(64, 32, 32, 20) - disc(64, 32, 32, 18)
    for outline, taken in ((own, full), (full, full), (ring, np.zeros_like(full)), (disc(64, 5, 5, 0), full)):
        assert all(task.outline(outline, 64, rng, lambda t=taken: t).any() for _ in range(200))
