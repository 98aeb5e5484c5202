"""Building shards: webdataset reads them, counts add up, a stopped build ends with the same bytes, errors are plain."""

import errno
import hashlib
import importlib.util
import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from sb.data import pack
from sb.data.coco import encode_mask, instance_of
from sb.data.schema import Record
from sb.data.shards import ShardStore
from sb.data.verify import check_shards
from sb.data.write import build_shards

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"name": "shapes", "num_images": 25, "seed": 3, "size_px": 32}
# a source whose process is killed, once, at one item: what a machine that runs out of memory does
DEADLY = """
import os, pathlib, signal
from sb.data.shapes import ShapesSource

class Deadly(ShapesSource):
    def __init__(self, flag):
        super().__init__(25, 3, 32)
        self.flag = pathlib.Path(flag)
    def record(self, index):
        if index == 17 and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().record(index)
"""


class Pictures:
    """A source of grey pictures, changed by the test."""

    def __init__(self, num=6, split="train"):
        self.split = split
        mask = np.zeros((16, 16), np.uint8)
        mask[2:9, 3:8] = 1
        self.records = [
            Record(f"p-{split}-{i}", png(40 * i), "jpg", 16, 16, [instance_of("1", "cup", encode_mask(mask))],
                   origin={"split": split, "dataset": "p", "image_id": str(i), "licence": f"L{i % 2}"})
            for i in range(num)
        ]

    def __len__(self):
        return len(self.records)

    def record(self, index):
        found = self.records[index]
        if isinstance(found, BaseException):
            raise found
        return found

    def describe(self):
        return {"name": "pictures", "split": self.split, "num": len(self.records)}


def png(grey, size=(16, 16), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, (grey % 256,) * 3).save(file, format=kind)
    return file.getvalue()


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def samples(folder):
    paths = sorted(str(path) for path in Path(folder).glob("*.tar"))
    return list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))


