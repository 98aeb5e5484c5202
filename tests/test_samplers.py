"""Samplers against the probability-flow ODE of a Gaussian, whose denoiser and solution are known exactly."""

import pytest
import torch

from sb.guidance import combine
from sb.registry import build
from sb.types import Denoised

SAMPLERS = ["ddim", "dpmpp_2m", "unipc", "euler"]
SCHEDULES = {
    "scaled_linear": {"name": "scaled_linear", "prediction": "v"},
    "zero_terminal": {"name": "scaled_linear", "prediction": "v", "zero_terminal_snr": True},
    "cosine_zero": {"name": "cosine", "prediction": "v", "zero_terminal_snr": True},
    "flow": {"name": "flow"},
    "flow_shift": {"name": "flow", "shift": 3.0},
}
MEAN, SPREAD = 0.7, 0.5


def gaussian(schedule):
    """The exact denoiser of data from N(MEAN, SPREAD^2): the posterior mean of x0."""

    def denoise(x, t):
        assert t.dtype == torch.int64 and t.shape == (x.shape[0],)
        alpha, sigma = schedule.at(t, x)
        gain = SPREAD**2 * alpha / (alpha**2 * SPREAD**2 + sigma**2)
        return Denoised(MEAN + gain * (x - alpha * MEAN), None)

    return denoise


def error(name, schedule, steps):
    """Largest distance from the ODE's solution, started at the schedule's last level."""
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    alpha, sigma = schedule.alpha[len(schedule) - 1], schedule.sigma[len(schedule) - 1]
    answer = MEAN + SPREAD * (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    found = build("sampler", {"name": name, "steps": steps}, denoise=gaussian(schedule), x=x, schedule=schedule)
    return float((found - answer).abs().max())


@pytest.mark.parametrize("key", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_reach_the_known_answer(name, key):
    schedule = build("schedule", SCHEDULES[key])
    assert error(name, schedule, 1000) < 0.02
    assert error(name, schedule, 200) < error(name, schedule, 20) < error(name, schedule, 5)


@pytest.mark.parametrize("key", SCHEDULES)
def test_the_second_order_sampler_needs_fewer_steps(key):
    schedule = build("schedule", SCHEDULES[key])
    assert error("dpmpp_2m", schedule, 10) < error("ddim", schedule, 10)
    assert error("dpmpp_2m", schedule, 20) < 0.7 * error("ddim", schedule, 20)


@pytest.mark.parametrize("key", SCHEDULES)
def test_the_corrector_brings_fewer_steps_still_closer(key):
    schedule = build("schedule", SCHEDULES[key])
    for steps in (5, 8):
        assert error("unipc", schedule, steps) < error("dpmpp_2m", schedule, steps)


@pytest.mark.parametrize("name, peer, options", [
    ("dpmpp_2m", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "lower_order_final": True}),
    ("unipc", "UniPCMultistepScheduler", {"solver_type": "bh2", "lower_order_final": True}),
])
def test_steps_are_those_of_diffusers(name, peer, options):
    diffusers = pytest.importorskip("diffusers")
    schedule = build("schedule", {"name": "scaled_linear", "prediction": "v"})
    theirs = getattr(diffusers, peer)(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="sample", solver_order=2, final_sigmas_type="zero", **options,
    )
    times = schedule.walk(8)
    theirs.set_timesteps(8)
    theirs.timesteps = torch.tensor(times[:-1])
    theirs.sigmas = torch.stack([schedule.sigma[t] / schedule.alpha[t] for t in times])
    denoise = gaussian(schedule)
    x = start = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    for t in times[:-1]:
        x = theirs.step(denoise(x, torch.full((2,), t)).x0, t, x).prev_sample
    ours = build("sampler", {"name": name, "steps": 8}, denoise=denoise, x=start, schedule=schedule)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", SCHEDULES)
def test_ddim_is_eulers_method(key):
    schedule = build("schedule", SCHEDULES[key])
    x = torch.randn(2, 4, 5, 5)
    ddim, euler = (
        build("sampler", {"name": n, "steps": 7}, denoise=gaussian(schedule), x=x, schedule=schedule)
        for n in ("ddim", "euler")
    )
    torch.testing.assert_close(ddim, euler, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("key", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_denoise_holds_fixed_comes_out_bit_for_bit(name, key, steps):
    schedule = build("schedule", SCHEDULES[key])
    c = torch.randn(2, 4, 3, 3)
    times = []

    def denoise(x, t):
        assert bool(torch.isfinite(x).all())
        times.append(t.tolist())
        return Denoised(c.clone(), None)

    x = torch.randn(2, 4, 3, 3)
    found = build("sampler", {"name": name, "steps": steps}, denoise=denoise, x=x, schedule=schedule)
    assert torch.equal(found, c) and found.dtype == torch.float32
    assert times == [[t, t] for t in schedule.walk(steps)[:-1]]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_start_noise_decides_and_nothing_else(name):
    schedule = build("schedule", SCHEDULES["zero_terminal"])
    x = torch.randn(4, 4, 3, 3)
    run = [
        build("sampler", {"name": name, "steps": 6}, denoise=gaussian(schedule), x=start, schedule=schedule)
        for start in (x, x, x[1:2])
    ]
    assert torch.equal(run[0], run[1])
    torch.testing.assert_close(run[0][1:2], run[2], rtol=0, atol=0)


def test_guidance_extrapolates_x0_and_leaves_the_logits_alone():
    cond = Denoised(torch.full((1, 4, 2, 2), 3.0), torch.ones(1, 1, 2, 2))
    null = Denoised(torch.full((1, 4, 2, 2), 1.0), torch.zeros(1, 1, 2, 2))
    for scale in (0.0, 1.0, 2.5, 7.0):
        both = combine(cond, null, scale)
        assert torch.equal(both.x0, torch.full((1, 4, 2, 2), 1.0 + 2.0 * scale))
        assert both.mask_logits is cond.mask_logits
    assert combine(cond, null, 1.0).x0 is cond.x0
