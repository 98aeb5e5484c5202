"""The patch critic: hinge loss, frozen scores, the adaptive weight's balance; the perceptual distance's file."""

from pathlib import Path

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from sb.models.critic import PatchCritic, adaptive_weight, hinge
from sb.models.perceptual import Perceptual


def test_hinge_known_answers() -> None:
    one = torch.ones(2, 1, 3, 3)
    assert float(hinge(one, -one)) == 0
    assert float(hinge(0 * one, 0 * one)) == 1
    assert float(hinge(-one, one)) == 2


def test_frozen_scores_pull_at_the_picture_only() -> None:
    critic = PatchCritic(width=8, layers=2)
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    frozen = critic.score_frozen(picture)
    assert torch.equal(frozen, critic(picture))
    frozen.sum().backward()
    assert picture.grad is not None and bool(picture.grad.any())
    assert all(p.grad is None for p in critic.parameters())


def test_adaptive_weight_balances_gradients() -> None:
    source = torch.rand(1, 3, 8, 8, requires_grad=True)
    picture = source * 1.0
    weight = adaptive_weight((picture * 6).sum(), (picture * 2).sum(), picture)
    assert float(weight) == pytest.approx(3)


def test_critic_learns_to_tell() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(width=8, layers=2)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    flat, noise = torch.zeros(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    for _ in range(30):
        loss = hinge(critic(flat), critic(noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2


def test_perceptual_reads_a_local_vgg16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    features = make_layers(cfgs["D"], batch_norm=False)
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "vgg16.pth")
    distance = Perceptual(str(tmp_path / "vgg16.pth"))
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    near, far = image + 0.05 * torch.randn_like(image), torch.randn_like(image)
    assert float(distance(image, image)) == 0
    assert 0 < float(distance(near, image)) < float(distance(far, image))
    assert not any(p.requires_grad for p in distance.parameters())


def test_perceptual_refuses_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file .*vgg.pth; save torchvision's vgg16 weights there"):
        Perceptual(str(tmp_path / "vgg.pth"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not a torchvision VGG16"):
        Perceptual(str(tmp_path / "other.pth"))
