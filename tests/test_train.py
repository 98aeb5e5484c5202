"""The training command as a user starts it: one process and two, on sound shards and on broken ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["vae.widths=8", "vae.blocks=1", "vae.weights=null", "denoiser.widths=[16,32]", "denoiser.blocks=1",
         "denoiser.attention=[false,true]", "denoiser.heads=2", "denoiser.groups=8",
         "text={name: tiny, width: 16, layers: 1, heads: 2}"]


def train(*overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/train.py", "configs/quickstart.yaml", *SMALL, *overrides],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path):
    done = train("denoiser.widhts=[8]")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean 'widths'" in done.stderr


@pytest.mark.slow
def test_two_ranks_train_on_broken_shards_without_hanging(tiny_overrides, shapes_shards, tmp_path):
    """A cut tar among the shards: both ranks finish, the replaced samples are counted."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for source in Path(shapes_shards["train"]).iterdir():
        content = source.read_bytes()
        cut = source.name == "shard-000001.tar"
        (broken / source.name).write_bytes(content[: int(len(content) * 0.9)] if cut else content)
    done = train(
        *tiny_overrides, f"data.train=[{{shards: {broken}}}]", "trainer.devices=2", "trainer.strategy=ddp",
        "trainer.images=96", "trainer.val_every_images=48", "data.max_broken_share=0.5", "data.workers=1",
        "callbacks.speed.every_images=8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    meta = json.loads((tmp_path / "run" / "model" / "meta.json").read_text())
    assert meta["images_seen"] == 96

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    skipped = [tag for tag in board.Tags()["scalars"] if tag.startswith("data/skipped")]
    assert "data/skipped_truncated" in skipped and board.Scalars("data/skipped_truncated")[-1].value > 0
