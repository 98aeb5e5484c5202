"""The shell of the systems: one seed for the same numbers everywhere, and rates from images and the run file alone."""

from types import SimpleNamespace

import pytest
import torch

from sb.models.clock import ImagesClock
from sb.models.optim import AdamW
from sb.types import Batch


def test_noise_follows_from_the_numbers_on_every_machine() -> None:
    clock = ImagesClock(AdamW(), total_images=1, batch_size=1, seed=0)
    mixed = 0
    for number in (7, 64, 1):
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    assert clock.generator(7, 64, 1).initial_seed() == mixed
    draws = [torch.randn(4096, generator=clock.generator(7, 64, rank)) for rank in range(2)]
    assert abs(float((draws[0] * draws[1]).mean())) < 0.1


def test_what_a_network_draws_from_torchs_own_generator_follows_from_seed_images_and_rank() -> None:
    def drawn(seed: int, images: int) -> torch.Tensor:
        clock = ImagesClock(AdamW(), total_images=1, batch_size=1, seed=seed)
        clock._trainer = SimpleNamespace(global_rank=0)  # type: ignore[assignment]
        clock.images_seen = images
        clock.on_train_batch_start(None, 0)  # type: ignore[arg-type]
        return torch.nn.functional.dropout(torch.ones(1000))

    first = drawn(3, 64)
    torch.manual_seed(99)
    assert torch.equal(drawn(3, 64), first)
    assert not torch.equal(drawn(3, 68), first) and not torch.equal(drawn(4, 64), first)
    noise = ImagesClock(AdamW(), total_images=1, batch_size=1, seed=3).generator(3, 64, 0)
    assert noise.initial_seed() != torch.default_generator.initial_seed()


def test_the_rate_of_a_step_follows_from_images_and_the_run_file() -> None:
    clock = ImagesClock(AdamW(lr=0.1, decay="linear", weight_decay=0.3), total_images=80, batch_size=4, seed=0)
    clock._trainer = SimpleNamespace(world_size=2, accumulate_grad_batches=2)  # type: ignore[assignment]
    clock.weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = clock.configure_optimizers()
    group = optimizer.param_groups[0]
    for images, factor in ((16, 1.0), (48, 0.6), (80, 0.2), (8, 1.0)):
        clock.images_seen = images
        group.update(lr=9.0, weight_decay=9.0)  # as a checkpoint of another run file would
        clock.on_before_optimizer_step(optimizer)
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.1 * factor), 0.3)
    zeros = torch.zeros(4, dtype=torch.int64)
    clock.count(Batch(torch.zeros(4, 3, 8, 8), torch.zeros(4, 1, 8, 8), zeros, zeros, [""] * 4, ["k"] * 4))
    assert clock.images_seen == 16 and clock.clock().dtype == torch.float64


@pytest.mark.parametrize("fused", [True, False])
def test_clipping_by_a_known_norm_is_lightnings_own(fused, monkeypatch) -> None:
    def made():
        torch.manual_seed(0)
        clock = ImagesClock(AdamW(lr=0.1, fused=fused), total_images=1, batch_size=1, seed=0)
        clock.layer = torch.nn.Linear(3, 2)
        return clock, clock.configure_optimizers()

    (clock, optimizer), (other, plain) = made(), made()
    asked = []
    monkeypatch.setattr(clock, "clip_gradients", lambda *given: asked.append(given))
    clock.configure_gradient_clipping(optimizer, 0.5, "norm")  # nobody measured: Lightning does
    assert asked == [(optimizer, 0.5, "norm")]
    for clip in (0.5, 1e3, 1e-3, None):  # what one step set is gone in the next
        grads = [torch.randn_like(p) for p in clock.parameters()]
        for module in (clock, other):
            for parameter, grad in zip(module.parameters(), grads, strict=True):
                parameter.grad = grad.clone()
        clock.gradient_norm = torch.nn.utils.get_total_norm(grads)
        clock.configure_gradient_clipping(optimizer, clip, "norm")
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
            optimizer.step(), plain.step()
            for one, two in zip(clock.parameters(), other.parameters(), strict=True):
                assert torch.allclose(one, two, rtol=1e-6, atol=1e-7) and torch.allclose(one.grad, two.grad, rtol=1e-6)
        assert clock.gradient_norm is None  # a norm is used once
    assert len(asked) == 2  # without a limit it is Lightning's business too
    clock.gradient_norm = torch.ones(())
    clock.configure_gradient_clipping(SimpleNamespace(param_groups=[]), 0.5, "norm")  # DeepSpeed's, which clips itself
    assert len(asked) == 3 and clock.gradient_norm is None


def test_a_step_is_logged_where_lightning_writes(monkeypatch) -> None:
    clock = ImagesClock(AdamW(), total_images=1, batch_size=1, seed=0)
    trainer = SimpleNamespace(log_every_n_steps=3, global_step=0)
    clock._trainer = trainer  # type: ignore[assignment]
    logged = []
    monkeypatch.setattr(clock, "log_dict", lambda values, batch_size: logged.append((trainer.global_step, set(values))))
    for step in range(7):
        trainer.global_step = step
        clock.log_step({"train/loss": torch.zeros(())}, 4)
    assert logged == [(2, {"train/loss", "step"}), (5, {"train/loss", "step"})]
