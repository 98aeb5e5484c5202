"""The learning rate is a function of images: known answers, independence of the batch size, pickling."""

import pickle

import pytest
import torch

from sb.models.optim import ImageSchedule
from sb.registry import build


@pytest.mark.parametrize("decay, half, end", [("none", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)])
def test_known_answers(decay: str, half: float, end: float) -> None:
    factor = ImageSchedule(images_per_step=10, total_images=1100, warmup_images=100, decay=decay)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == pytest.approx(1)
    assert factor(10) == pytest.approx(1)
    assert factor(60) == pytest.approx(half)
    assert factor(110) == pytest.approx(end)
    assert factor(500) == pytest.approx(end)


def test_the_batch_size_does_not_change_the_recipe() -> None:
    small, large = (ImageSchedule(n, 8000, 800, "cosine") for n in (4, 16))
    for images in (800, 1600, 4000, 8000):
        assert small(images // 4) == pytest.approx(large(images // 16))


def test_factory_survives_pickling_and_steps() -> None:
    spec = {"name": "adamw", "lr": 0.1, "weight_decay": 0.0, "betas": [0.8, 0.9], "eps": 1e-6, "decay": "linear"}
    factory = pickle.loads(pickle.dumps(build("optimizer", spec)))
    weight, frozen = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer, scheduler = factory([weight, frozen], images_per_step=1, total_images=4)
    group = optimizer.param_groups[0]
    assert len(group["params"]) == 1 and group["betas"] == (0.8, 0.9) and group["eps"] == 1e-6 and group["fused"]
    rates = []
    for _ in range(4):
        weight.square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        rates.append(group["lr"])
    assert rates == pytest.approx([0.075, 0.05, 0.025, 0.0])
    assert bool((weight < 1).all())


def test_unfused_and_weight_decay_do_what_they_claim() -> None:
    factory = build("optimizer", {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "fused": False})
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, _ = factory([weight], 1, 10)
    assert not optimizer.param_groups[0]["fused"]
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert float(weight.detach()) == pytest.approx(0.95)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="decay 'step' is none of none, linear, cosine"):
        build("optimizer", {"name": "adamw", "decay": "step"})
    with pytest.raises(ValueError, match="betas must be two numbers"):
        build("optimizer", {"name": "adamw", "betas": [0.9]})
