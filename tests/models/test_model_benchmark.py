"""The benchmark beside diffusers and transformers: that both sides compute the same, never how fast."""

import math

import pytest
import torch

from sb.models.model_benchmark import PARTS, benchmark_model
from sb.models.model_pairs import SIZES, unet_pair

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.mark.slow
def test_both_sides_compute_the_same_and_every_figure_makes_sense():
    lines = []
    found = benchmark_model("tiny", batch=2, passes=2, device="cpu", report=lines.append)
    rows = {name: row for name, row in found.items() if not name.startswith("matmul_gflops/")}
    models = ("unet/forward", "unet/step", "vae/forward", "text/forward")
    assert set(rows) == {f"{model}/{dtype}" for model in models for dtype in ("fp32", "bf16")}
    assert set(found) - set(rows) == {"matmul_gflops/fp32", "matmul_gflops/bf16"}
    assert len(lines) == 1 + len(rows)
    for name, row in rows.items():
        assert {"ours_ms", "theirs_ms", "ratio", "gflop", "share_of_peak", "difference"} <= set(row)
        assert all(math.isfinite(value) and value >= 0 for value in row.values())
        assert min(row[key] for key in ("ours_ms", "theirs_ms", "ratio", "gflop")) > 0
        assert 0 < row["share_of_peak"] < 1.5
        assert row["difference"] < (1e-4 if name.endswith("fp32") else 0.1)
    for dtype in ("fp32", "bf16"):
        assert rows[f"unet/step/{dtype}"]["gflop"] > 2 * rows[f"unet/forward/{dtype}"]["gflop"]


def test_stable_diffusion_1_is_diffusers_unet_parameter_by_parameter():
    pair = unet_pair(SIZES["sd1"], 8, 1, torch.device("meta"))
    assert sum(parameter.numel() for parameter in pair.parameters) == 859_520_964


@pytest.mark.parametrize("wrong, says", [
    ({"size": "huge"}, "size 'huge' is none of sd1, quickstart, tiny"),
    ({"parts": ["unet", "nose"]}, f"part 'nose' is none of {', '.join(PARTS)}"),
    ({"size": "tiny", "latent": 7}, "multiple of 2"),
])
def test_what_cannot_be_measured_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        benchmark_model(**wrong)
