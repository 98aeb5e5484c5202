"""Checking shards: sound ones pass, every way to break a sample is found and named."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

from sb.data.index import write_index
from sb.data.sheet import contact_sheet
from sb.data.verify import check_shards, read_samples
from sb.data.write import build_shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build_shards({"name": "shapes", "num_images": 8, "size_px": 32}, folder, images_per_shard=4)
    return str(folder)


def rewrite(whole, tmp_path, change, number=2):
    """The set as one tar without a manifest, with one sample changed; returns the tar's path."""
    tar = tmp_path / "one.tar"
    with open(tar, "wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for place, (key, members) in enumerate(read_samples(whole)):
            if place == number:
                body = json.loads(members["json"])
                key = change(body, members) or key
                if "json" in members:
                    members["json"] = json.dumps(body).encode()
            writer.write({"__key__": key, **members})
    write_index(tar)
    return str(tar)


def test_sound_shards_are_counted(whole):
    report = check_shards(whole)
    assert not report.problems
    assert (report.shards, report.samples, report.captioned_images) == (2, 8, 8)
    with open(f"{whole}/manifest.json") as file:
        manifest = json.load(file)
    assert report.instances == manifest["instances"] == sum(report.areas.values())
    assert dict(report.labels) == manifest["labels"]
    assert "problems" in report.table() and "8  (png 8)" in report.table()
    parallel = check_shards(whole, workers=2)
    assert vars(parallel) == vars(report)


def thing(body):
    return body["instances"][0]


def counts(text):
    return lambda body, members: thing(body)["mask"].update(counts=text)


def put(**fields):
    return lambda body, members: body.update(fields)


def put_thing(**fields):
    return lambda body, members: thing(body).update(fields)


def grey(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, format="PNG")
    return file.getvalue()


def small_image(body, members):
    members["png"] = grey(31, 32)


BREAKS = {
    "schema_version 2, not 1": put(schema_version=2),
    "json has no captions": lambda body, members: body.pop("captions") and None,
    "json says its key is other": put(key="other"),
    "image cannot be decoded": lambda body, members: members.update(png=members["png"][:-60]),
    "image is 31x32, json says 32x32": small_image,
    "truth.png is 31x32, json says 32x32": lambda body, members: members.update({"truth.png": grey(31, 32)}),
    "truth.png cannot be decoded": lambda body, members: members.update({"truth.png": grey(32, 32)[:-60]}),
    "not one image and a json": lambda body, members: members.pop("png") and None,
    "bad mask: its runs do not fill the image": counts("1"),
    "mask counts are not a string": counts([1024]),
    "mask size": lambda body, members: thing(body)["mask"].update(size=[32, 31]),
    "area 7, its mask has": put_thing(area=7),
    "box [0, 0, 1, 1], its mask's is": put_thing(box=[0, 0, 1, 1]),
    "has no label": put_thing(label=" "),
    "json has another type of instances": put(instances=None),
    "json has another type of origin": put(origin="coco"),
    "json has another type of captions": put(captions=[5]),
    "json has an instance that is no object": put(instances=[5]),
    "has another type of box": put_thing(box="box"),
    "box ['a', 'b', 'c', 'd'], its mask's": put_thing(box=list("abcd")),
    "box [nan, 0, 1, 1], its mask's": put_thing(box=[float("nan"), 0, 1, 1]),
    "has another type of mask, captions": put_thing(mask=None, captions="a dog"),
    "instance 0 occurs 2 times": lambda body, members: body["instances"].append(thing(body)),
}


@pytest.mark.parametrize("what", BREAKS)
def test_every_break_is_named(whole, tmp_path, what):
    report = check_shards(rewrite(whole, tmp_path, BREAKS[what]))
    assert len(report.problems) == 1 and what in report.problems[0], report.problems
    assert report.problems[0].startswith("one.tar shapes-train-0-32-00000002: ")
    assert report.samples == 8


def test_json_that_no_reader_gets_to_the_end_of_is_named(tiny, tmp_path):
    tiny.tar(tmp_path / "deep.tar", [{**tiny.sample(0), "json": b"[" * 100_000}])
    assert "cannot be checked: RecursionError" in check_shards(str(tmp_path / "deep.tar")).problems[0]


def test_a_key_that_occurs_twice(whole, tmp_path):
    report = check_shards(rewrite(whole, tmp_path, lambda body, members: body.update(
        key="shapes-train-0-32-00000007") or "shapes-train-0-32-00000007"))
    assert report.problems == ["shapes-train-0-32-00000007: the key occurs more than once"]


def test_index_truncation_and_strangers(whole, tmp_path):
    tar = rewrite(whole, tmp_path, lambda body, members: None)
    index = tmp_path / "one.index.json"
    stored = json.loads(index.read_text())
    assert not check_shards(tar).problems
    stored["samples"][3]["members"]["png"][0] += 512
    index.write_text(json.dumps(stored))
    assert check_shards(tar).problems == ["one.tar: its index is not that of this tar; delete the index file"]
    index.unlink()
    cut = stored["samples"][5]["members"]["json"][0] + 20
    os.truncate(tar, cut)
    assert check_shards(tar).problems[-1].endswith("00000005: the tar ends inside this sample")
    (tmp_path / "two.tar").write_bytes(b"x" * 2000)
    assert "is not a tar" in check_shards(str(tmp_path / "two.tar")).problems[0]
    with pytest.raises(ValueError, match="no tar at"):
        check_shards(str(tmp_path / "nowhere"))


def test_a_sheet_shows_masks_in_colour(whole, tmp_path):
    assert contact_sheet(whole, tmp_path / "sheet.png", num=5, columns=3) == 5
    with Image.open(tmp_path / "sheet.png") as page:
        pixels = np.asarray(page)
    assert pixels.shape[1] == 3 * 314 + 14 and pixels.shape[0] == 2 * 360 + 14
    assert (pixels[-300:, -300:] == pixels[0, 0]).all()  # the sixth place stays empty