def test_webdataset_reads_what_the_manifest_counts(tmp_path):
    manifest = build_shards(SHAPES, tmp_path / "s", images_per_shard=10)
    found = samples(tmp_path / "s")
    bodies = [json.loads(sample["json"]) for sample in found]
    assert [sample["__key__"] for sample in found] == [body["key"] for body in bodies]
    assert len({body["key"] for body in bodies}) == len(found) == manifest["images"] == 25
    assert sum(len(body["instances"]) for body in bodies) == manifest["instances"] == sum(manifest["labels"].values())
    assert [shard["samples"] for shard in manifest["shards"]] == [10, 10, 5]
    assert manifest == json.loads((tmp_path / "s/manifest.json").read_text())
    assert manifest["captions"] == "source" and manifest["source"]["name"] == "shapes"
    assert manifest["instances_with_caption"] == manifest["instances"]
    for shard in manifest["shards"]:
        content = (tmp_path / "s" / shard["file"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (shard["sha256"], shard["bytes"])
    assert sorted(contents(tmp_path / "s")) == sorted(
        ["manifest.json", *(f"shard-00000{n}.{end}" for n in range(3) for end in ("tar", "index.json"))])


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deadly.py").write_text(DEADLY)
    import deadly

    source = deadly.Deadly(str(tmp_path / "flag"))
    with pytest.raises(ValueError, match="a worker process died .* run again to go on"):
        build_shards(source, tmp_path / "s", images_per_shard=5, workers=2)
    assert not (tmp_path / "s/manifest.json").exists()
    assert check_shards(str(tmp_path / "s")).problems == [f"{tmp_path}/s: the build is not finished; run it again"]
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.tar")}
    assert 0 < len(before) < 5
    build_shards(source, tmp_path / "s", images_per_shard=5, workers=2)
    kept = [name for name, time in before.items() if (tmp_path / "s" / name).stat().st_mtime_ns == time]
    assert len(kept) >= len(before) - 1  # one may have been renamed before its counts were written
    build_shards(source, tmp_path / "whole", images_per_shard=5)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_finished_other_and_overwritten_builds(tmp_path, caplog):
    caplog.set_level("INFO")
    first = build_shards(SHAPES, tmp_path, images_per_shard=10)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert build_shards(SHAPES, tmp_path, images_per_shard=10) == first and "already complete" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"a finished build that differs in source.seed \(3 there, 4 now\)"):
        build_shards({**SHAPES, "seed": 4}, tmp_path, images_per_shard=10)
    for name in ("notes.txt", "texts.npy", "texts.json"):
        (tmp_path / name).write_text("mine")
    build_shards({**SHAPES, "seed": 4}, tmp_path, images_per_shard=20, overwrite=True)
    assert len(samples(tmp_path)) == 25 and (tmp_path / "notes.txt").exists()
    assert not list(tmp_path.glob("texts.*"))
    assert len(list(tmp_path.glob("shard-*"))) == 4
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(ValueError, match="shard-000001.tar is missing"):
        build_shards({**SHAPES, "seed": 4}, tmp_path, images_per_shard=20)


def test_an_unfinished_build_of_another_source_is_refused(tmp_path):
    source = Pictures()
    source.records[4] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        build_shards(source, tmp_path, images_per_shard=2)
    with pytest.raises(ValueError, match=r"an unfinished build that differs in source.num \(6 there, 7 now\)"):
        build_shards(Pictures(7), tmp_path, images_per_shard=2)
    assert build_shards(Pictures(), tmp_path, images_per_shard=2)["images"] == 6
    with pytest.raises(ValueError, match="holds tars that this tool did not write"):
        (tmp_path / "manifest.json").unlink()
        build_shards(Pictures(), tmp_path)


def test_left_out_items_are_counted_and_named(tmp_path):
    source = Pictures(9)
    source.records[0].image = b"no image"
    source.records[1].image = png(1)[:-40]
    source.records[2].width = 17
    source.records[3].image = png(1, kind="BMP")
    source.records[4] = FileNotFoundError(errno.ENOENT, "no", "gone.jpg")
    source.records[5] = None
    source.records[6] = ValueError("odd")
    source.records[7].origin["skipped"] = [["empty_mask", "12"]]
    manifest = build_shards(source, tmp_path, images_per_shard=2)
    assert manifest["skipped"] == {"unreadable_image": 2, "bad_item": 1, "filtered": 1, "image_format": 1,
                                   "image_of_another_size": 1, "instance_empty_mask": 1, "missing_file": 1}
    assert manifest["skipped_named"]["missing_file"] == ["gone.jpg"]
    assert manifest["images"] == 2 and [shard["file"] for shard in manifest["shards"]] == [
        "shard-000003.tar", "shard-000004.tar"]
    assert [sample["__key__"] for sample in samples(tmp_path)] == ["p-train-7", "p-train-8"]
    assert all("png" in sample for sample in samples(tmp_path))  # the true format, whatever the name said
    assert not check_shards(str(tmp_path)).problems


@pytest.mark.parametrize("error", [Image.DecompressionBombError("huge"), SyntaxError("odd"), struct.error("short")])
def test_whatever_pillow_raises_is_one_bad_item(tmp_path, error):
    source = Pictures(3)
    source.records[1] = error
    assert build_shards(source, tmp_path)["skipped"] == {"bad_item": 1}


def test_the_manifest_the_log_and_the_loader_agree_on_captions(tmp_path, caplog):
    caplog.set_level("INFO")
    bare = build_shards(Pictures(), tmp_path / "bare")
    assert (bare["captions"], bare["instances_with_caption"]) == ("label-only", 0)
    assert "no object has a caption" in caplog.text and ShardStore(str(tmp_path / "bare")).label_only
    caplog.clear()
    own = Pictures()
    own.records[2].instances[0].captions = ["a red cup"]
    told = build_shards(own, tmp_path / "own")
    assert (told["captions"], told["instances_with_caption"]) == ("source", 1)
    assert "caption" not in caplog.text and not ShardStore(str(tmp_path / "own")).label_only
    assert build_shards(own, tmp_path / "own") == told  # the same build: nothing to do
    lines = tmp_path / "captions.jsonl"
    lines.write_text('{"image_id": "9", "instance_id": "1", "text": "a cup"}')
    with pytest.raises(ValueError, match="none of the 6 instances is named"):
        build_shards(own, tmp_path / "none", captions=str(lines))
    lines.write_text('{"image_id": "1", "instance_id": "1", "text": "a cup"}')
    both = build_shards(own, tmp_path / "both", captions=str(lines))
    assert both["captions"]["file"] == "captions.jsonl" and both["instances_with_caption"] == 2


def test_a_failing_disk_stops_the_build(tmp_path):
    source = Pictures()
    source.records[3] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        build_shards(source, tmp_path)
    with pytest.raises(ValueError, match="nothing is left of 1 images: 1 missing_file"):
        one = Pictures(1)
        one.records[0] = FileNotFoundError(errno.ENOENT, "no", "a.jpg")
        build_shards(one, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    class Full(pack.TarWriter):
        def write(self, sample):
            if sample["__key__"].endswith("-3"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(sample)

    monkeypatch.setattr(pack, "TarWriter", Full)
    with pytest.raises(OSError, match="no space left for .*shard-000001.tar; free some and run again to go on"):
        build_shards(Pictures(), tmp_path / "s", images_per_shard=2)
    assert sorted(path.name for path in (tmp_path / "s").rglob("*") if path.is_file()) == [
        "config.json", "shard-000000.index.json", "shard-000000.tar", "shard-000000.tar.json"]
    monkeypatch.undo()
    build_shards(Pictures(), tmp_path / "s", images_per_shard=2)
    build_shards(Pictures(), tmp_path / "whole", images_per_shard=2)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_splits_are_never_mixed(tmp_path):
    source = Pictures()
    source.records[5].origin["split"] = "val"
    with pytest.raises(ValueError, match="p-train-5 is of split 'val' and this build of 'train'"):
        build_shards(source, tmp_path / "mixed")
    build_shards(Pictures(2, "val"), tmp_path / "val")
    train = Pictures(6)
    train.records[4].image = train.records[1].image  # a copy under another name is found by its content
    manifest = build_shards(train, tmp_path / "train", exclude=[str(tmp_path / "val")])
    assert manifest["skipped"] == {"excluded": 3}
    assert manifest["skipped_named"]["excluded"] == ["p-train-0", "p-train-1", "p-train-4"]


def test_a_set_to_exclude_that_cannot_be_read_is_an_error(tiny, tmp_path):
    folder = tiny.set(tmp_path / "set", [3], spoil=lambda number, sample: sample["json"].pop("origin") and None)
    with pytest.raises(ValueError, match=r"set tiny-000000: no origin in its json .* run tools/check_shards.py"):
        build_shards({"name": "shapes", "num_images": 2}, tmp_path / "out", exclude=[folder])
    assert not (tmp_path / "out").exists()


def test_the_licence_filter(tmp_path):
    manifest = build_shards(Pictures(), tmp_path, licences=["L1", "other"])
    assert manifest["licences"] == {"L1": 3} and manifest["skipped"] == {"licence": 3}


def test_keys_are_unique_and_fit_a_tar(tmp_path):
    source = Pictures()
    source.records[5].key = "p-train-0"
    with pytest.raises(ValueError, match="the key 'p-train-0' twice"):
        build_shards(source, tmp_path / "a", images_per_shard=3)
    source.records[5].key = "p.5"
    with pytest.raises(ValueError, match="key 'p.5' must be"):
        build_shards(source, tmp_path / "b")


def tool(name, *words):
    """Run a tool's main with these arguments; returns its exit code."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words, "--num-workers", "1"])
        return module.main()


def test_the_tools(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    out, sheet = str(tmp_path / "s"), tmp_path / "sheet.png"
    words = ["--source", "shapes", "--out", out, "num_images=6", "size_px=32"]
    assert tool("build_shards", *words) == 0 and "6 images" in caplog.text
    capsys.readouterr()
    assert tool("build_shards", *words, "sede=3") == 2
    assert capsys.readouterr().err == "error: source 'shapes' has no key 'sede'; did you mean 'seed'?\n"
    assert tool("build_shards", "--source", "shapes", "--out", out, "num_images") == 2
    assert capsys.readouterr().err == "error: option 'num_images' must read key=value\n"
    assert tool("build_shards", "--source", "folder", "--out", out, "root=[photos") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: 'root=[photos' is not valid YAML") and message.count("\n") == 1
    for source, option in (("shapes", "num_images=abc"), ("folder", "root=2017")):
        assert tool("build_shards", "--source", source, "--out", out, option) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: source '{source}': ") and message.count("\n") == 1
    assert tool("check_shards", out, "--sheet", str(sheet), "--sheet-images", "0") == 2
    assert capsys.readouterr().err.endswith("error: a sheet needs at least one picture, not 0\n")
    assert tool("check_shards", out, "--sheet", str(sheet)) == 0
    assert "problems   0" in capsys.readouterr().out
    with Image.open(sheet) as page:
        assert page.width > 1500
    content = bytearray((tmp_path / "s/shard-000000.tar").read_bytes())
    content[700] ^= 255
    (tmp_path / "s/shard-000000.tar").write_bytes(content)
    assert tool("check_shards", out) == 1
    assert "broken: shard-000000.tar: its sha256 is not" in capsys.readouterr().out
    assert tool("check_shards", str(tmp_path / "nowhere")) == 2
