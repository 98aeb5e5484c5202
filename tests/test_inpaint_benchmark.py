"""The benchmark of requests: who takes part and that its figures hang together; never how fast."""

import pytest

from sb.inpaint_benchmark import SIZES, benchmark_inpainting


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "small", {
        "vae": {"name": "kl", "channels": 8, "multipliers": [1, 1], "blocks": 1, "norm_groups": 4},
        "text": {"name": "clip", "width": 16, "layers": 1, "heads": 2, "quick_gelu": True, "pad": "eos"},
        "denoiser": {"widths": [16, 32], "blocks": 1, "heads": 2, "groups": 8, "attention": [False, True]},
    })


def test_diffusers_comes_first_and_ours_beside_it(tiny):
    pytest.importorskip("diffusers")
    lines = []
    found = benchmark_inpainting(None, ["less: steps=1"], size_px=32, steps=2, passes=2, device="cpu",
                                 report=lines.append)
    assert list(found) == ["diffusers", "ours", "less"] and found["diffusers"]["faster"] == 1
    assert all(row["ms"] > 0 and row["faster"] > 0 for row in found.values()) and lines[-1] == "pass 2 of 2"


def test_ways_of_a_model(trained_model):
    found = benchmark_inpainting(str(trained_model), ["default", "less: steps=1"], passes=1, device="cpu", report=print)
    assert list(found) == ["default", "less"]


@pytest.mark.parametrize("given, says", [
    ({"size": "huge"}, "benchmark: size 'huge' is none of sd1, small"), ({"passes": 0}, "passes must be at least 1"),
    ({"ways": ["a: b"]}, "option 'b' must read key=value"),
])
def test_what_does_not_fit_is_one_line(given, says):
    with pytest.raises(ValueError, match=says):
        benchmark_inpainting(**{"model": None, "ways": [], "report": print, **given})
