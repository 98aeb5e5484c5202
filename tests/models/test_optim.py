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


def eight_bit(weight: torch.nn.Parameter, **options: float) -> torch.optim.Optimizer:
    return build("optimizer", {"name": "adamw8bit", "lr": 1e-3, **options})([weight], total_images=1000)[0]


def walk(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        weight.grad = weight.detach() + 0.1 * noise
        optimizer.step()


def test_eight_bits_go_where_adamw_goes_with_a_quarter_of_its_state() -> None:
    start = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    exact, rounded = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    plain = build("optimizer", {"name": "adamw", "lr": 1e-3})([exact], total_images=1000)[0]
    walk(exact, plain, range(30))
    optimizer = eight_bit(rounded)
    walk(rounded, optimizer, range(30))
    assert 0 < (exact - rounded).norm() < 0.05 * (exact - start).norm()
    kept = [v for v in optimizer.state[rounded].values() if torch.is_tensor(v) and v.numel() >= start.numel()]
    assert [v.dtype for v in kept] == [torch.uint8, torch.uint8]


def test_eight_bit_state_survives_saving(tmp_path) -> None:
    weight = torch.nn.Parameter(torch.ones(64, 128))
    optimizer = eight_bit(weight)
    walk(weight, optimizer, range(3))
    torch.save({"weight": weight.detach().clone(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    walk(weight, optimizer, range(3, 6))
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = torch.nn.Parameter(stored["weight"])
    optimizer = eight_bit(resumed)
    optimizer.load_state_dict(stored["optimizer"])
    walk(resumed, optimizer, range(3, 6))
    assert torch.equal(weight, resumed)


def test_eight_bit_options_do_what_they_claim() -> None:
    weight = torch.nn.Parameter(torch.ones(64, 128))
    optimizer = eight_bit(weight, lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(weight, torch.tensor(0.95))
    factor = build("optimizer", {"name": "adamw8bit", "warmup_images": 10, "decay": "linear"})([weight], 110)[1]
    assert [factor(n, 1) for n in (0, 10, 60)] == pytest.approx([0.1, 1, 0.5])
    with pytest.raises(ValueError, match="decay 'step' is none of"):
        build("optimizer", {"name": "adamw8bit", "decay": "step"})


def test_eight_bits_say_what_they_need(monkeypatch) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.full_tensor = None  # what a piece of FSDP's has
    with pytest.raises(ValueError, match="cannot update FSDP's pieces"):
        eight_bit(weight)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[adam8bit\]'"):
        build("optimizer", {"name": "adamw8bit"})
