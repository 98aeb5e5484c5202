"""The watchdog speaks when nothing moves, and only then."""

import threading
import time
from types import SimpleNamespace

import pytest

from sb.callbacks import watch as module
from sb.callbacks.watch import Watch


@pytest.fixture
def ended(monkeypatch):
    """Exit codes and lines instead of the end of the process."""
    seen = []
    monkeypatch.setattr(module.os, "write", lambda file, line: seen.append(line.decode()))

    def end(code):
        seen.append(code)
        threading.Event().wait()

    monkeypatch.setattr(module, "end_at_once", end)
    return seen


def trainer(rank=0, lightning=False):
    from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    environment = LightningEnvironment() if lightning else TorchElasticEnvironment()
    connector = SimpleNamespace(cluster_environment=environment)
    return SimpleNamespace(global_rank=rank, local_rank=rank, _accelerator_connector=connector)


SYSTEM = SimpleNamespace(images_seen=3200)


def watched(callback, trainer, seconds=0.5):
    callback.setup(trainer, SYSTEM, "fit")
    time.sleep(seconds)
    callback.teardown(trainer, SYSTEM, "fit")


def test_a_read_that_takes_too_long_is_named(ended):
    read = ("loader process 1 of data.train", "a/shard-7.tar", 0.2)
    watched(Watch(stall_s=0.1, longest_read=lambda: read), trainer(1))
    assert ended == [
        "error: rank 1: loader process 1 of data.train has been reading a/shard-7.tar for 0 s, more than watch.stall_s "
        "0.1: its storage does not answer\n", 1,
    ]


def test_a_standstill_says_what_was_going_on(ended):
    callback = Watch(hang_s=0.2, longest_read=lambda: None)
    callback.setup(trainer(), SYSTEM, "fit")
    callback.on_train_batch_start(None, None, None, 0)
    time.sleep(0.6)
    assert ended[1:] == [1] and "rank 0: no progress for more than 0.2 s (watch.hang_s), in a training step" in ended[0]
    assert "after 3,200 images" in ended[0]


def test_progress_of_any_kind_keeps_it_quiet(ended):
    callback = Watch(hang_s=0.3, stall_s=5, longest_read=lambda: ("a", "b", 4.0))
    callback.setup(trainer(), SYSTEM, "fit")
    for hook in ("on_train_batch_start", "on_train_batch_end", "on_validation_start", "on_validation_batch_start",
                 "on_validation_batch_end", "on_validation_end", "on_save_checkpoint", "on_train_end"):
        time.sleep(0.15)
        getattr(callback, hook)(None, None)
    callback.teardown(None, None, "fit")
    time.sleep(0.5)
    assert ended == []


@pytest.mark.parametrize("rank, lightning, ends", [(1, True, True), (0, True, False), (1, False, False)])
def test_only_a_rank_that_lightning_launched_ends_with_its_parent(ended, monkeypatch, rank, lightning, ends):
    monkeypatch.setattr(module, "POLL_S", 0.05)
    parents = iter([10])
    monkeypatch.setattr(module.os, "getppid", lambda: next(parents, 1))
    watched(Watch(), trainer(rank, lightning))
    assert (ended == ["error: rank 1: rank 0, which launched it, is gone\n", 1]) is ends


@pytest.mark.parametrize("world, error, code", [(2, RuntimeError(), 1), (2, SystemExit(85), 85), (1, OSError(), None)])
def test_a_failed_rank_among_several_has_a_deadline(ended, monkeypatch, world, error, code):
    monkeypatch.setattr(module, "END_S", 0.1)
    Watch().on_exception(SimpleNamespace(world_size=world, global_rank=1), SYSTEM, error)
    assert ended == []
    time.sleep(0.4)
    line = "error: rank 1: not ended 0.1 s after it stopped: another rank may be dead\n"
    assert ended == ([] if code is None else [line, code])


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="must be above 0, not 300.0 and 0"):
        Watch(hang_s=0)
