"""The learning rate is a function of images: known answers, independence of the batch size, pickling."""

import pickle

import pytest
import torch

from sb.models.optim import ImageSchedule
from sb.registry import build


@pytest.mark.parametrize("decay, half, end", [("none", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)])
def test_known_answers(decay: str, half: float, end: float) -> None:
    factor = ImageSchedule(total_images=1100, warmup_images=100, decay=decay)
    images = {0: 0.1, 90: 1, 100: 1, 600: half, 1100: end, 5000: end}
    assert {n: factor(n, 10) for n in images} == pytest.approx(images, abs=1e-9)


def test_the_batch_size_does_not_change_the_recipe() -> None:
    factor = ImageSchedule(8000, 800, "cosine")
    for images in (800, 1600, 4000, 8000):
        assert factor(images, 4) == factor(images, 16)
    assert factor(400 - 4, 4) == factor(400 - 16, 16) == 0.5  # in warm-up, by the images of the step too


def test_factory_survives_pickling_and_trains_what_needs_a_gradient() -> None:
    spec = {"name": "adamw", "lr": 0.1, "weight_decay": 0.0, "betas": [0.8, 0.9], "eps": 1e-6, "decay": "linear"}
    factory = pickle.loads(pickle.dumps(build("optimizer", spec)))
    weight, frozen = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer, factor = factory([weight, frozen], total_images=4)
    group = optimizer.param_groups[0]
    assert len(group["params"]) == 1 and group["betas"] == (0.8, 0.9) and group["eps"] == 1e-6 and group["fused"]
    assert [0.1 * pickle.loads(pickle.dumps(factor))(n, 1) for n in range(5)] == pytest.approx([.1, .075, .05, .025, 0])
    weight.square().sum().backward()
    optimizer.step()
    assert bool((weight < 1).all())


def test_unfused_and_weight_decay_do_what_they_claim() -> None:
    factory = build("optimizer", {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "fused": False})
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, _ = factory([weight], 10)
    assert not optimizer.param_groups[0]["fused"]
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert float(weight.detach()) == pytest.approx(0.95)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="decay 'step' is none of none, linear, cosine"):
        build("optimizer", {"name": "adamw", "decay": "step"})
    with pytest.raises(ValueError, match="betas must be two numbers"):
        build("optimizer", {"name": "adamw", "betas": [0.9]})
