"""Training as a user runs it, stopped in every way there is: it ends soon, says why, and goes on as if it had not been.

SB_KILLS is the number of killed runs (2); ``python tests/kills.py`` runs more of them with a line for each.
"""

import os
import re
import signal
import time
from collections import Counter

import pytest
import torch

from tests.kills import MINI, WORLDS, Command, differences, end_group, killed, shards, uninterrupted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "127.0.0.1:0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(folder):
    """The run that was left alone, by world."""
    made = {}

    def of(world):
        if world not in made:
            made[world] = uninterrupted(world, folder)
        return made[world]

    return of


@pytest.fixture
def command(folder, tmp_path):
    """A run in the shapes world; ``with_launcher`` gives the same under torchrun."""
    def make(*overrides, launcher=()):
        return Command(tmp_path, [*shards("shapes", folder)[1], *overrides], launcher=list(launcher))

    return make


@pytest.mark.parametrize("number", range(int(os.environ.get("SB_KILLS", "2"))))
def test_killed_anywhere_and_continued_it_equals_the_run_left_alone(number, whole):
    world = WORLDS[number % 2]
    if world == "coco" and not MINI.is_dir():
        pytest.skip(f"real photos are not here ({MINI})")
    line = killed(whole(world), number)
    print(line)
    assert ": equal;" in line, line


def test_another_number_of_ranks_gives_every_sample_once(command):
    """One pass over the 96 samples: 32 by two ranks, 32 by one, 32 by two."""
    run = command("data.tasks=[{name: object, weight: 1.0}]", "trainer.val_every_images=96")
    for ranks, images in ((2, 32), (1, 64), (2, 96)):
        placed = [f"trainer.devices={ranks}", f"trainer.strategy={'ddp' if ranks > 1 else 'auto'}"]
        assert run.finish("resume=auto", f"trainer.images={images}", *placed) == 0, run.log()[-2000:]
    lines = run.lines(0) + run.lines(1)
    assert sorted(Counter(line["world"] for line in lines).items()) == [(1, 8), (2, 16)]
    keys = Counter(key for line in lines for key in line["keys"])
    assert len(keys) == 96 and set(keys.values()) == {1}


@pytest.mark.parametrize("number, who, launcher, code", [
    (signal.SIGTERM, "the first process", (), 85),
    (signal.SIGUSR1, "all", (), 85),
    (signal.SIGUSR1, "rank 1", TORCHRUN, 1),  # torchrun's own code for any worker that ends with another than 0
], ids=["SIGTERM", "SIGUSR1", "torchrun"])
def test_signalled_it_saves_and_continued_it_equals_the_run_left_alone(number, who, launcher, code, command, whole):
    run = command(launcher=launcher)
    process = run.start("resume=auto")
    run.wait_for_batch(process, 100)
    if who == "all":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if who == "the first process" else run.pids()[1], number)
    assert process.wait(60) == code, run.log()[-2000:]
    assert end_group(process, 30) < 30
    images = int((run.run_dir / "REQUEUE").read_text())
    checkpoint = torch.load(run.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["images_seen"] == images >= 104
    assert f"stopped by a signal after {images} images" in run.log()
    assert run.finish("resume=auto") == 0, run.log()[-2000:]
    assert not (run.run_dir / "REQUEUE").exists()
    assert differences(run, whole("shapes")[0]) == []
    first = run.lines(0)
    assert len(first) == len({line["images"] for line in first}), "a batch was repeated"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["lightning", "torchrun"])
def test_a_rank_that_dies_takes_the_job_with_it(rank, launcher, command):
    run = command(launcher=launcher)
    process = run.start()
    run.wait_for_batch(process, 40)
    os.kill(run.pids()[rank], signal.SIGKILL)
    started = time.monotonic()
    assert process.wait(60) != 0
    assert end_group(process, 60) + time.monotonic() - started < 60
    said = ("lost contact with another rank", "launched it, is gone", "terminated with code -9", "Signal 9 (SIGKILL)")
    assert any(words in run.log() for words in said), run.log()[-2000:]
    if launcher == ():
        assert "Traceback" not in run.log()


def test_a_shard_that_never_answers_is_named_within_its_limit(command):
    run = command("callbacks.watch.stall_s=2", "+callbacks.stuck={name: stuck_shard, number: 1}")
    process = run.start()
    run.wait_for_batch(process, 0)
    assert process.wait(60) != 0
    assert end_group(process, 30) < 30
    (line,) = {line for line in run.log().splitlines() if "has been reading" in line and "rank 0" in line} or {""}
    assert re.search(r"shard-000001.tar for \d s, more than watch.stall_s 2: its storage does not answer", line), line


def test_a_rank_that_stands_still_is_ended_and_says_so(command):
    run = command("callbacks.watch.hang_s=5", "+callbacks.stuck={name: stuck_rank, rank: 1, images: 40}")
    process = run.start()
    assert process.wait(120) != 0
    assert end_group(process, 30) < 30
    said = "no progress for more than 5 s (watch.hang_s), in a training step, after 40 images"
    assert said in run.log(), run.log()[-2000:]


def test_a_killed_loader_process_is_one_line(command):
    run = command("trainer.devices=1", "trainer.strategy=auto", "data.workers=1")
    process = run.start()
    run.wait_for_batch(process, 40)
    children = [int(pid) for pid in open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()]
    os.kill(children[-1], signal.SIGKILL)
    assert process.wait(60) == 2
    assert "error: a loader process (pid " in run.log() and "Traceback" not in run.log(), run.log()[-2000:]
