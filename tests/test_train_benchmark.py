"""The benchmark of whole training loops: both sides train, and its figures hang together; never how fast."""

import math

import pytest

from sb import train_benchmark
from sb.train_benchmark import Setup, benchmark_training

pytest.importorskip("diffusers")


@pytest.mark.parametrize("tuned", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_both_sides_train_and_the_figures_hang_together(tuned, monkeypatch):
    trained = []

    def spied(make):
        def made(*given):
            found = make(*given)
            module = found[1] if isinstance(found, tuple) else found.denoiser
            trained.append((module, [p.detach().clone() for p in module.parameters()]))
            return found
        return made

    for name in ("_their_step", "_system"):
        monkeypatch.setattr(train_benchmark, name, spied(getattr(train_benchmark, name)))
    monkeypatch.setattr(train_benchmark, "matmul_rate", lambda device, dtype: 1e11)
    lines = []
    found = benchmark_training(
        size="tiny", batch=2, steps=2, passes=2, device="cpu", tuned=tuned, report=lines.append
    )
    assert len(trained) == 2 and len(lines) == 1 + 2
    for module, before in trained:
        assert any(not (a == b).all() for a, b in zip(module.parameters(), before, strict=True))
    for name in ("ours", "theirs"):
        row = found[name]
        assert all(math.isfinite(value) and value > 0 for value in row.values())
        assert row["images_per_s"] == pytest.approx(2 / row["ms"] * 1e3)
        assert row["share_of_peak"] == pytest.approx(row["gflop"] / row["ms"] * 1e3 / 100)
    assert found["ours"]["gflop"] == pytest.approx(found["theirs"]["gflop"], rel=0.1)
    assert sum(found["profile"].values()) == pytest.approx(1, abs=0.2)


def test_stable_diffusions_size_gets_a_mask_in_and_out():
    assert Setup("sd1").about["in_channels"] == 5 and Setup("sd1").about["mask_head"] == 1
    assert Setup("sd1").latent == 64 and Setup("sd1", latent=32).latent == 32


@pytest.mark.parametrize("wrong, says", [
    ({"size": "huge"}, "size 'huge' is none of"), ({"latent": 7}, "latent must be a multiple of 2"),
    ({"steps": 0}, "at least 1"),
])
def test_what_does_not_fit_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Setup(**{"size": "tiny", **wrong})
