"""Composites: a function of (seed, index), split from split, never on the photo of its own, the truth in the shard."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sb.data import composites
from sb.data.composites import CompositesSource, read_cutouts
from sb.data.decode import decode_mask
from sb.data.shards import ShardStore
from sb.data.verify import check_shards, read_samples
from sb.data.write import build_shards
from sb.registry import build
from tests.composites_world import write_cutouts, write_photos

REAL = Path(__file__).resolve().parents[2].parent / "shared/data/cutouts"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return {"cutouts": str(write_cutouts(root / "cutouts")), "photos": write_photos(root / "photos", range(4)),
            "size_px": 32}


def pixels(body):
    return np.asarray(Image.open(io.BytesIO(body)))


def test_a_scene_is_a_function_of_seed_and_index(world):
    source = build("source", {"name": "composites", **world, "num_images": 8, "seed": 1})
    again = pickle.loads(pickle.dumps(CompositesSource(**world, num_images=8, seed=1)))
    assert [source.record(i) for i in range(8)] == [again.record(7 - i) for i in range(8)][::-1]
    scenes = [source.record(i).image for i in range(8)]
    scenes += [CompositesSource(**world, num_images=8, seed=2).record(i).image for i in range(8)]
    assert len(set(scenes)) == 16
    longer = CompositesSource(**world, num_images=9, seed=1)
    assert longer.record(3) == source.record(3)  # a larger set begins with the smaller one


def test_the_picture_is_the_truth_but_for_the_object(world, monkeypatch):
    monkeypatch.setattr(composites, "SHADOW", (0.0, 0.0))
    source = CompositesSource(**world, num_images=12)
    for record in map(source.record, range(12)):
        picture, truth = pixels(record.image), pixels(record.truth)
        outline = decode_mask(record.instances[0].mask, 32, 32)
        near = np.asarray(Image.fromarray(outline * np.uint8(255)).filter(ImageFilter.MaxFilter(5))) > 0
        assert outline.any() and (picture == truth)[~near].all()
        assert (abs(picture.astype(int) - truth)[outline > 0].max(-1) > 8).mean() > 0.9


def test_labels_captions_and_origin(world):
    source = CompositesSource(**world, num_images=30)
    records = [source.record(i) for i in range(30)]
    told = {(r.instances[0].label, *r.instances[0].captions) for r in records}
    assert told == {("plum", "dark plum"), ("lime",)}
    first = records[0]
    assert first.caption.startswith("noise ") and first.caption.endswith(" in front") and "., " not in first.caption
    assert first.origin["photo"].startswith("made image ") and first.origin["licence"] == "ours + CC0"
    chosen = CompositesSource(**world, num_images=6, classes=["citrus"])
    assert {chosen.record(i).instances[0].label for i in range(6)} == {"citrus"}


def test_splits_are_never_mixed(world, tmp_path):
    photos = write_photos(tmp_path / "val", range(9, 12), "val")
    for split in ("train", "val"):
        source = CompositesSource(**{**world, "photos": photos if split == "val" else world["photos"]},
                                  num_images=20, split=split)
        origins = [source.record(i).origin for i in range(20)]
        assert all(of["cutout"].startswith(f"{split}/") and of["split"] == split for of in origins)
        assert {int(of["photo"].split()[-1]) for of in origins} <= set(range(4) if split == "train" else range(9, 12))
    for address in (photos, [world["photos"], photos]):
        with pytest.raises(ValueError, match="made-val-9 is of split 'val', these composites of 'train'"):
            CompositesSource(**{**world, "photos": address}, num_images=1)


def test_no_cutout_comes_on_its_own_photo(world, tmp_path):
    cutouts = str(write_cutouts(tmp_path / "own", source="made image 1 ann 7"))
    source = CompositesSource(**{**world, "cutouts": cutouts}, num_images=60)
    assert {source.record(i).origin["photo"] for i in range(60)} == {f"made image {n}" for n in (0, 2, 3)}
    alone = write_photos(tmp_path / "one", [1])
    assert CompositesSource(cutouts, alone, 4, size_px=32).record(0) is None
    other = write_photos(tmp_path / "other", [11])  # 1 is no part of 11
    assert CompositesSource(cutouts, other, 4, size_px=32).record(0) is not None


def test_shards_carry_the_truth_and_are_sound(world, tmp_path):
    source = CompositesSource(**world, num_images=7)
    manifest = build_shards(source, tmp_path / "set", images_per_shard=4)
    assert manifest["images"] == 7 and not check_shards(str(tmp_path / "set")).problems
    store = ShardStore(str(tmp_path / "set"))
    for number in range(7):
        raw, record = store.read(number // 4, number % 4, truth=True), source.record(number)
        assert (raw.truth, raw.image) == (record.truth, record.image) and "truth" not in json.loads(raw.record)
        assert store.read(number // 4, number % 4).truth is None  # nobody pays for what is not asked for
    _, members = next(read_samples(str(tmp_path / "set")))
    assert sorted(members) == ["json", "png", "truth.png"]
    plain = build_shards({"name": "shapes", "num_images": 1, "size_px": 32}, tmp_path / "plain")
    assert plain["images"] == 1 and ShardStore(str(tmp_path / "plain")).read(0, 0, truth=True).truth is None


@pytest.mark.parametrize("change, message", [
    ({"cutouts": "nowhere"}, "no nowhere/cutouts.json"),
    ({"classes": ["plum", "pear"]}, "no cut-out of split 'train' and class pear"),
    ({"split": "test"}, "no cut-out of split 'test'"),
    ({"num_images": 0}, "num_images >= 1"), ({"size_px": 8}, "size_px >= 16"), ({"min_share": 0.8}, "not 1, 32, 0.8"),
])
def test_what_cannot_be_composed_is_told(world, change, message):
    with pytest.raises(ValueError, match=message):
        CompositesSource(**{**world, "num_images": 1, **change})


@pytest.mark.parametrize("text, message", [
    ("[", "not valid JSON"), ('{"a": 1}', "entry 0 is not one"), ('[{"file": "a.png"}]', "strings file, category"),
])
def test_a_list_that_is_none_is_told(tmp_path, text, message):
    (tmp_path / "cutouts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cutouts(tmp_path, "train")


@pytest.mark.skipif(not REAL.is_dir(), reason="real cut-outs are not here (../shared/data)")
def test_real_cutouts_by_class():
    fruits = ["apple", "cherry", "lemon", "mango", "raspberry", "tomato"]
    train, val = (read_cutouts(REAL, split, fruits) for split in ("train", "val"))
    assert list(train) == list(val) == fruits and sum(map(len, val.values())) >= 79
    assert not {c.file for some in train.values() for c in some} & {c.file for some in val.values() for c in some}
    assert "golden apple" in {cutout.caption for cutout in train["apple"]}
    assert len(read_cutouts(REAL, "train")) > 70
