"""The benchmark of cached latents: both sides take the same steps, and its figures hang together."""

from pathlib import Path

import pytest

from sb import config
from sb.cache import cache_latents
from sb.cache_benchmark import benchmark_cached

RUN_FILE = str(Path(__file__).parents[1] / "configs" / "quickstart_cached.yaml")
SMALL = [
    "vae.weights=null", "vae.widths=8", "vae.blocks=1", "denoiser.widths=[16,32]", "denoiser.attention=[false,true]",
    "denoiser.blocks=1", "denoiser.heads=2", "denoiser.groups=8", "trainer.precision=bf16-mixed",
    "text={name: tiny, width: 16, layers: 1, heads: 2, weights: null}",
]


def test_both_sides_take_the_same_steps(tiny_overrides, shapes_shards, tmp_path):
    overrides = [*tiny_overrides, *SMALL]
    cache_latents(config.load(RUN_FILE, overrides), tmp_path / "latents", with_text=True, workers=0)
    cached, lines = [*overrides, f"data.train=[{{shards: {tmp_path}/latents}}]"], []
    cached.append("data.workers=2")
    figures = benchmark_cached(RUN_FILE, cached, shapes_shards["train"], steps=2, passes=2, report=lines.append)
    assert figures.pop("loss_difference") == 0 and figures.pop("steps_compared") == 7 and len(lines) == 2
    assert min(figures.values()) > 0 and figures["allowed"] > 1
    with pytest.raises(ValueError, match="must hold latents, and --pictures what they are made of"):
        benchmark_cached(RUN_FILE, overrides, shapes_shards["train"], steps=1, passes=1)
    with pytest.raises(ValueError, match="steps and passes of at least 1, not 0 and 1"):
        benchmark_cached(RUN_FILE, cached, shapes_shards["train"], steps=0, passes=1)
