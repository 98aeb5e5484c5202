"""A signal: the run is saved at an optimizer step, asks to be started again, and goes on as if it had not stopped."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from sb.callbacks.ema import EMA
from sb.callbacks.preempt import Preempt, Preempted
from sb.callbacks.save import Save

STEPS = 9


def run(tiny, folder, told_at=None, where="hook", resume=False, number=signal.SIGTERM, keep=False, **options):
    """Train to the end, or until the signal that arrives in batch ``told_at``, in its step or its validation."""
    system, batches = tiny.System(), []

    def tell(*args):
        batches.append(1)
        if len(batches) == told_at:
            os.kill(os.getpid(), number)
            time.sleep(0.05)  # the thread that listens
        return args[-1]

    setattr(system, where, tell)
    callbacks = [
        Preempt(folder), EMA({"slow": {"half_life_images": 30, "warmup_share": 0.5}}, "slow"),
        *([] if keep is None else [Save(folder, 1000, monitor=None, keep_images=8 if keep else None)]),
    ]
    trainer = tiny.trainer(folder, callbacks, STEPS, **options)
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(system, tiny.Data(), ckpt_path=last if resume else None, weights_only=True)
    return system


def stopped(tiny, folder, **options):
    """The checkpoint that a signal left."""
    with pytest.raises(Preempted) as left:
        run(tiny, folder, **options)
    assert left.value.code == 85
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (folder / "REQUEUE").read_text() == f"{saved['images_seen']}\n"
    return saved


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("where, told_at, images", [("hook", 4, 16), ("val_hook", 3, 24)])
def test_a_signal_saves_this_step_and_the_run_goes_on_equal(tiny, tmp_path, number, where, told_at, images):
    straight = run(tiny, tmp_path / "straight")
    saved = stopped(tiny, tmp_path, told_at=told_at, where=where, number=number)
    assert saved["images_seen"] == images
    system = run(tiny, tmp_path, resume=True)
    assert not (tmp_path / "REQUEUE").exists()
    assert system.keys == straight.keys[images:]
    for a, b in zip(system.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    assert signal.getsignal(number) == signal.SIG_DFL  # Lightning's teardown takes ours away too


def test_half_accumulated_gradients_are_not_saved(tiny, tmp_path):
    """The third of them is followed by a validation, in which the signal is heard as well."""
    assert stopped(tiny, tmp_path, told_at=3, accumulate_grad_batches=2)["images_seen"] == 16


def test_a_checkpoint_that_is_due_is_written_too(tiny, tmp_path):
    stopped(tiny, tmp_path, told_at=2, keep=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert names == ["images-000000008.ckpt", "last.ckpt"]


def test_too_late_is_no_matter(tiny, tmp_path):
    """A run that is complete is not to be started again."""
    def tell(trainer, module):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    system = tiny.System()
    preempt = Preempt(tmp_path)
    save = Save(tmp_path, 1000, monitor=None)
    save.on_train_end, at_end = tell, save.on_train_end
    tiny.trainer(tmp_path, [save, preempt], 2).fit(system, tiny.Data())
    assert at_end and not (tmp_path / "REQUEUE").exists()


SCRIPT = """
    import sys, time
    from types import SimpleNamespace
    from sb.callbacks.preempt import Preempt
    from sb.callbacks.save import Save
    preempt = Preempt(sys.argv[1])
    trainer = SimpleNamespace(
        callbacks=[Save(sys.argv[1], 1)], global_step=0, is_global_zero=True, world_size=1, local_rank=0,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()), strategy=SimpleNamespace(barrier=lambda name: None),
        _accelerator_connector=SimpleNamespace(cluster_environment=None))
    preempt.setup(trainer, None, "fit")
    if sys.argv[2] == "training":
        preempt.on_train_start(trainer, None)
    print("ready", flush=True)
    time.sleep(60)
"""


def process_that_hangs(folder, when):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), when], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_while_it_starts_asks_for_another_start(tmp_path, number):
    (tmp_path / "REQUEUE").write_text("of an earlier time")
    process = process_that_hangs(tmp_path, "starting")
    assert not (tmp_path / "REQUEUE").exists()
    process.send_signal(number)
    assert process.wait(5) == 85 and (tmp_path / "REQUEUE").read_text() == "0\n"


def test_a_second_signal_ends_it_at_once_whatever_it_does(tmp_path):
    """The main thread is in a call that does not come back; two signals at the same time are one."""
    process = process_that_hangs(tmp_path, "training")
    for _ in range(2):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
    assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM
