"""Captions of objects: the file, joining it to a build, and a captioner whose run may stop at any byte."""

import json
import sys

import pytest

from sb.data.captions import Captions, caption_shards, load_captioner
from sb.data.schema import Instance, Record
from sb.data.verify import read_samples
from sb.data.write import build_shards

SHAPES = {"name": "shapes", "num_images": 12, "size_px": 32}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    build_shards(SHAPES, folder, images_per_shard=5)
    return str(folder)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def sizes(pictures):
    return [f"{picture.width} by\n {picture.height}" for picture in pictures]


def test_captions_join_by_key_or_image_id(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text('{"image_id": "k", "instance_id": "1", "text": "red cup"}\n\n'
                    '{"image_id": 250, "instance_id": 1, "text": "a cup"}\n'
                    '{"image_id": "k", "instance_id": "1", "text": "red cup"}\n'
                    '{"image_id": "other", "instance_id": "2", "text": "no"}\n')
    things = [Instance(name, "cup", [0, 0, 1, 1], 1, {}) for name in "12"]
    record = Record("k", b"", "jpg", 4, 4, things, origin={"image_id": "250"})
    assert Captions(file).add_to(record) == 1
    assert [thing.captions for thing in things] == [["red cup", "a cup"], []]


@pytest.mark.parametrize("text, message", [
    ('{"image_id": 1', "line 2 is not valid JSON"),
    ('{"image_id": 1, "text": "a"}', "line 2 must be an object with image_id, instance_id, text"),
    ('{"image_id": 1, "instance_id": 2, "text": " "}', "line 2 has an empty text"),
])
def test_a_bad_line_is_named(tmp_path, text, message):
    (tmp_path / "c.jsonl").write_text('{"image_id": 1, "instance_id": 1, "text": "a"}\n' + text)
    with pytest.raises(ValueError, match=message):
        Captions(tmp_path / "c.jsonl")


def test_captions_change_a_build(shards, tmp_path):
    out = tmp_path / "c.jsonl"
    num = caption_shards(shards, sizes, out, min_area=0)
    manifest = build_shards(SHAPES, tmp_path / "told", images_per_shard=5, captions=str(out))
    assert manifest["captions"]["file"] == "c.jsonl"
    assert num == manifest["instances"] == manifest["instances_with_caption"]
    for key, members in read_samples(str(tmp_path / "told")):
        for thing in json.loads(members["json"])["instances"]:
            assert " by " in thing["captions"][-1] and len(thing["captions"]) == 2
    (tmp_path / "none.jsonl").write_text('{"image_id": "x", "instance_id": "1", "text": "a"}\n')
    with pytest.raises(ValueError, match="none of the .* instances is named in none.jsonl"):
        build_shards(SHAPES, tmp_path / "none", captions=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="no captions file /nowhere.jsonl"):
        build_shards(SHAPES, tmp_path / "none", captions="/nowhere.jsonl")


def test_crops_follow_box_and_margin(shards, tmp_path):
    def boxes():
        for key, members in read_samples(shards):
            for thing in json.loads(members["json"])["instances"]:
                yield thing["box"][2:], thing["area"]

    caption_shards(shards, sizes, tmp_path / "c.jsonl", margin=0, min_area=0)
    told = [tuple(int(n) for n in line["text"].split(" by ")) for line in lines(tmp_path / "c.jsonl")]
    assert all(abs(w - box[0]) <= 1 and abs(h - box[1]) <= 1 for (w, h), (box, _) in zip(told, boxes()))
    large = caption_shards(shards, sizes, tmp_path / "large.jsonl", min_area=0.1)
    assert large == sum(area >= 0.1 * 32 * 32 for _, area in boxes()) < len(told)


def test_a_broken_sample_is_left_out_with_a_warning(tiny, tmp_path, caplog):
    def spoil(number, sample):
        if number == 1:
            sample["json"].pop("instances")
        elif number == 2:
            sample["png"] = b"no picture"

    folder = tiny.set(tmp_path / "set", [4], spoil=spoil)
    assert caption_shards(folder, sizes, tmp_path / "c.jsonl", min_area=0) == 2
    assert [line["image_id"] for line in lines(tmp_path / "c.jsonl")] == ["tiny-000000", "tiny-000003"]
    assert [record.message.split()[0] for record in caplog.records] == ["tiny-000001", "tiny-000002"]


@pytest.mark.parametrize("wrong", [{"margin": -0.6}, {"batch_size": 0}, {"min_area": 2.0}])
def test_wrong_settings_are_not_taken_for_broken_shards(shards, tmp_path, wrong):
    with pytest.raises(ValueError, match="captions: needs margin >= 0"):
        caption_shards(shards, sizes, tmp_path / "c.jsonl", **wrong)


def test_a_stopped_run_goes_on_with_whole_lines(shards, tmp_path):
    calls = []

    def stops(pictures):
        calls.append(len(pictures))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sizes(pictures)

    whole, out = tmp_path / "whole.jsonl", tmp_path / "c.jsonl"
    total = caption_shards(shards, sizes, whole, batch_size=4, min_area=0)
    with pytest.raises(KeyboardInterrupt):
        caption_shards(shards, stops, out, batch_size=4, min_area=0)
    with open(out, "ab") as file:
        file.write(b'{"image_id": "half')
    assert caption_shards(shards, sizes, out, batch_size=4, min_area=0) == total - 8
    assert out.read_bytes() == whole.read_bytes()
    assert caption_shards(shards, sizes, out, batch_size=4, min_area=0) == 0
    with pytest.raises(ValueError, match="gave 1 texts for 4 crops"):
        caption_shards(shards, lambda pictures: ["one"], tmp_path / "few.jsonl", batch_size=4, min_area=0)


def test_captioners(tmp_path, monkeypatch):
    (tmp_path / "words.py").write_text("def describe(pictures):\n    return ['a thing'] * len(pictures)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_captioner("words:describe")([None, None]) == ["a thing"] * 2
    for wrong, message in (("words", "neither a folder nor module:function"), ("words:no", "cannot be imported")):
        with pytest.raises(ValueError, match=message):
            load_captioner(wrong)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs transformers"):
        load_captioner(str(tmp_path))
