"""The loading benchmark: its figures are there and hang together."""

import sys

import pytest

from sb import load_benchmark


def test_figures_of_a_file_it_makes_itself(monkeypatch):
    monkeypatch.setattr(load_benchmark, "SD1", {
        "vae": {"name": "kl", "channels": 32, "multipliers": [1, 1]},
        "text": {"name": "clip", "width": 32, "layers": 1, "heads": 1, "quick_gelu": True, "pad": "eos"},
        "denoiser": {"name": "unet", "widths": [32, 64], "attention": [True, False], "with_level": False,
                     "with_mask_head": False},
        "conditioning": {"name": "plain"},
    })
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    lines: list[str] = []
    figures = load_benchmark.benchmark_loading(None, 2, lines.append)
    assert figures.keys() == {"gib", "copy_s", "load_s", "ratio", "peak_anonymous_per_byte"}
    assert all(value > 0 for value in figures.values()) and len(lines) == 3
    assert figures["peak_anonymous_per_byte"] > 0.9  # it really is in memory


def test_no_passes_are_refused_before_anything_is_made():
    with pytest.raises(ValueError, match="passes of at least 1, not 0"):
        load_benchmark.benchmark_loading(None, 0, print)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="no weights at .*missing"):
        load_benchmark.benchmark_loading(tmp_path / "missing.safetensors", 1, print)
