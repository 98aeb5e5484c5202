"""What the processes of a loader are reading at this moment, seen from the main process."""

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Read(NamedTuple):
    """A read that is going on: by which worker, of which shard of which source, for how long."""

    worker: int
    source: int
    shard: int
    seconds: float


class ReadingTable:
    """A row (start, source, shard) for each of ``processes`` in shared memory; start is by the machine's steady clock.

    The one process of a loader without workers is number 0.
    """

    def __init__(self, processes: int = 1) -> None:
        self._table = torch.zeros(max(processes, 1), 3, dtype=torch.float64).share_memory_()
        self._rows: NDArray[np.float64] = self._table.numpy()

    def __getstate__(self) -> dict[str, Any]:
        return {"_table": self._table}  # a spawned worker gets the same memory; numpy would send a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._table = state["_table"]
        self._rows = self._table.numpy()

    def begin(self, worker: int, source: int, shard: int) -> None:
        """A read starts; the time comes last, for a row that has one is complete."""
        row = self._rows[worker]
        row[1], row[2] = source, shard
        row[0] = time.monotonic()

    def end(self, worker: int) -> None:
        """It is done."""
        self._rows[worker, 0] = 0.0

    def clear(self) -> None:
        """Forget the reads of processes that are gone."""
        self._rows[:] = 0.0

    def longest(self) -> Read | None:
        """The read that has been going on for longest."""
        now = time.monotonic()
        reads = [
            Read(worker, int(source), int(shard), now - start)
            for worker, (start, source, shard) in enumerate(self._rows.tolist()) if start
        ]
        return max(reads, key=lambda read: read.seconds, default=None)
