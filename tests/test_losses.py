"""DICE's laws, the hole-only objective, and gradients that do not depend on how a batch is split."""

import pytest
import torch

from sb.losses import ConsistencyObjective, dice, gradient_l1, region_mean
from sb.registry import build

SCHEDULE = build("schedule", {"name": "scaled_linear", "prediction": "v"})


def binary(seed=0, share=0.4):
    return (torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) < share).float()


@pytest.mark.parametrize("share", [0.01, 0.4, 0.99, 1.0, 0.0])
def test_dice_laws(share):
    m = binary(share=share)
    assert torch.equal(dice(m, m), torch.zeros(3))  # exactly, also empty
    assert bool((dice(m, 1 - m) > 0.99).all())
    other = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(dice(m, other), dice(other, m))
    assert bool((dice(m, other) >= 0).all()) and bool((dice(m, other) <= 1).all())


def test_dice_known_answer_and_finite_gradient_on_empty_masks():
    x, y = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert float(dice(x, y)) == pytest.approx(1 - (2 * 1 + 1) / (2 + 1 + 1))
    logits = torch.full((1, 1, 4, 4), -30.0, requires_grad=True)
    loss = dice(logits.sigmoid(), torch.zeros(1, 1, 4, 4)).sum()
    loss.backward()
    assert bool(torch.isfinite(logits.grad).all()) and float(loss.detach()) == pytest.approx(0, abs=1e-6)


def test_region_mean_counts_each_samples_own_hole():
    error = torch.ones(2, 4, 8, 8)
    error[1] = 3.0
    region = torch.zeros(2, 1, 8, 8)
    region[0, 0, 0, 0] = 1
    region[1] = 1
    error[0, :, 4:] = 1e6  # outside the first sample's hole
    assert region_mean(error, region).tolist() == [1.0, 3.0]
    assert region_mean(error, region * 0).tolist() == [0.0, 0.0]


def inputs(size=6, seed=1):
    made = torch.Generator().manual_seed(seed)
    hole = torch.zeros(size, 1, 8, 8)
    for i in range(size):
        hole[i, 0, : i + 1, :5] = 1
    return {
        "prediction": torch.randn(size, 4, 8, 8, generator=made),
        "target": torch.randn(size, 4, 8, 8, generator=made),
        "hole": hole,
        "t": torch.randint(0, 1000, (size,), generator=made),
        "mask_logits": torch.randn(size, 1, 8, 8, generator=made),
        "mask_target": torch.rand(size, 1, 8, 8, generator=made),
        "has_object": torch.tensor([True, False, True, True, False, True][:size]),
    }


def call(given, object_share=0.8, **options):
    objective = build("objective", {"name": "denoising", **options})
    return objective(**given, schedule=SCHEDULE, object_share=object_share)


def test_total_is_denoise_plus_a_hundredth_of_dice():
    given = inputs()
    out = call(given, object_share=4 / 6)  # the share of this very batch
    torch.testing.assert_close(out.loss, out.denoise + 0.01 * out.dice)
    torch.testing.assert_close(out.denoise, out.denoise_each.mean())
    torch.testing.assert_close(out.dice, out.dice_each[given["has_object"]].mean())


def test_only_the_hole_counts():
    given = inputs()
    moved = {**given, "prediction": given["prediction"] + 100 * (1 - given["hole"])}
    assert torch.equal(call(given).denoise_each, call(moved).denoise_each)
    assert bool((call(moved, region="full").denoise_each > 100).all())
    expected = (given["prediction"] - given["target"]).square()[2, :, :3, :5].mean()
    torch.testing.assert_close(call(given).denoise_each[2], expected)


def test_samples_without_an_object_leave_the_mask_loss_alone():
    given = inputs()
    other = {**given, "mask_target": torch.where(given["has_object"].view(-1, 1, 1, 1), given["mask_target"], 0.0)}
    assert torch.equal(call(given).loss, call(other).loss) and torch.equal(call(given).dice, call(other).dice)
    none = call({**given, "has_object": torch.zeros(6, dtype=torch.bool)})
    assert float(none.dice) == 0 and torch.equal(none.loss, none.denoise)


def test_a_model_without_a_mask_head():
    out = call({**inputs(), "mask_logits": None})
    assert torch.equal(out.loss, out.denoise) and float(out.dice) == 0 and out.dice_each.shape == (6,)


def test_min_snr_weighs_each_sample():
    given = inputs()
    weight = SCHEDULE.min_snr_weight(given["t"], 5.0)
    torch.testing.assert_close(call(given, min_snr_gamma=5.0).denoise_each, call(given).denoise_each * weight)


@pytest.mark.parametrize("cuts", [[3, 3], [2, 2, 2], [1] * 6])
def test_a_split_batch_gives_the_whole_batchs_gradient(cuts):
    """Ranks and accumulation steps average their gradients; that must be one process's gradient."""
    given = inputs()
    leaves = [given["prediction"].requires_grad_(), given["mask_logits"].requires_grad_()]
    whole = torch.autograd.grad(call(given).loss, leaves)
    rows = torch.arange(6).split(cuts)
    parts = [call({name: value[i] for name, value in given.items()}).loss for i in rows]
    split = torch.autograd.grad(torch.stack(parts).mean(), leaves)
    for one, other in zip(whole, split):
        torch.testing.assert_close(one, other)


def test_an_unknown_region_is_refused():
    with pytest.raises(ValueError, match="neither 'hole' nor 'full'"):
        build("objective", {"name": "denoising", "region": "mask"})


def test_gradient_l1_ignores_a_constant_and_sees_an_edge():
    flat, edge = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    assert float(gradient_l1(flat + 0.7, flat)) == 0
    assert float(gradient_l1(edge, flat)) == pytest.approx(1 / 7)


def test_pseudo_huber_is_square_below_c_and_plain_above():
    objective = ConsistencyObjective(c=0.1)
    small, large = torch.tensor([1e-3, -1e-3]), torch.tensor([10.0, -10.0])
    torch.testing.assert_close(objective.error(small), small**2 / 0.2, rtol=1e-3, atol=0)
    torch.testing.assert_close(objective.error(large), large.abs() - 0.1, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="c must be above 0, not 0"):
        ConsistencyObjective(c=0)
