import io
import itertools
import multiprocessing
import pickle
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from sb.data.crop import Crop
from sb.data.ledger import SkipLedger
from sb.data.pipeline import FixedStream, Look, Samples, ShardLoader, TrainStream, check_enough_shards
from sb.data.shards import ShardStore
from sb.data.tasks import ObjectTask, TaskContext, TextToImageTask

CONTEXT = TaskContext([1.0] * 6, min_area=0.0, max_area=1.0)


def reader(folders, weights=None, seed=0, share=1.0, crop=None, size_px=24, block=2, flip=0.5):
    folders = [folders] if isinstance(folders, str) else folders
    tasks, shares = [ObjectTask(CONTEXT), TextToImageTask(CONTEXT)], [share, 1 - share]
    return Samples(
        [ShardStore(f) for f in folders], weights or [1.0] * len(folders), tasks, shares,
        Look(size_px, crop, flip), seed, block,
    )


def batches(stream, count, workers=0, start=None):
    return list(itertools.islice(ShardLoader(stream, lambda: count, workers=workers, start=start), count))


def facts(batch):
    numbers = (batch.level.tolist(), batch.task.tolist(), batch.image.sum((1, 2, 3)).tolist())
    return list(zip(batch.key, batch.text, *numbers, strict=True))


def test_samples_are_a_pure_function_of_the_position(tiny, tmp_path):
    folder = tiny.set(tmp_path, [5, 6, 7])
    first, again = reader(folder, crop=Crop()), reader(folder, crop=Crop())
    forward = [first.sample(j) for j in range(40)]
    for j in reversed(range(40)):
        sample = again.sample(j)
        assert sample.key == forward[j].key and sample.text == forward[j].text and sample.level == forward[j].level
        assert np.array_equal(sample.image, forward[j].image) and np.array_equal(sample.outline, forward[j].outline)
    assert [reader(folder, seed=1).sample(j).key for j in range(18)] != [s.key for s in forward[:18]]
    copy = pickle.loads(pickle.dumps(first))
    assert copy.sample(17).key == forward[17].key


