"""COCO: every mask is pycocotools' own, bytes are copied, crowds flagged, bad annotations named."""

import contextlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sb.data.coco import CocoSource, rle_of

MINI = Path(__file__).resolve().parents[2].parent / "shared/data/coco-mini-256"
HEIGHT, WIDTH = 40, 60
POLYGON = [5.5, 3.2, 40.1, 6.0, 30.7, 33.3, 8.0, 28.9]
HOLEY = [[1, 1, 10, 1, 10, 10, 1, 10], [30.2, 20.1, 59.9, 20.4, 59.9, 39.9, 31, 39]]
UNCOMPRESSED = {"size": [HEIGHT, WIDTH], "counts": [100, 50, 700, 30, HEIGHT * WIDTH - 880]}


def coco_set(folder: Path, annotations, **image) -> dict[str, str]:
    """A COCO data set with one picture, as the source's arguments."""
    (folder / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images/a.jpg", quality=90)
    body = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT, "license": 4,
                    "coco_url": "http://x/a.jpg", "annotation_scope": "all80", **image}],
        "licenses": [{"id": 4, "name": "Attribution License", "url": "http://cc/by"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [{"iscrowd": 0, "image_id": 7, "category_id": 1, "area": 1, "bbox": [0, 0, 1, 1], **entry}
                        for entry in annotations],
    }
    words = {"annotations": [{"image_id": 7, "caption": " a dog \n"}, {"image_id": 7, "caption": "b"}]}
    (folder / "instances.json").write_text(json.dumps(body))
    (folder / "captions.json").write_text(json.dumps(words))
    return {"images": str(folder / "images"), "instances": str(folder / "instances.json"),
            "captions": str(folder / "captions.json")}


def fresh_masks(instances: str) -> dict[str, np.ndarray]:
    """Annotation id -> mask, by pycocotools' own reader."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(instances)
    return {str(name): coco.annToMask(entry) for name, entry in coco.anns.items()}


def stored_mask(thing) -> np.ndarray:
    assert isinstance(thing.mask["counts"], str)
    return coco_mask.decode({"size": thing.mask["size"], "counts": thing.mask["counts"].encode()})


@pytest.fixture
def all_kinds(tmp_path):
    compressed = coco_mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, 3, dtype=np.uint8)))
    return coco_set(tmp_path, [
        {"id": 1, "segmentation": [POLYGON]},
        {"id": 2, "segmentation": HOLEY, "category_id": 18},
        {"id": 3, "segmentation": UNCOMPRESSED, "iscrowd": 1},
        {"id": 4, "segmentation": {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}},
    ])


def test_every_kind_of_mask_is_pycocotools_own(all_kinds):
    record = CocoSource(**all_kinds).record(0)
    fresh = fresh_masks(all_kinds["instances"])
    assert [thing.id for thing in record.instances] == ["1", "2", "3", "4"]
    for thing in record.instances:
        mask = stored_mask(thing)
        assert np.array_equal(mask, fresh[thing.id])
        ys, xs = np.nonzero(mask)
        assert thing.area == mask.sum() > 0
        assert thing.box == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    assert [thing.crowd for thing in record.instances] == [False, False, True, False]
    assert [thing.label for thing in record.instances] == ["person", "dog", "person", "person"]


def test_the_rest_of_the_record(all_kinds):
    source = pickle.loads(pickle.dumps(CocoSource(**all_kinds, split="val")))
    record = source.record(0)
    assert len(source) == 1 and record.key == "coco-val-000000000007"
    assert record.image == Path(all_kinds["images"], "a.jpg").read_bytes() and record.extension == "jpg"
    assert record.caption == "a dog" and record.captions == ["a dog", "b"]
    wanted = {"licence": "Attribution License", "licence_id": 4, "url": "http://x/a.jpg", "split": "val",
              "annotation_scope": "all80", "image_id": "7", "dataset": "coco"}
    assert wanted.items() <= record.origin.items() and "skipped" not in record.origin


def test_bad_annotations_are_left_out_and_named(tmp_path):
    short = {"size": [HEIGHT, WIDTH], "counts": "1"}  # pycocotools decodes this to uninitialised memory
    source = CocoSource(**coco_set(tmp_path, [
        {"id": 1, "segmentation": [POLYGON]}, {"id": 2, "segmentation": [[1, 2, 3, 4]]},
        {"id": 3, "segmentation": {"size": [HEIGHT, WIDTH + 1], "counts": [HEIGHT * (WIDTH + 1)]}},
        {"id": 4, "segmentation": short}, {"id": 5, "segmentation": [POLYGON], "category_id": 99},
        {"id": 6, "segmentation": [[900, 900, 910, 900, 910, 910]]},
        {"id": 7, "segmentation": [POLYGON], "image_id": 8},
        {"id": 8, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}}, {"id": 9, "segmentation": []},
    ]))
    record = source.record(0)
    assert [thing.id for thing in record.instances] == ["1"]
    reasons = {name.partition(":")[0]: reason for reason, name in record.origin["skipped"]}
    assert reasons == {**dict.fromkeys("234589", "bad_annotation"), "6": "empty_mask"}
    assert source.describe()["annotations_without_image"] == 1


def test_errors_name_the_file(tmp_path, all_kinds):
    with pytest.raises(ValueError, match="no folder of images /nowhere"):
        CocoSource(**{**all_kinds, "images": "/nowhere"})
    with pytest.raises(ValueError, match="no annotation file /nowhere.json"):
        CocoSource(**{**all_kinds, "instances": "/nowhere.json"})
    with pytest.raises(ValueError, match="captions.json has no list 'images'; is it the right"):
        CocoSource(**{**all_kinds, "instances": all_kinds["captions"]})
    with pytest.raises(ValueError, match="list of polygons or an RLE, not NoneType"):
        rle_of(None, 4, 4)


@pytest.mark.skipif(not MINI.is_dir(), reason="real photos are not here (../shared/data)")
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_masks_equal_a_fresh_rasterisation(split):
    folder = MINI / split
    source = CocoSource(str(folder / "images"), str(folder / "annotations/instances.json"), split=split)
    fresh = fresh_masks_of_coco(folder / "annotations/instances.json")
    num = 0
    for index in range(0, len(source), 5):
        for thing in source.record(index).instances:
            assert np.array_equal(stored_mask(thing), fresh.annToMask(fresh.anns[int(thing.id)]))
            num += 1
    assert num > 50


def fresh_masks_of_coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))
