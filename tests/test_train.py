"""The training command as a user starts it: one process and two, on sound shards and on broken ones."""

import json

import pytest

from tests.test_tools import ROOT, tool


def test_errors_are_one_line_and_a_non_zero_exit(capsys):
    assert tool("train", ROOT / "configs" / "quickstart.yaml", "denoiser.widhts=[8]") == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "did you mean 'widths'" in error


@pytest.mark.slow
def test_two_ranks_train_on_a_stream_broken_in_five_ways(train, tiny_overrides, broken_set, tmp_path):
    """1 % of each: both ranks finish, and one pass over the 400 samples counts each of the 20 broken ones once."""
    done = train(
        *tiny_overrides, f"data.train=[{{shards: {broken_set}}}]", "data.tasks=[{name: object, weight: 1.0}]",
        "data.crop={min_context: 1.2, max_context: 2.0, min_side_px: null, max_zoom: 1.3}", "data.workers=1",
        "trainer.devices=2", "trainer.strategy=ddp", "trainer.images=400", "trainer.val_every_images=200",
        "callbacks.speed.every_images=8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "model" / "meta.json").read_text())["images_seen"] == 400

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    skipped = {
        tag.removeprefix("data/skipped_"): int(board.Scalars(tag)[-1].value)
        for tag in board.Tags()["scalars"] if tag.startswith("data/skipped_")
    }
    assert skipped == {"bad_image": 4, "bad_mask": 4, "missing_key": 4, "absurd_size": 4, "truncated": 4}
