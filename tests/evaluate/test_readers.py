"""Readers: the label that the network behind them gives for the box, and files that do not fit."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from sb.evaluate.oracle import Oracle
from sb.evaluate.readers import detector, torchvision_reader
from sb.registry import build

LABELS = ["__background__", "apple", "pear"]


@pytest.fixture
def pictures():
    images = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([[4, 6, 20, 30], [30, 10, 24, 24], [0, 0, 64, 48]])


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(LABELS) + "\n")
    return str(tmp_path / "classes.txt")


def test_the_oracle_reads_the_shape_in_the_box(oracle_file, pictures):
    images, boxes = pictures
    masks = torch.zeros(3, 1, 48, 64, dtype=torch.uint8)
    for mask, (left, top, width, height) in zip(masks, boxes.tolist(), strict=True):
        mask[:, top: top + height, left: left + width] = 1
    reader = build("reader", {"name": "oracle", "weights": oracle_file})
    assert reader.read(images, boxes) == Oracle.load(oracle_file).read(images, masks).shape
    assert reader.describe()["name"] == "oracle" and len(reader.describe()["sha256"]) == 64


def test_a_classifier_of_ours_is_loaded_when_asked_for(monkeypatch, tmp_path, pictures):
    (tmp_path / "fruit.safetensors").write_bytes(b"fruit")
    known = SimpleNamespace(load=lambda path: SimpleNamespace(read=lambda images, boxes: [f"{path[-17:]}"] * 3))
    monkeypatch.setitem(sys.modules, "sb.evaluate.classifier", SimpleNamespace(Classifier=known))
    reader = build("reader", {"name": "classifier", "weights": str(tmp_path / "fruit.safetensors")})
    assert reader.read(*pictures) == ["fruit.safetensors"] * 3


def test_a_torchvision_classifier_names_the_box_alone(classes, pictures, tmp_path):
    path = str(tmp_path / "weights.safetensors")
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    network.fc.weight.data.zero_()
    network.fc.bias.data.copy_(torch.tensor([0.0, 1.0, 0.5]))
    save_file(network.state_dict(), path)
    reader = torchvision_reader("shufflenet_v2_x0_5", path, classes, size_px=32)
    assert reader.read(*pictures) == ["apple"] * 3 and reader.describe()["model"] == "shufflenet_v2_x0_5"

    torch.manual_seed(3)
    network.fc.reset_parameters()
    network.fc.weight.data.mul_(100)
    save_file(network.state_dict(), path)
    reader = torchvision_reader("shufflenet_v2_x0_5", path, classes, size_px=32, context=1.0)
    images, boxes = pictures
    inside = torch.zeros(3, 3, 48, 64, dtype=torch.bool)
    inside[1, :, 10:34, 30:54] = True
    assert reader.read(torch.where(inside, images, 0), boxes)[1] == reader.read(images, boxes)[1]
    (tmp_path / "two.txt").write_text("apple\npear\n")
    with pytest.raises(ValueError, match="two.txt names 2 classes and .*weights.safetensors has 3"):
        torchvision_reader("shufflenet_v2_x0_5", path, str(tmp_path / "two.txt"))
    with pytest.raises(ValueError, match="no file of class names at"):
        torchvision_reader("shufflenet_v2_x0_5", path, str(tmp_path / "none.txt"))


@pytest.mark.parametrize("seen, label", [
    ([], "none"),
    ([((4, 6, 24, 36), 0.9, 1)], "apple"),
    ([((4, 6, 24, 36), 0.29, 1)], "none"),  # not sure enough
    ([((40, 30, 60, 44), 0.9, 1)], "none"),  # elsewhere
    ([((4, 6, 24, 36), 0.5, 1), ((6, 8, 24, 36), 0.9, 2), ((40, 30, 60, 44), 0.99, 1)], "pear"),
    ([((4, 6, 24, 36), 0.8, 1), ((4, 6, 24, 20), 0.9, 2)], "apple"),  # overlap and score count
])
def test_a_detector_names_the_best_of_what_it_sees_in_the_box(monkeypatch, classes, pictures, seen, label):
    class Known(torch.nn.Module):
        def forward(self, images):
            assert images[0].shape == (3, 48, 64) and float(images[0].max()) <= 1
            boxes, scores, labels = zip(*seen, strict=True) if seen else ((), (), ())
            return [{"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                     "scores": torch.tensor(scores), "labels": torch.tensor(labels)}]

    monkeypatch.setattr("sb.evaluate.readers._detection_model", lambda *_: Known())
    images, boxes = pictures
    assert detector("any", "any", classes).read(images[:1], boxes[:1]) == [label]


def test_other_class_names_are_another_reader(monkeypatch, classes, tmp_path):
    weights = str(tmp_path / "weights.safetensors")
    save_file(torchvision.models.shufflenet_v2_x0_5(num_classes=3).state_dict(), weights)
    monkeypatch.setattr("sb.evaluate.readers._detection_model", lambda *_: torch.nn.Identity())
    other, same = str(tmp_path / "other.txt"), str(tmp_path / "same.txt")
    (tmp_path / "other.txt").write_text("\n".join(reversed(LABELS)))
    (tmp_path / "same.txt").write_text("\n".join(LABELS))
    for make in (detector, torchvision_reader):
        one, two, three = (make("shufflenet_v2_x0_5", weights, file).describe() for file in (classes, other, same))
        assert one != two and one == three


def test_a_torchvision_detector_is_read_from_its_file(classes, pictures, tmp_path):
    make = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    network = make(weights=None, weights_backbone=None, num_classes=3)
    save_file(network.state_dict(), tmp_path / "ssd.safetensors")
    spec = {"name": "detector", "model": "ssdlite320_mobilenet_v3_large", "weights": f"{tmp_path}/ssd.safetensors",
            "classes": classes, "min_score": 0.01}
    reader = build("reader", spec)
    images, boxes = pictures
    assert set(reader.read(images[:1], boxes[:1])) <= {*LABELS, "none"} and reader.describe()["min_score"] == 0.01
    with pytest.raises(ValueError, match="no detection model 'ssd300'; did you mean"):
        build("reader", {**spec, "model": "ssd300"})
