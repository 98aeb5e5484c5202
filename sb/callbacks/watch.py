"""The watchdog: a process that gets nowhere ends with a line that says where it stood, instead of hanging."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from sb.callbacks.preempt import end_at_once, launched_by_lightning
from sb.registry import register

POLL_S = 1.0
END_S = 30.0  # for the teardown of a rank that failed, which may wait for ranks that are gone
Reads = Callable[[], tuple[str, str, float] | None]


@register("callback", "watch")
class Watch(Callback):
    """Ends the process, with one line on stderr and exit code 1, where a loader process has been reading one shard for
    more than ``stall_s`` seconds, where no training step, validation batch or checkpoint has begun or ended for
    ``hang_s`` seconds, where the rank that launched this one is gone, and where a rank among several has failed and not
    ended within 30 seconds.

    longest_read, given at runtime: (who, shard, seconds) of the read that has been going on for longest, or None. A
    thread looks once a second; a step costs a few assignments.
    """

    def __init__(self, stall_s: float = 300.0, hang_s: float = 1800.0, longest_read: Reads | None = None):
        if not (stall_s > 0 and hang_s > 0):
            raise ValueError(f"watch: stall_s and hang_s must be above 0, not {stall_s} and {hang_s}")
        self.stall_s, self.hang_s, self.longest_read = stall_s, hang_s, longest_read
        self._doing, self._since = "starting", time.monotonic()
        self._parent = 0  # 0: it may go
        self._over = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._now("starting")
        self._parent = os.getppid() if launched_by_lightning(trainer) else 0
        self._over = threading.Event()
        threading.Thread(target=self._watch, args=(self._over, trainer, pl_module), name="watch", daemon=True).start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._over.set()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._over.set()
        if trainer.world_size > 1:
            code = exception.code if isinstance(exception, SystemExit) and isinstance(exception.code, int) else 1
            deadline = threading.Timer(END_S, _end, (trainer.global_rank, code))
            deadline.daemon = True
            deadline.start()

    def on_train_batch_start(self, *args: Any) -> None:
        self._now("in a training step")

    def on_train_batch_end(self, *args: Any) -> None:
        self._now("between two steps")

    def on_validation_start(self, *args: Any) -> None:
        self._now("at the start of a validation")

    def on_validation_batch_start(self, *args: Any) -> None:
        self._now("in a validation batch")

    def on_validation_batch_end(self, *args: Any) -> None:
        self._now("between two validation batches")

    def on_validation_end(self, *args: Any) -> None:
        self._now("after a validation")

    def on_save_checkpoint(self, *args: Any) -> None:
        self._now("in a checkpoint")

    def on_train_end(self, *args: Any) -> None:
        self._now("at the end of training")

    def _now(self, doing: str) -> None:
        self._doing, self._since = doing, time.monotonic()

    def _watch(self, over: threading.Event, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        while not over.wait(min(POLL_S, self.stall_s, self.hang_s)):
            trouble = self._trouble(trainer, pl_module)
            if trouble and not over.is_set():
                os.write(2, f"error: {trouble}\n".encode())  # sys.stderr has a lock, which a stuck thread may hold
                end_at_once(1)

    def _trouble(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str | None:
        """What is wrong at this moment, in one line."""
        rank = f"rank {trainer.global_rank}: "
        if self._parent and os.getppid() != self._parent:
            return f"{rank}rank {trainer.global_rank - trainer.local_rank}, which launched it, is gone"
        read = self.longest_read() if self.longest_read is not None else None
        if read is not None and read[2] > self.stall_s:
            who, shard, seconds = read
            return (
                f"{rank}{who} has been reading {shard} for {seconds:.0f} s, more than watch.stall_s {self.stall_s:g}: "
                "its storage does not answer"
            )
        if time.monotonic() - self._since > self.hang_s:
            return (
                f"{rank}no progress for more than {self.hang_s:g} s (watch.hang_s), {self._doing}, after "
                f"{int(pl_module.images_seen):,} images: another rank may be dead"  # type: ignore[arg-type]
            )
        return None


def _end(rank: int, code: int) -> None:
    os.write(2, f"error: rank {rank}: not ended {END_S:g} s after it stopped: another rank may be dead\n".encode())
    end_at_once(code)
