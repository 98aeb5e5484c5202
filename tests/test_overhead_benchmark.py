"""The stopwatch adds up, and a run's own parts are the ones that it counts."""

from types import SimpleNamespace

import pytest

from sb.overhead_benchmark import REST, WAIT, Stopwatch, benchmark_overhead, summary


@pytest.fixture
def clock(monkeypatch):
    """A time that passes only where it is told to."""
    now = [0.0]
    monkeypatch.setattr("sb.overhead_benchmark.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def passes(seconds):
        now[0] += seconds

    return passes


def test_a_part_does_not_count_what_runs_inside_it(clock):
    watch = Stopwatch()
    inner = watch.timed("inner", lambda: clock(2))
    clock(1)
    with watch.part("outer"):
        clock(3)
        inner()
        clock(4)
    watch.lap()
    clock(5)
    watch.lap()
    assert watch.laps == [{REST: 1, "outer": 7, "inner": 2}, {REST: 5}]


def test_a_part_that_raises_is_closed(clock):
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.part("bad"):
        clock(1)
        raise KeyError
    clock(2)
    watch.lap()
    assert watch.laps == [{REST: 2, "bad": 1}]


def test_overhead_is_what_is_neither_work_nor_waiting():
    lap = {"denoiser": 40.0, "vae": 10.0, "text": 5.0, "backward": 30.0, "optimizer": 5.0, WAIT: 2.0, "ema": 3.0,
           REST: 5.0}
    found = summary([lap, lap, {**lap, "ema": 1000.0}])
    assert found["overhead"] == pytest.approx(0.08) and found["data_wait"] == pytest.approx(0.02)
    assert found["step_ms"] == pytest.approx(100e3) and found["steps"] == 3
    assert found["overhead_mean"] == pytest.approx(1 - 276 / 1297)
    assert list(found["ms"])[:2] == ["denoiser", "backward"] and found["ms"]["ema"] == 3e3


def test_a_run_is_measured_in_its_own_parts_and_leaves_nothing(tiny_overrides, tmp_path):
    small = ["vae.widths=8", "vae.blocks=1", "vae.weights=null", "denoiser.widths=[16,32]", "denoiser.blocks=1",
             "denoiser.attention=[false,true]", "denoiser.heads=2", "denoiser.groups=8", "trainer.accumulate=2",
             "text={name: tiny, width: 16, layers: 1, heads: 2}"]
    found = benchmark_overhead("configs/quickstart.yaml", [*tiny_overrides, *small], 3, 2, print)
    assert found["steps"] == 3 and 0 < found["overhead"] < 1 and 0 < found["data_wait"] < 1
    parts = {"denoiser", "vae", "text", "backward", "optimizer", WAIT, REST, "ladder", "conditioning", "noise",
             "objective", "clip", "callback ema", "callback guard", "callback speed"}
    assert parts <= found["ms"].keys() and min(found["ms"][part] for part in parts) > 0
    assert not (tmp_path / "run").exists()
