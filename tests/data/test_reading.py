"""What a loader reads is seen from the process that waits for it."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from sb.data.pipeline import FixedStream, Look, Samples, ShardLoader
from sb.data.reading import ReadingTable
from sb.data.shards import ShardStore
from sb.data.tasks import TaskContext, TextToImageTask


def reader(folder):
    return Samples([ShardStore(folder)], [1.0], [TextToImageTask(TaskContext([1.0] * 6))], [1.0], Look(24), seed=0)


def until(holds):
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert holds()


def _read(table):
    table.begin(1, 2, 3)
    time.sleep(30)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_read_in_another_process_is_seen_until_it_ends(method):
    table = ReadingTable(2)
    assert table.longest() is None
    process = multiprocessing.get_context(method).Process(target=_read, args=(table,), daemon=True)
    process.start()
    until(table.longest)
    time.sleep(0.1)
    worker, source, shard, seconds = table.longest()
    assert (worker, source, shard) == (1, 2, 3) and 0.05 < seconds < 20
    table.begin(0, 0, 0)
    assert table.longest().worker == 1  # the longer one
    table.end(1)
    assert table.longest().worker == 0
    table.clear()
    assert table.longest() is None
    process.kill()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_does_not_answer_is_named(tmp_path, tiny, workers):
    samples = reader(tiny.set(tmp_path / "set", [4, 4]))
    shard = tmp_path / "set" / "shard-000001.tar"
    shard.rename(tmp_path / "aside.tar")
    os.mkfifo(shard)
    loader = ShardLoader(FixedStream(samples, 8, 4), lambda: 2, workers=workers)
    assert loader.longest_read() is None
    consumer = threading.Thread(target=lambda: next(iter(loader)), daemon=True)
    consumer.start()
    until(loader.longest_read)
    time.sleep(0.2)
    who, address, seconds = loader.longest_read()
    assert who == ("loader process 0" if workers else "the loader") and address == str(shard) and seconds > 0.1
    os.close(os.open(shard, os.O_WRONLY))  # it answers, with nothing in it
    consumer.join(20)
    until(lambda: loader.longest_read() is None)


def test_loader_processes_outlive_the_signals_of_a_cluster(tmp_path, tiny):
    loader = ShardLoader(FixedStream(reader(tiny.set(tmp_path, [4, 4])), 8, 2), lambda: 4, workers=2)
    batches = iter(loader)
    keys = list(next(batches).key)
    for process in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(process.pid, number)
    keys += [key for batch in batches for key in batch.key]
    assert len(set(keys)) == 8
