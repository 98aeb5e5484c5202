"""What a lost loader process and a lost rank look like to a user."""

import os
import re
import signal
import time

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from sb.faults import explain


class Dying(IterableDataset):
    def __iter__(self):
        yield 1
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loader_process_is_one_line():
    with pytest.raises(RuntimeError) as error:
        for _ in DataLoader(Dying(), num_workers=1, batch_size=None):
            time.sleep(0.1)
    line = explain(error.value)
    assert re.search(r"is (gone|dead \(Killed\)), mostly for lack of memory: lower data.workers", line), line
    assert "\n" not in line


@pytest.mark.parametrize("error", [
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"),
    torch.distributed.DistBackendError("NCCL error in: a.cpp:1, remote process exited\nor there was a network error"),
])
def test_a_lost_rank_is_one_line(error):
    line = explain(error)
    assert line.startswith("rank ?: lost contact with another rank") and "\n" not in line


@pytest.mark.parametrize("error, says", [
    (torch.OutOfMemoryError("CUDA out of memory;\nsee the NCCL docs"), "out of memory: .*lower data.batch_size"),
    (MisconfigurationException("no such\nthing"), "^no such thing$"),
])
def test_what_the_machine_or_lightning_refuses_is_one_line(error, says):
    assert re.search(says, explain(error)) and "\n" not in explain(error)


def test_other_errors_are_not_explained_away():
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
