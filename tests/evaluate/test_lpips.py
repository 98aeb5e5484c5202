"""LPIPS from files: torchmetrics' own figures on the same weights."""

import pytest
import torch
import torchvision
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

from sb.evaluate.lpips import lpips_distance


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lpips") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    return str(path)


def test_the_distance_is_torchmetrics_on_the_same_weights(backbone, monkeypatch):
    weights = torchvision.models.SqueezeNet1_1_Weights
    state = torch.load(backbone, weights_only=True)
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: state)
    theirs = LearnedPerceptualImagePatchSimilarity("squeeze", reduction="none")
    one, two = torch.rand(2, 3, 3, 72, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = lpips_distance(backbone, "squeeze")(one, two)
    assert found.tolist() == pytest.approx(theirs(one, two).tolist(), rel=1e-5) and float(found.min()) > 0


def test_equal_pictures_are_no_distance_apart_and_noise_is_one_that_grows(backbone):
    distance = lpips_distance(backbone, "squeeze")
    picture = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0)) - 0.5
    noise = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    steps = [float(distance(picture, picture + level * noise)) for level in (0, 0.05, 0.2)]
    assert steps[0] == 0 and steps == sorted(steps) and steps[1] > 0


def test_the_wrong_backbone_is_one_line(backbone, tmp_path):
    with pytest.raises(ValueError, match="squeezenet.pth is not torchvision's backbone of 'alex': it has no f"):
        lpips_distance(backbone, "alex")
    with pytest.raises(ValueError, match="no weights at"):
        lpips_distance(str(tmp_path / "none.pth"))
