"""Noise schedules: published values, the algebra of predictions, min-SNR weights, walks and draws."""

import pytest
import torch

from sb.registry import build

SCHEDULES = [
    {"name": "scaled_linear"},
    {"name": "scaled_linear", "zero_terminal_snr": True},
    {"name": "cosine"},
    {"name": "cosine", "zero_terminal_snr": True},
    {"name": "flow"},
    {"name": "flow", "shift": 3.0},
]


def made(spec, prediction, **more):
    return build("schedule", {**spec, "prediction": prediction, **more})


def allowed():
    for spec in SCHEDULES:
        for prediction in ("eps", "v", "x0", "flow"):
            zero_at_the_end = spec.get("zero_terminal_snr") or spec["name"] == "flow"
            if not (prediction == "eps" and zero_at_the_end):
                yield pytest.param(spec, prediction, id="-".join(map(str, (*spec.values(), prediction))))


@pytest.mark.parametrize("spec, prediction", list(allowed()))
def test_prediction_round_trips(spec, prediction):
    """The target read back as x0 is x0, and as eps is eps, at low, middle and highest noise."""
    schedule = made(spec, prediction)
    x0, eps = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3)
    t = torch.tensor([100, 500, 800, 980, len(schedule) - 1])
    x = schedule.mix(x0, eps, t)
    back = schedule.x0_of(x, schedule.target(x0, eps, t), t)
    torch.testing.assert_close(back, x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(schedule.eps_of(x, x0, t), eps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", SCHEDULES, ids=str)
def test_tables_are_fp32_distinct_and_fall(spec):
    schedule = made(spec, "v")
    assert schedule.alpha.dtype == schedule.sigma.dtype == torch.float32 and len(schedule) == 1000
    alpha, sigma = schedule.alpha[:-1], schedule.sigma[:-1]
    assert bool((alpha.diff() < 0).all()) and bool((sigma.diff() >= 0).all())
    assert float(schedule.alpha[-1]) == 1 and float(schedule.sigma[-1]) == 0
    if spec["name"] != "flow":
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))
    else:
        torch.testing.assert_close(alpha + sigma, torch.ones(1000))


def test_stable_diffusions_published_values():
    abar = made({"name": "scaled_linear"}, "eps").alpha.square()
    assert float(abar[0]) == pytest.approx(0.99915, abs=1e-6)
    assert float(abar[999]) == pytest.approx(0.0047, abs=5e-5)


@pytest.mark.parametrize("name", ["scaled_linear", "cosine"])
def test_zero_terminal_snr_ends_exactly_at_noise(name):
    plain, zero = (made({"name": name}, "v", zero_terminal_snr=z) for z in (False, True))
    assert float(zero.alpha[999]) == 0.0 and float(zero.sigma[999]) == 1.0
    assert float(zero.alpha[0]) == pytest.approx(float(plain.alpha[0]), abs=1e-6)
    assert float(plain.alpha[999]) > 0
    x0, eps = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    assert torch.equal(zero.mix(x0, eps, torch.tensor([999])), eps)


def test_the_clean_end_is_clean():
    schedule = made({"name": "scaled_linear"}, "v")
    x0, eps = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    assert torch.equal(schedule.mix(x0, eps, torch.tensor([-1, -1])), x0)


@pytest.mark.parametrize("spec", [SCHEDULES[1], SCHEDULES[3], SCHEDULES[4]], ids=str)
def test_eps_with_zero_terminal_snr_is_refused(spec):
    with pytest.raises(ValueError, match="zero terminal SNR; use prediction: v"):
        made(spec, "eps")


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'noise' is none of eps, v, x0, flow"):
        made({"name": "cosine"}, "noise")


@pytest.mark.parametrize(
    "prediction, weight",
    [
        ("eps", lambda snr: snr.clamp(max=5) / snr),
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
        ("x0", lambda snr: snr.clamp(max=5)),
    ],
)
def test_min_snr_weights_known_answers(prediction, weight):
    schedule = made({"name": "scaled_linear"}, prediction)
    t = torch.arange(0, 1000, 37)
    abar = schedule.alpha[t].double().square()
    snr = (abar / (1 - abar)).float()
    torch.testing.assert_close(schedule.snr(t), snr, rtol=2e-3, atol=0)
    torch.testing.assert_close(schedule.min_snr_weight(t, 5.0), weight(snr), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("spec, prediction", list(allowed()))
def test_min_snr_counts_x0_errors_alike_for_every_prediction(spec, prediction):
    """An error d of x0 costs min(SNR, gamma) * d^2, whatever the network predicts."""
    schedule = made(spec, prediction)
    t = torch.tensor([50, 300, 700, 950])
    x0, eps, d = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), 0.5
    x = schedule.mix(x0, eps, t)
    wrong = schedule.target(x0 + d, schedule.eps_of(x, x0 + d, t), t)  # what a network off by d in x0 would say
    error = (wrong - schedule.target(x0, eps, t)).square().mean(dim=(1, 2, 3))
    cost = error * schedule.min_snr_weight(t, 5.0)
    torch.testing.assert_close(cost, schedule.snr(t).clamp(max=5.0) * d * d, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 333, 800, 999, 1000])
def test_walks_fall_from_the_top_to_the_clean_end(steps):
    walk = made({"name": "cosine"}, "v").walk(steps)
    assert len(walk) == steps + 1 and walk[0] == 999 and walk[-1] == -1
    assert all(now > after for now, after in zip(walk, walk[1:]))


def test_a_walk_of_no_steps_is_refused():
    schedule = made({"name": "cosine"}, "v")
    for steps in (0, -3, 1001):
        with pytest.raises(ValueError, match="steps must be 1 to 1000"):
            schedule.walk(steps)


def test_draws_are_stratified_and_come_from_the_generator():
    schedule = made({"name": "cosine"}, "v")
    draws = [schedule.draw(20, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].dtype == torch.int64
    assert torch.equal(draws[0].sort().values // 50, torch.arange(20))
    assert not torch.equal(draws[0], draws[0].sort().values)


def test_flow_shift_moves_levels_to_high_noise():
    plain, shifted = made({"name": "flow"}, "flow"), made({"name": "flow"}, "flow", shift=3.0)
    assert float(shifted.sigma[499]) == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))
    assert float(plain.sigma[499]) == pytest.approx(0.5)
