"""The classifier of cut-outs: it learns what it is shown, says what that is worth, and is refused where it cannot."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sb.data.composites import CompositesSource
from sb.data.write import build_shards
from sb.evaluate.classifier import CROP_PX, NONE, Classifier, Examples, crop, train_classifier
from tests.composites_world import write_cutouts, write_photos

TOOL = Path(__file__).resolve().parents[2] / "tools/train_classifier.py"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Composites of two classes that differ in colour: {"train": folder, "val": folder}."""
    root = tmp_path_factory.mktemp("composites")
    cutouts = str(write_cutouts(root / "cutouts"))
    for split, numbers, images in (("train", range(6), 48), ("val", range(9, 12), 24)):
        photos = write_photos(root / f"photos-{split}", numbers, split)
        build_shards(CompositesSource(cutouts, photos, images, size_px=32, split=split), root / split)
    return {split: str(root / split) for split in ("train", "val")}


@pytest.fixture(scope="module")
def trained(shards):
    return train_classifier(shards["train"], shards["val"], steps=60, batch=16)


def test_it_reads_unseen_cutouts_and_empty_places(trained, shards):
    assert trained.classes == ["lime", "plum"] and trained.accuracy["n"] == 24
    assert trained.accuracy["object"] > 0.9 and trained.accuracy[NONE] > 0.8
    unseen = Examples(shards["val"])
    words = trained.read(unseen.pictures, unseen.boxes)
    right = sum(a == b for a, b in zip(words, unseen.labels, strict=True))
    assert right / len(words) == trained.accuracy["object"]
    plums = [a == b for a, b in zip(words, unseen.labels, strict=True) if b == "plum"]
    assert sum(plums) / len(plums) == trained.accuracy["object/plum"]


def test_what_is_saved_reads_alike(trained, shards, tmp_path):
    trained.save(tmp_path / "c.safetensors")
    again, unseen = Classifier.load(tmp_path / "c.safetensors"), Examples(shards["val"])
    assert again.read(unseen.pictures, unseen.boxes) == trained.read(unseen.pictures, unseen.boxes)
    assert again.classes == trained.classes and again.accuracy == trained.accuracy and again.accuracy["n"] == 24


def test_other_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no weights")
    for name in ("other.safetensors", "text"):
        with pytest.raises(ValueError, match=f"{name} is not a classifier file"):
            Classifier.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Classifier.load(tmp_path / "absent.safetensors")


def test_a_crop_is_a_square_around_the_box():
    image = torch.zeros(1, 3, 40, 60, dtype=torch.uint8)
    image[:, :, 10:20, 20:40] = 255  # the box: 20 wide, so the square is 24 a side around (30, 15)
    cut = crop(image, torch.tensor([[20.0, 10.0, 20.0, 10.0]]))
    assert cut.shape == (1, 3, CROP_PX, CROP_PX)
    white = cut[0, 0] > 0
    assert white.any(0).sum() == pytest.approx(CROP_PX * 20 / 24, abs=1)
    assert white.any(1).sum() == pytest.approx(CROP_PX * 10 / 24, abs=1)
    assert (crop(image, torch.tensor([[-200.0, 0.0, 8.0, 8.0]])) == 0).all()  # beside the picture


def test_shards_that_do_not_fit_are_told(shards, tmp_path, monkeypatch, capsys):
    build_shards({"name": "shapes", "num_images": 2, "size_px": 32}, tmp_path / "shapes")
    with pytest.raises(ValueError, match="has no true background"):
        Examples(str(tmp_path / "shapes"))
    one = CompositesSource(str(write_cutouts(tmp_path / "cutouts")), write_photos(tmp_path / "photos", [1]), 4,
                           size_px=32, classes=["plum"])
    build_shards(one, tmp_path / "plums")
    spec = importlib.util.spec_from_file_location("train_classifier", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = tmp_path / "c.safetensors"
    monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path / "plums"), shards["val"], "--out", str(out)])
    assert tool.main() == 2 and not out.exists()
    assert "shows lime, which" in capsys.readouterr().err
    arguments = ["tool", shards["train"], shards["val"], "--out", str(out), "--steps", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert tool.main() == 0
    measured = {name: float(share) for name, share in map(str.split, capsys.readouterr().out.splitlines())}
    assert measured == pytest.approx(Classifier.load(out).accuracy, abs=1e-3)
