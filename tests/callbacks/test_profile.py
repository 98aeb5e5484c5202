"""The profiler writes what it says, once, and what it may not record is refused."""

import gzip
import json

import pytest

from sb import config
from sb.callbacks.profile import Profile


def test_a_profile_is_a_trace_and_a_table(tmp_path, tiny):
    profile = Profile(tmp_path / "run", skip_batches=2, batches=2, rows=5)
    tiny.trainer(tmp_path, [profile], 8).fit(tiny.System(), tiny.Data())
    assert sorted(p.name for p in (tmp_path / "run" / "profile").iterdir()) == ["profile.txt", "trace.json.gz"]
    events = json.loads(gzip.open(tmp_path / "run" / "profile" / "trace.json.gz").read())["traceEvents"]
    steps = {e["name"] for e in events if str(e.get("name", "")).startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#1", "ProfilerStep#2"}  # the one before them warms up
    table = (tmp_path / "run" / "profile" / "profile.txt").read_text()
    assert "Self CPU" in table and table.count("aten::") <= 5


def test_a_run_that_ends_early_leaves_nothing_half_written(tmp_path, tiny):
    tiny.trainer(tmp_path, [Profile(tmp_path / "run", skip_batches=5)], 4).fit(tiny.System(), tiny.Data())
    assert not (tmp_path / "run").exists()


def test_a_profile_is_bounded(tmp_path):
    with pytest.raises(ValueError, match="1 to 50 batches"):
        Profile(tmp_path, batches=51)


def test_the_parent_adds_the_callback_to_a_run_file():
    cfg = config.load("configs/quickstart.yaml", ["configs/trainer/profile.yaml", "callbacks.profile.batches=3"])
    assert cfg.callbacks.profile == {"name": "profile", "skip_batches": 20, "batches": 3, "rows": 40}
    assert cfg.callbacks.ema.name == "ema"
