"""Lists follow their rules: who may be drawn, in what order, in which crop, under which mask, from any source alike."""

import contextlib
import csv
import hashlib
import io
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from pycocotools.coco import COCO
from scipy.spatial import ConvexHull, QhullError

from sb.config import CONFIGS, load, plain
from sb.data.coco import CocoSource, encode_mask, instance_of
from sb.data.decode import decode_mask
from sb.data.openimages import OpenImagesSource
from sb.data.schema import Record
from sb.data.write import build_shards
from sb.evaluate.lists import read_list
from sb.evaluate.photos import open_pictures
from sb.evaluate.protocols import _draw, make_list
from sb.evaluate.requests import make_cases
from sb.masks import Ladder, box_of
from sb.registry import build

MINI = Path(__file__).resolve().parents[2].parent / "shared/data/coco-mini-256/val"
SIZES = ((60, 40), (40, 64), (52, 48), (72, 40))  # width, height
NAMES = {1: "person", 18: "dog"}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A COCO set of 4 pictures with 4 objects each (a fitting one, a long one, a tiny one, a crowd), and its shards."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    rng, images, annotations = np.random.default_rng(0), [], []
    for number, (width, height) in enumerate(SIZES):
        noise = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"images/{number:012d}.jpg")
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height})
        x, y = width - 24, height - 30
        long = [0, 5, width, 5, width, 12, 0, 14] if width > height else [5, 0, 5, height, 12, height, 14, 0]
        polygons = ([x, y, x + 20, y + 3, x + 12, y + 25, x + 6, y + 8, x + 2, y + 20],
                    long, [3, 3, 5, 3, 5, 5, 3, 5], [0, 0, width, 0, width, height])
        for place, polygon in enumerate(polygons):
            annotations.append({"id": 10 * number + place, "image_id": number, "category_id": (1, 18)[place % 2],
                                "segmentation": [polygon], "iscrowd": int(place == 3)})
    body = {"images": images, "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in NAMES.items()]}
    (root / "instances.json").write_text(json.dumps(body))
    lines = [{"image_id": 2, "instance_id": 20, "text": text} for text in ("a red one", "a small red one")]
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = CocoSource(str(root / "images"), str(root / "instances.json"), split="val")
    build_shards(source, root / "shards", images_per_shard=3, captions=str(root / "captions.jsonl"))
    return {"annotations": str(root / "instances.json"), "shards": str(root / "shards"), "images": str(root / "images")}


def ladder() -> Ladder:
    return Ladder(**plain(load(CONFIGS / "base.yaml"))["ladder"])


def pixels(rle) -> torch.Tensor:
    height, width = rle["size"]
    return torch.from_numpy(decode_mask(rle, width, height).copy())[None, None]


def test_enlarged_crops_are_said(coco, tmp_path, caplog):
    """The four crops have sides of 40, 40, 48 and 40 px."""
    make_list(tmp_path / "own", {"name": "box"}, 4, data=coco["shards"], size_px=40)
    assert not caplog.records
    make_list(tmp_path / "larger", {"name": "box"}, 4, data=coco["shards"], size_px=48)
    assert caplog.messages == ["3 of 4 crops are enlarged to 48 px; --size sets another"]


def test_box_and_outline_say_what_they_mask(coco, tmp_path):
    box = make_list(tmp_path / "box", {"name": "box"}, 4, data=coco["shards"], size_px=32)
    outline = make_list(tmp_path / "outline", {"name": "outline"}, 4, data=coco["shards"], size_px=32)
    assert {case.instance for case in box.cases} == {"0", "10", "20", "30"}  # not the long, the tiny, the crowd
    for in_box, exact in zip(box.cases, outline.cases, strict=True):
        assert (in_box.level, exact.level, in_box.num_levels) == (5, 0, 5) and in_box.size == (32, 32)
        assert exact.mask == exact.outline == in_box.outline and in_box.label == in_box.text == "person"
        assert torch.equal(pixels(in_box.mask), box_of(pixels(exact.outline)))
        left, top, width, height = in_box.crop
        across, down = SIZES[int(in_box.image[-1])]
        assert width == height == min(across, down) and in_box.stored == (across, down)
        assert 0 <= left <= across - width and 0 <= top <= down - height
    assert [case.seed for case in box.cases] == [0, 1, 2, 3]


def test_the_crop_is_centred_where_the_picture_lets_it(tmp_path):
    def crop_of(x: int) -> tuple:
        mask = np.zeros((40, 100), np.uint8)
        mask[4:30, x: x + 20] = 1
        record = Record("k", b"", "", 100, 40, [instance_of("0", "cat", encode_mask(mask))])
        [case] = build("protocol", {"name": "box"}).cases([record], 1, 0, 40, ladder())
        assert pixels(case.outline).sum() == mask.sum()  # nothing of it is cut off
        return case.crop

    assert [crop_of(x) for x in (0, 40, 80)] == [(0, 0, 40, 40), (30, 0, 40, 40), (60, 0, 40, 40)]


def test_the_ladder_is_every_level_under_one_seed(coco, tmp_path):
    made = make_list(tmp_path / "list", {"name": "ladder"}, 3, data=coco["shards"], size_px=64, seed=5)
    assert [case.level for case in made.cases] == [0, 1, 2, 3, 4, 5] * 3 and made.header["count"] == 18
    for start in range(0, 18, 6):
        steps = made.cases[start: start + 6]
        assert {(case.seed, case.instance) for case in steps} == {(5 * 1_000_003 + start // 6, steps[0].instance)}
        outlines = pixels(steps[0].outline).expand(6, -1, -1, -1)
        assert torch.equal(torch.cat([pixels(case.mask) for case in steps]), ladder()(outlines, torch.arange(6)))
    box = make_list(tmp_path / "box", {"name": "box"}, 3, data=coco["shards"], size_px=64, seed=5)
    assert made.cases[5::6] == box.cases


def test_text_is_the_label_or_a_caption_of_the_objects_own(coco, tmp_path):
    told = set()
    for seed in range(8):
        made = make_list(tmp_path / f"{seed}", {"name": "box", "text": "caption"}, 1, data=coco["shards"], seed=seed)
        told.add(made.cases[0].text)
        assert (made.cases[0].label, made.cases[0].instance) == ("person", "20")
    assert told == {"a red one", "a small red one"}
    with pytest.raises(ValueError, match="only 0 objects fit .*text"):
        make_list(tmp_path / "x", {"name": "box", "text": "caption"}, 1, annotations=coco["annotations"])


def test_limits_of_the_area_are_kept(coco, tmp_path):
    def instances(**limits):
        path = tmp_path / json.dumps(limits)
        return {c.instance for c in make_list(path, {"name": "box", **limits}, 1, data=coco["shards"]).cases}

    for limits in ({"min_area": 0.9, "max_area": 1.0}, {"min_area": 0.0, "max_area": 0.001}):
        with pytest.raises(ValueError, match="only 0 objects fit the protocol, and 1 were asked"):
            instances(**limits)
    assert instances(min_area=0.0, max_area=0.01) <= {"2", "12", "22", "32"}
    with pytest.raises(ValueError, match="needs 0 <= min_area <= max_area <= 1, not 0.5 and 0.1"):
        instances(min_area=0.5, max_area=0.1)


@pytest.mark.parametrize("spec", [{"name": "hull"}, {"name": "ladder"}], ids=lambda spec: spec["name"])
def test_shards_and_annotations_give_the_same_cases(coco, tmp_path, spec):
    count = 4
    stored = make_list(tmp_path / "a", spec, count, data=coco["shards"], size_px=64)
    told = make_list(tmp_path / "b", spec, count, annotations=coco["annotations"], size_px=64)
    assert stored.cases == told.cases and stored.header["rules"] == told.header["rules"]
    shown = [open_pictures(told, data) for data in (coco["shards"], coco["images"])]
    for case in told.cases:
        assert torch.equal(shown[0].picture(case), shown[1].picture(case))
        assert shown[0].picture(case).shape[1:] == case.mask_pixels().shape[1:]


def test_the_same_bytes_each_time_and_a_shorter_list_begins_a_longer_one(coco, tmp_path):
    def made(name, count, seed=0):
        make_list(tmp_path / name, {"name": "hull"}, count, data=coco["shards"], size_px=48, seed=seed)
        return (tmp_path / name).read_bytes()

    assert made("a", 8) == made("b", 8) != made("c", 8, seed=1)
    assert made("d", 5).splitlines()[1:] == made("a2", 8).splitlines()[1:6]
    read = read_list(tmp_path / "a")
    assert read.digest == hashlib.sha256(made("e", 8)).hexdigest()
    assert str(tmp_path) not in (tmp_path / "a").read_text()  # a list can be given away


def test_the_draw_is_even_over_objects_or_over_pictures():
    def record(key, num):
        return Record(key, b"", "", 8, 8, [instance_of(str(i), "x", encode_mask(np.ones((8, 8)))) for i in range(num)])

    records = [record("many", 18), record("one", 1), record("other", 1)]
    shares = []
    for evenly in (False, True):
        first = Counter(_draw(records, lambda r: r.instances, 1, seed, evenly)[0].record.key for seed in range(600))
        shares.append(first["many"] / 600)
    assert shares == pytest.approx([18 / 20, 1 / 3], abs=0.06)  # three standard errors


def test_openimages_shards_give_lists(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rows = [["MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax"]]
    for name in ("00aa", "11bb", "22cc"):
        Image.new("RGB", (64, 48), "grey").save(tmp_path / f"images/{name}.jpg")
        mask = np.zeros((24, 32), bool)  # half the picture's size, as masks there may be
        mask[4:16, 8:20] = True
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
        rows.append([f"{name}.png", name, "/m/01yrx", f"box{name}", "0", "1", "0", "1"])
    for name, lines in (("masks.csv", rows), ("classes.csv", [["/m/01yrx", "Cat"]])):
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows(lines)
    build_shards(OpenImagesSource(
        str(tmp_path / "images"), str(tmp_path / "classes.csv"), str(tmp_path / "masks.csv"), str(tmp_path / "masks"),
        split="validation",
    ), tmp_path / "shards")
    for name in ("box", "outline", "ladder", "hull"):
        made = make_list(tmp_path / name, {"name": name}, 3, data=str(tmp_path / "shards"), size_px=48)
        assert {case.image for case in made.cases} == {f"openimages-validation-{n}" for n in ("00aa", "11bb", "22cc")}
        assert {case.text for case in made.cases} == {"Cat"}
        shown = [open_pictures(read_list(tmp_path / name), str(tmp_path / where)) for where in ("shards", "images")]
        assert all(torch.equal(shown[0].picture(case), shown[1].picture(case)) for case in made.cases)
    assert pixels(made.cases[0].outline).sum() == pixels(made.cases[0].mask).sum() == 18 * 18  # 24 px at 48 / 64


def test_shapes_are_the_requests_of_the_shapes_evaluation(tmp_path):
    made = make_list(tmp_path / "list", {"name": "shapes"}, 4, seed=2, size_px=32)
    scenes = open_pictures(made)
    assert [case.level for case in made.cases] == [0, 5] * 4
    for case, asked in zip(made.cases[::2], make_cases(4, 2, 32), strict=True):
        assert torch.equal(scenes.picture(case), asked.background) and torch.equal(scenes.real(case), asked.image)
        assert (case.text, case.seed, case.label) == (asked.text, asked.seed, asked.shape)
        assert torch.equal(case.mask_pixels(), asked.outline) and torch.equal(case.outline_pixels(), asked.outline)
    for exact, box in zip(made.cases[::2], made.cases[1::2]):
        assert torch.equal(box.mask_pixels()[None], box_of(exact.mask_pixels()[None])) and box.seed == exact.seed


def test_a_hull_declares_the_level_it_is_given(coco, tmp_path):
    for level in (0.5, 5):
        made = make_list(tmp_path / f"{level}", {"name": "hull", "level": level}, 2, data=coco["shards"])
        assert [case.level for case in made.cases] == [level] * 2 and f"level: {level:g}." in made.header["rules"]
    with pytest.raises(ValueError, match=r"level 6 is outside \[0, 5\]"):
        make_list(tmp_path / "x", {"name": "hull", "level": 6.0}, 2, data=coco["shards"])


def test_what_cannot_be_made_is_said_at_once(coco, tmp_path):
    both = {"data": coco["shards"], "annotations": coco["annotations"]}
    (tmp_path / "taken").write_text("mine")
    for given, told in (
        ({}, "'box' needs either shards or one annotation file, and 0 of them"), (both, "and 2 of them were given"),
        ({"data": coco["shards"], "count": 17}, "only 4 objects fit the protocol, and 17 were asked for: ask for"),
        ({"data": coco["shards"], "count": 0}, "not 0, 512 and 0"),
        ({"data": coco["shards"], "seed": -1}, "not 1, 512 and -1"),
        ({"protocol": {"name": "shapes"}, "data": coco["shards"]}, "needs neither shards nor annotations, and 1"),
        ({"protocol": {"name": "boxes"}}, "no protocol named 'boxes'; did you mean 'box'"),
        ({"protocol": {"name": "box", "text": "words"}}, "'words'"), ({"path": tmp_path / "taken"}, "taken is there"),
        ({"annotations": coco["images"] + "/none.json"}, "no annotation file"),
        ({"data": str(tmp_path)}, "no tar at"),
    ):
        with pytest.raises(ValueError, match=told):
            make_list(**{"path": tmp_path / "x", "protocol": {"name": "box"}, "count": 1, **given})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"] and (tmp_path / "taken").read_text() == "mine"


def test_shards_without_annotations_are_named(coco, tmp_path):
    record = Record("mine-val-1", (Path(coco["images"]) / "000000000000.jpg").read_bytes(), "jpg", 60, 40, [])
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": record.key, "jpg": record.image, "json": {"width": 60, "height": 40}})
    with pytest.raises(ValueError, match=r"mine-val-1 is no annotated picture \(KeyError\('instances'\)\)"):
        make_list(tmp_path / "x", {"name": "box"}, 1, data=str(tmp_path / "a.tar"))


@pytest.mark.skipif(not MINI.is_dir(), reason="real photos are not here (../shared/data)")
def test_the_coco_list_is_what_pycocotools_reads(tmp_path):
    """Count, order and masks of the hull list against COCO's own reader, the rules' words and scipy's hull."""
    seed, size_px = 3, 256
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(MINI / "annotations/instances.json"))
    ranks = {}
    for image, entries in coco.imgToAnns.items():
        usable = [entry for entry in entries if not entry["iscrowd"] and coco.annToMask(entry).any()]
        for entry in usable:
            digest = hashlib.sha256(f"{seed} coco-val-{image:012d} {entry['id']}".encode()).hexdigest()
            ranks[entry["id"]] = -math.log((int(digest[:12], 16) + 1) / 2**48) * len(usable)
    made = make_list(tmp_path / "list", {"name": "hull"}, len(ranks), size_px=size_px, seed=seed,
                     annotations=str(MINI / "annotations/instances.json"))
    assert len(made.cases) == len(ranks) == sum(not entry["iscrowd"] for entry in coco.anns.values()) == 508
    assert [int(case.instance) for case in made.cases] == sorted(ranks, key=ranks.__getitem__)
    with pytest.raises(ValueError, match="only 508 objects fit the protocol, and 509"):
        make_list(tmp_path / "x", {"name": "hull"}, 509, annotations=str(MINI / "annotations/instances.json"))
    for case in made.cases:
        entry, image = coco.anns[int(case.instance)], coco.imgs[int(case.image[-12:])]
        assert entry["image_id"] == image["id"] and case.image.startswith("coco-val-")
        assert case.text == case.label == coco.cats[entry["category_id"]]["name"]
        longer = max(image["width"], image["height"])
        assert case.size == (image["height"] * size_px // longer, image["width"] * size_px // longer)
        assert case.crop == (0, 0, image["width"], image["height"]) and max(case.size) == size_px
        check_hull(case, coco.annToMask(entry))


def check_hull(case, mask: np.ndarray) -> None:
    """Hull and outline of a case against its object's mask (H, W) at the stored size, to 1.5 px of the list's size."""
    outline, hull = case.outline_pixels()[0].numpy(), case.mask_pixels()[0].numpy()
    assert outline.any() and (hull >= outline).all()
    scale = np.array(case.size[::-1]) / mask.shape[::-1]
    expected = mask.sum() * scale.prod()
    assert abs(outline.sum() - expected) <= 0.05 * expected + 12 * math.sqrt(expected)  # a rim of pixels, and no more
    points = (np.argwhere(mask)[:, ::-1] + 0.5) * scale - 0.5  # x, y of its pixels' centres at the list's size
    try:
        planes = ConvexHull(points).equations
    except QhullError:  # all on one line
        return
    y, x = np.indices(hull.shape)
    beyond = (planes[:, :2] @ np.stack([x.ravel(), y.ravel()]) + planes[:, 2:]).max(0).reshape(hull.shape)
    assert hull[beyond < -1.5].all() and not hull[beyond > 1.5].any()
