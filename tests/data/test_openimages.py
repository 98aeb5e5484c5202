"""OpenImages: names, boxes, groups and mask pictures of another size come together as published."""

import csv

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sb.data.openimages import OpenImagesSource

WIDTH, HEIGHT = 48, 32
MASK_HEADER = ["MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax",
               "PredictedIoU", "Clicks"]
BOX_HEADER = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsOccluded",
              "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside"]
CUP, CAT = "/m/02p5f1q", "/m/01yrx"


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def mask_row(image, label, box, corners=(0.25, 0.5, 0.25, 0.75)):
    name = f"{image}_{label.strip('/').replace('/', '')}_{box}.png"
    return [name, image, label, box, *(f"{c:.6f}" for c in corners), "0.9", ""]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks/b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("aa11", "bb22"):
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / f"images/{name}.jpg")
    rows = [mask_row("bb22", CAT, "cc01", (0, 1, 0, 1)), mask_row("aa11", CUP, "ab12"), mask_row("aa11", CAT, "ab13"),
            mask_row("aa11", "/m/unknown", "ab14"), mask_row("aa11", CAT, "ab15"), mask_row("aa11", CAT, "ab16"),
            mask_row("aa11", CAT, "ab17")]
    half = np.zeros((HEIGHT // 2, WIDTH // 2), bool)
    half[4:12, 6:12] = True  # half the image's size, and so exactly doubled
    Image.fromarray(half).save(tmp_path / "masks" / rows[1][0])
    Image.fromarray(np.kron(half, np.ones((4, 4), bool))).save(tmp_path / "masks" / rows[2][0])  # twice its size
    Image.fromarray(np.ones((HEIGHT, HEIGHT), bool)).save(tmp_path / "masks" / rows[5][0])
    Image.fromarray(np.zeros((HEIGHT, WIDTH), bool)).save(tmp_path / "masks" / rows[6][0])
    Image.fromarray(np.ones((HEIGHT, WIDTH), bool)).save(tmp_path / "masks/b" / rows[0][0])  # in its own folder
    boxes = [["bb22", "x", CAT, "1", "0", "1", "0", "1", "0", "0", "1", "0", "0"],
             ["aa11", "x", CUP, "1", "0.25", "0.5", "0.25", "0.75", "0", "0", "0", "0", "0"],
             ["zz99", "x", CUP, "1", "0.25", "0.5", "0.25", "0.75", "0", "0", "1", "0", "0"]]
    info = [["bb22", "train", "http://x/b.jpg", "http://cc/by"], ["aa11", "train", "http://x/a.jpg", "http://cc/by"]]
    return {
        "images": str(tmp_path / "images"), "mask_images": str(tmp_path / "masks"),
        "classes": write_csv(tmp_path / "classes.csv", [[CUP, "Coffee cup"], [CAT, "Cat"]]),
        "masks": write_csv(tmp_path / "masks.csv", [MASK_HEADER, *rows]),
        "boxes": write_csv(tmp_path / "boxes.csv", [BOX_HEADER, *boxes]),
        "info": write_csv(tmp_path / "info.csv", [["ImageID", "Subset", "OriginalURL", "License"], *info]),
    }


def test_masks_of_another_size_are_brought_to_the_image(files):
    source = OpenImagesSource(**files)
    record = source.record(0)
    assert len(source) == 2 and record.key == "openimages-train-aa11"
    assert (record.width, record.height) == (WIDTH, HEIGHT)
    for thing in record.instances:
        decoded = coco_mask.decode({"size": thing.mask["size"], "counts": thing.mask["counts"].encode()})
        assert decoded.shape == (HEIGHT, WIDTH) and decoded[8:24, 12:24].all() and decoded.sum() == 16 * 12
        assert thing.box == [12, 8, 12, 16] and thing.area == 16 * 12 and not thing.crowd
    assert [(thing.id, thing.label) for thing in record.instances] == [("ab12", "Coffee cup"), ("ab13", "Cat")]
    assert record.origin["licence"] == "http://cc/by" and record.origin["url"] == "http://x/a.jpg"


def test_what_cannot_be_used_is_named(files):
    skipped = dict((name[-8:-4], reason) for reason, name in OpenImagesSource(**files).record(0).origin["skipped"])
    assert skipped == {"ab14": "unknown_class", "ab15": "missing_mask", "ab16": "mask_of_another_shape",
                       "ab17": "empty_mask"}


def test_a_group_is_a_crowd(files):
    assert [thing.crowd for thing in OpenImagesSource(**files).record(1).instances] == [True]
    files.pop("boxes")
    assert [thing.crowd for thing in OpenImagesSource(**files).record(1).instances] == [False]


def test_errors_name_file_and_column(files):
    with pytest.raises(ValueError, match=r"classes.csv has no column 'MaskPath'; is it the right file"):
        OpenImagesSource(**{**files, "masks": files["classes"]})
    with pytest.raises(ValueError, match="no folder /nowhere"):
        OpenImagesSource(**{**files, "mask_images": "/nowhere"})
    with pytest.raises(ValueError, match="no file /nowhere.csv"):
        OpenImagesSource(**{**files, "boxes": "/nowhere.csv"})
