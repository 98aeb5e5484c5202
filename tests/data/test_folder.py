"""A plain folder: images, masks, labels and captions find each other; what is amiss is named."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sb.data.folder import FolderSource, slug


def picture(path, size=(32, 24), **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return pixels


def mask(path, box, size=(32, 24), value=255):
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[box[1]:box[1] + box[3], box[0]:box[0] + box[2]] = value
    Image.fromarray(pixels).save(path)


def only(source):
    assert len(source) == 1
    return source.record(0)


def test_image_masks_labels_and_captions(tmp_path):
    picture(tmp_path / "kitchen.v2.jpg")
    (tmp_path / "kitchen.v2.txt").write_text("a kitchen\n\nbright room\n")
    mask(tmp_path / "kitchen.v2.left-cup.mask.png", (3, 4, 5, 6))
    (tmp_path / "kitchen.v2.left-cup.txt").write_text("cup\na red cup\nsmall cup\n")
    mask(tmp_path / "kitchen.v2.2.mask.png", (10, 10, 8, 8), value=1)
    (tmp_path / "kitchen.v2.2.txt").write_text("bowl\n")
    record = only(FolderSource(str(tmp_path), split="val", title="mine", licence="CC BY 4.0"))
    assert record.image == (tmp_path / "kitchen.v2.jpg").read_bytes()
    assert (record.width, record.height, record.extension) == (32, 24, "jpg")
    assert (record.caption, record.captions) == ("a kitchen", ["a kitchen", "bright room"])
    bowl, cup = record.instances
    assert (cup.id, cup.label, cup.captions, cup.box, cup.area) == (
        "left-cup", "cup", ["a red cup", "small cup"], [3, 4, 5, 6], 30)
    assert (bowl.label, bowl.captions, bowl.box) == ("bowl", [], [10, 10, 8, 8])
    decoded = coco_mask.decode({"size": cup.mask["size"], "counts": cup.mask["counts"].encode()})
    assert decoded.shape == (24, 32) and decoded[4:10, 3:8].all() and decoded.sum() == 30
    assert record.key == f"mine-val-{slug('kitchen.v2')}" and "." not in record.key
    assert record.origin["licence"] == "CC BY 4.0" and record.origin["split"] == "val"


def test_a_mask_belongs_to_the_longest_name(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "a.b.jpg")
    mask(tmp_path / "a.b.c.mask.png", (0, 0, 4, 4))
    (tmp_path / "a.b.c.txt").write_text("cup")
    records = [FolderSource(str(tmp_path)).record(i) for i in range(2)]
    assert {r.origin["image_id"]: len(r.instances) for r in records} == {"a.jpg": 0, "a.b.jpg": 1}


def test_what_is_amiss_is_named(tmp_path):
    picture(tmp_path / "sub/a.png")
    for name in ("empty", "large", "silent", "broken"):
        (tmp_path / f"sub/a.{name}.txt").write_text("cup")
    mask(tmp_path / "sub/a.empty.mask.png", (0, 0, 0, 0))
    mask(tmp_path / "sub/a.large.mask.png", (0, 0, 4, 4), size=(33, 24))
    mask(tmp_path / "sub/a.silent.mask.png", (0, 0, 4, 4))
    (tmp_path / "sub/a.silent.txt").unlink()
    (tmp_path / "sub/a.broken.mask.png").write_bytes(b"no picture")
    record = only(FolderSource(str(tmp_path)))
    assert not record.instances
    assert dict((name, reason) for reason, name in record.origin["skipped"]) == {
        "empty": "empty_mask", "large": "mask_of_another_size", "silent": "missing_label", "broken": "unreadable_mask"}


@pytest.mark.parametrize("error", [Image.DecompressionBombError("huge"), SyntaxError("odd"), struct.error("short")])
def test_whatever_pillow_raises_for_one_mask_leaves_the_image(tmp_path, monkeypatch, error):
    def broken(path):
        raise error

    picture(tmp_path / "a.png")
    mask(tmp_path / "a.1.mask.png", (0, 0, 4, 4))
    (tmp_path / "a.1.txt").write_text("cup")
    monkeypatch.setattr("sb.data.folder.read_mask", broken)
    assert only(FolderSource(str(tmp_path))).origin["skipped"] == [["unreadable_mask", "1"]]


def test_a_turned_photo_is_stored_upright_without_loss(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.png", exif=exif)
    record = only(FolderSource(str(tmp_path)))
    with Image.open(io.BytesIO(record.image)) as stored, Image.open(tmp_path / "a.png") as original:
        assert stored.size == (record.width, record.height) == (24, 32) and stored.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(stored), np.rot90(np.asarray(original), -1))


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        FolderSource(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no image"):
        FolderSource(str(tmp_path))
    picture(tmp_path / "a.jpg")
    mask(tmp_path / "b.1.mask.png", (0, 0, 1, 1))
    with pytest.raises(ValueError, match="b.1.mask.png belongs to no image"):
        FolderSource(str(tmp_path))
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="share one name"):
        FolderSource(str(tmp_path))


def test_slugs_stay_apart():
    assert slug("plain-Name_1") == "plain-Name_1"
    names = ["a b", "a.b", "a/b", "a_b", "ä", "x" * 100, "x" * 101]
    assert len({slug(name) for name in names}) == len(names)
    assert all(slug(name).isascii() and "." not in slug(name) and len(slug(name)) <= 57 for name in names)
