"""The pictures of a list: from shards and folders alike, cut as the case says, never a picture of another size."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sb.data.coco import encode_mask, instance_of
from sb.data.schema import Record
from sb.data.write import build_shards
from sb.evaluate.lists import Case, CaseList
from sb.evaluate.photos import Photos, Scenes, open_pictures
from sb.evaluate.protocols import make_list

WIDTH, HEIGHT = 40, 24
RLE = encode_mask(np.ones((8, 12), np.uint8))
CASE = Case("mine-val-b", "0", "dog", "dog", 0.0, 5, 0, (10, 4, 24, 16), (16, 24), RLE, RLE, (WIDTH, HEIGHT))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


class Pictures:
    """Three records, the second of which carries its true background."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.pixels = {name: rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8) for name in "abc"}
        self.background = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    def __len__(self):
        return 3

    def record(self, index):
        name = "abc"[index]
        thing = instance_of("0", "dog", encode_mask(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
        return Record(f"mine-val-{name}", png(self.pixels[name]), "png", WIDTH, HEIGHT, [thing],
                      truth=png(self.background) if name == "b" else None)

    def describe(self):
        return {"name": "mine", "split": "val"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The pictures, their shards (two tars) and the same as a folder of files."""
    root, source = tmp_path_factory.mktemp("stored"), Pictures()
    build_shards(source, root / "shards", images_per_shard=2)
    (root / "files").mkdir()
    for name, pixels in source.pixels.items():
        (root / "files" / f"{name}.png").write_bytes(png(pixels))
    return source, str(root / "shards"), str(root / "files")


def cut(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels[4:20, 10:34]).permute(2, 0, 1)


def test_shards_give_the_crop_and_the_true_background(stored):
    source, shards, _ = stored
    photos = Photos(shards)
    assert torch.equal(photos.real(CASE), cut(source.pixels["b"]))  # a crop that needs no resizing is a copy
    assert torch.equal(photos.truth(CASE), cut(source.background))
    assert torch.equal(photos.picture(CASE), cut(source.background))
    without = replace(CASE, image="mine-val-c")
    assert photos.truth(without) is None and torch.equal(photos.picture(without), cut(source.pixels["c"]))


def test_a_folder_gives_what_the_shards_give(stored):
    _, shards, files = stored
    for size in ((16, 24), (8, 12), (40, 60)):
        case = replace(CASE, image="mine-val-c", size=size)
        picture = Photos(files).picture(case)
        assert picture.shape == (3, *size) and picture.dtype == torch.uint8
        assert torch.equal(picture, Photos([shards]).picture(case))
    assert Photos(files).truth(CASE) is None


def test_coco_names_of_2014(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "COCO_val2014_000000000139.png")
    photos = Photos(str(tmp_path))
    assert "coco-val-000000000139" in photos and "coco-val-000000000140" not in photos
    assert photos.picture(replace(CASE, image="coco-val-000000000139"))[0].min() == 255


def test_shrinking_averages(stored, tmp_path):
    fine = np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255  # a checkerboard is grey from afar
    Image.fromarray(np.repeat(fine[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "x.png")
    small = Photos(str(tmp_path)).picture(replace(CASE, image="x", size=(4, 6)))
    assert (small.float() - 127.5).abs().max() < 3


def test_a_picture_of_another_size_is_not_taken(stored, tmp_path):
    Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="mine-val-b is 80x48 px, but the list was made for 40x24 px"):
        Photos(str(tmp_path)).picture(CASE)
    with pytest.raises(ValueError, match=r"the crop \[30, 4, 24, 16\]"):
        Photos(stored[2]).picture(replace(CASE, crop=(30, 4, 24, 16), stored=None))


def test_a_picture_that_is_not_there_is_named(stored, tmp_path):
    _, shards, files = stored
    header = {"protocol": "box", "size_px": 16}
    cases = CaseList(header, [CASE, replace(CASE, image="mine-val-z"), replace(CASE, image="mine-val-z", level=1.0)])
    for data in (shards, files):
        with pytest.raises(ValueError, match="lacks 1 of the list's pictures, the first: mine-val-z"):
            open_pictures(cases, data)
        assert isinstance(open_pictures(CaseList(header, [CASE]), [data]), Photos)
    with pytest.raises(ValueError, match="no picture mine-val-z in the data"):
        Photos(shards).picture(cases.cases[1])
    with pytest.raises(ValueError, match=r"lie in shards or a folder: name them \(--data\)"):
        open_pictures(cases)
    with pytest.raises(ValueError, match="no tar at"):
        Photos(str(tmp_path))


def test_a_broken_sample_is_said(stored, monkeypatch):
    photos = Photos(stored[1])
    read = photos._store.read
    monkeypatch.setattr(
        photos._store, "read", lambda *place, **asked: replace(read(*place, **asked), image=b"no picture")
    )
    with pytest.raises(ValueError, match=r"picture mine-val-b cannot be read \(bad_image\)"):
        photos.real(CASE)


def test_latents_are_no_pictures(stored, tmp_path):
    folder = shutil.copytree(stored[1], tmp_path / "latents")
    manifest = json.loads((folder / "manifest.json").read_text())
    made = {"vae": {}, "frames": {"variants": 1}, "text": None, "precision": "fp16"}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "latents": made}))
    with pytest.raises(ValueError, match="latents holds latents and no pictures"):
        Photos(str(folder))


def test_scenes_are_drawn_without_and_with_their_target(tmp_path):
    made = make_list(tmp_path / "shapes.jsonl", {"name": "shapes"}, 3, size_px=48)
    scenes = open_pictures(made)
    assert isinstance(scenes, Scenes) and json.loads(open(tmp_path / "shapes.jsonl").readline())["size_px"] == 48
    for case in made.cases:
        differs = (scenes.picture(case) != scenes.real(case)).any(0)
        outline = case.outline_pixels()[0] == 1
        assert scenes.picture(case).shape == (3, 48, 48) and differs[outline].float().mean() > 0.95
        assert torch.equal(scenes.truth(case), scenes.picture(case))