def test_any_number_of_ranks_and_workers_and_any_start_walk_one_sequence(tiny, tmp_path):
    samples = reader(tiny.set(tmp_path, [9, 9, 9, 9]), share=0.7)
    reference = [f for b in batches(TrainStream(samples, 24), 2) for f in facts(b)]
    for world, workers, size in ((1, 2, 4), (2, 0, 4), (2, 2, 4), (3, 2, 2)):
        ranks = [
            batches(TrainStream(samples, size, rank, world), 48 // (size * world), workers) for rank in range(world)
        ]
        assert [f for step in zip(*ranks, strict=True) for b in step for f in facts(b)] == reference
    later = batches(TrainStream(samples, 3, 1, 2), 2, start=lambda: 31)
    assert [f for b in later for f in facts(b)] == [*reference[34:37], *reference[40:43]]


def test_the_start_is_asked_for_at_the_first_batch_and_again_for_each_pass(tiny, tmp_path):
    place = [0]
    loader = ShardLoader(TrainStream(reader(tiny.set(tmp_path, [20])), 4), lambda: 7, workers=1, start=lambda: place[0])
    iterator, place[0] = iter(loader), 8
    first = next(iterator).key
    place[0] = 0
    assert len(loader) == 7
    assert [b.key for b in itertools.islice(loader, 3)][2] == first


def test_shapes_like_images_arrive_untouched(tiny, tmp_path):
    samples = reader(tiny.set(tmp_path, [4], size=(40, 40)), size_px=40, flip=0.0)
    for j in range(4):
        sample = samples.sample(j)
        stored = Image.open(io.BytesIO(tiny.sample(int(sample.key.split("-")[1]), size=(40, 40))["png"]))
        assert np.array_equal(sample.image, np.asarray(stored))
        assert sample.outline.sum() == tiny.hole[2] * tiny.hole[3]


@pytest.mark.parametrize("crop", [None, Crop(), Crop(1.0, 1.2, min_side_px=1)])
def test_the_outline_lies_on_the_object(tiny, tmp_path, crop):
    samples = reader(tiny.set(tmp_path, [12]), crop=crop)
    for j in range(12):
        sample = samples.sample(j)
        red = (sample.image[:, :, 0] > 200) & (sample.image[:, :, 1:].max(-1) < 60)
        assert sample.outline.sum() > 30
        assert (red & (sample.outline == 1)).sum() > 0.8 * sample.outline.sum()


def test_tasks_and_texts_keep_their_shares(tiny, tmp_path):
    samples = reader(tiny.set(tmp_path, [50, 50]), share=0.8)
    made = [samples.sample(j) for j in range(1000)]
    objects = [s for s in made if s.task == 0]
    assert 0.77 < len(objects) / 1000 < 0.83
    assert Counter(s.text for s in objects).keys() == {"block", "red block"}
    assert 0.45 < sum(s.text == "block" for s in objects) / len(objects) < 0.55
    rest = [s for s in made if s.task == 1]
    assert {(s.text, s.level, int(s.outline.min())) for s in rest} == {("a photo of a block", 5, 1)}


def test_sources_mix_by_weight(tiny, tmp_path):
    first = tiny.set(tmp_path / "a", [30])
    second = tiny.set(tmp_path / "b", [30], captions=("from the second",))
    samples = reader([first, second], weights=[3, 1])
    texts = Counter(samples.sample(j).text for j in range(1000))
    assert 100 < texts["from the second"] < 150 and 340 < texts["red block"] < 410


def test_delivered_and_counted_make_the_manifest(broken_set):
    ledger, made = SkipLedger(), []
    for batch in batches(TrainStream(reader(broken_set), 20), 20, workers=1):
        ledger.add(batch)
        ledger.check()
        made.append(batch)
    assert ledger.counts == {"bad_image": 4, "bad_mask": 4, "missing_key": 4, "absurd_size": 4, "truncated": 4}
    delivered = {key for batch in made for key in batch.key}
    skipped = {skip.name.split("/")[1] for batch in made for skip in batch.skipped}
    assert not delivered & skipped and len(skipped) == 20
    assert delivered | skipped == {f"tiny-{n:06d}" for n in range(400)}
    assert sum(len(batch) for batch in made) == 400


FIELDS = {
    "": ("schema_version", "key", "width", "height", "caption", "captions", "origin", "instances"),
    "instance": ("id", "label", "captions", "box", "area", "crowd", "mask"), "mask": ("size", "counts"),
}
SWAPS = [(part, name, value) for part, names in FIELDS.items() for name in names for value in (None, 5, "x", [], {})]


def swapped(number, sample):
    """Every second sample has one field of its json swapped for a value of another type."""
    if number % 2:
        return sample
    part, name, value = SWAPS[number // 2]
    record = sample["json"]
    thing = record["instances"][0]
    {"": record, "instance": thing, "mask": thing["mask"]}[part][name] = value
    return sample


@pytest.mark.parametrize("crop", [None, Crop(1.0, 1.2, min_side_px=1)])
def test_whatever_the_json_holds_the_run_goes_on(tiny, tmp_path, crop):
    samples = reader(tiny.set(tmp_path, [2 * len(SWAPS)], spoil=swapped), share=0.5, crop=crop)
    allowed = {"block", "red block", "a photo of a block", "x"}  # "x" where a label or a caption is that string
    reasons = set()
    for j in range(4 * len(SWAPS)):
        sample = samples.sample(j)
        assert sample.text in allowed and sample.key.startswith("tiny-") and sample.outline.any()
        if sample.text == "x":
            assert SWAPS[int(sample.key[5:]) // 2][1] in ("label", "caption")
        reasons |= {sample.skipped.reason} if sample.skipped else set()
    assert {"bad_schema", "bad_mask", "absurd_size"} <= reasons


def test_a_task_that_raises_is_told_of_in_the_end(tiny, tmp_path):
    class Wrong(TextToImageTask):
        def plan(self, record, rng):
            raise KeyError("colour")

    samples = Samples([ShardStore(tiny.set(tmp_path, [3]))], [1.0], [Wrong(CONTEXT)], [1.0], Look(24), 0)
    with pytest.raises(ValueError, match=r"\(bad_schema: KeyError\('colour'\)\)"):
        samples.sample(0)


def read_rank(samples, rank, queue):
    torch.set_num_threads(1)
    made = batches(TrainStream(samples, 10, rank, 2), 20, workers=1)
    queue.put((rank, [k for b in made for k in b.key], [tuple(s) for b in made for s in b.skipped]))


def test_two_ranks_with_broken_shards_neither_hang_nor_lose_a_sample(broken_set):
    context = multiprocessing.get_context("fork")
    queue, samples = context.Queue(), reader(broken_set)
    ranks = [context.Process(target=read_rank, args=(samples, rank, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    parts = [queue.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert [len(keys) for _, keys, _ in parts] == [200, 200]
    names = Counter(name for _, _, skipped in parts for _, name in skipped)
    assert len(names) == 20 and max(names.values()) == 1
    assert {k for _, keys, _ in parts for k in keys} | {n.split("/")[1] for n in names} == {
        f"tiny-{n:06d}" for n in range(400)
    }


def test_a_set_that_no_task_can_use_is_one_clear_line(tiny, tmp_path):
    samples = reader(tiny.set(tmp_path, [5], caption=""), share=0.0)
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^data: 64 samples in a row cannot .*\(no_caption\).*$"):
            batches(TrainStream(samples, 2), 1, workers)


def test_an_image_without_an_object_is_replaced_and_named(tiny, tmp_path):
    def emptied(number, sample):
        return {**sample, "json": {**sample["json"], "instances": []}} if number == 3 else sample

    made = batches(TrainStream(reader(tiny.set(tmp_path, [10], spoil=emptied)), 10), 1)[0]
    assert made.skipped == [("no_object", "shard-000000.tar/tiny-000003")] and len(made) == 10


def test_a_box_that_leads_astray_does_not_lose_the_object(tiny, tmp_path):
    def misled(number, sample):
        instance = {**sample["json"]["instances"][0], "box": [44, 36, 2, 2]}
        return {**sample, "json": {**sample["json"], "instances": [instance]}}

    samples = reader(tiny.set(tmp_path, [6], spoil=misled), crop=Crop(1.0, 1.5, min_side_px=1), size_px=8)
    assert all(samples.sample(j).outline.any() for j in range(6))


def test_held_out_samples_are_the_same_however_many_ranks_share_them(tiny, tmp_path):
    samples = reader(tiny.set(tmp_path, [30, 30]))
    wanted = [samples.sample(j).key for j in range(50)]
    for world, size in ((1, 16), (2, 16), (3, 8), (7, 4)):
        ranks = []
        for rank in range(world):
            stream = FixedStream(samples, 50, size, rank, world)
            loader = ShardLoader(stream, lambda s=stream: s.num_batches, workers=rank % 2)
            ranks.append(list(loader))
            assert len(ranks[-1]) == len(loader) == len(ranks[0])
            assert [b.key for b in loader] == [b.key for b in ranks[-1]]
        sizes = [len(b) for step in zip(*ranks, strict=True) for b in step]
        assert [k for step in zip(*ranks, strict=True) for b in step for k in b.key] == wanted
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match="2 validation samples cannot be split over 3 ranks"):
        FixedStream(samples, 2, 4, 0, 3)


def test_remote_shards_are_fetched_ahead(tiny, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(tiny.set(tmp_path / "set", [4] * 4), "/ahead", recursive=True)
    store = ShardStore("memory://ahead", cache_dir=tmp_path / "cache")
    samples = Samples([store], [1.0], [ObjectTask(CONTEXT)], [1.0], Look(24), 0, 1)
    busy = store._ahead = threading.Thread(target=time.sleep, args=(0.2,))
    busy.start()
    samples.sample(0)
    assert store._ahead is busy  # the block is asked for again when that is done
    busy.join()
    samples.sample(1)
    store._ahead.join()
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    memory.rm("/ahead", recursive=True)


def test_fewer_shards_than_readers_is_one_clear_line():
    check_enough_shards("data.train", 4, 2, 2)
    check_enough_shards("data.train", 1, 1, 0)
    with pytest.raises(ValueError, match="3 shards are fewer than 2 ranks x 2 workers = 4"):
        check_enough_shards("data.train", 3, 2, 2)
