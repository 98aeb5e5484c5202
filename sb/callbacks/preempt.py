"""Signals: a run that is told to go saves after its next step, asks to be started again, and leaves."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, distributed

from sb.callbacks.save import Save
from sb.config import write_whole
from sb.registry import register

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 85  # "start me again"; with a signal at once instead, 128 + its number
TOGETHER_S = 2.0  # signals this close are one: a scheduler tells every process, and a launcher its children again


class Preempted(SystemExit):
    """The run is saved and can be continued: the process ends with 85."""


@register("callback", "preempt")
class Preempt(Checkpoint):
    """On SIGTERM or SIGUSR1: ``last.ckpt`` at the next optimizer step of all ranks, the file ``run_dir/REQUEUE``, exit
    code 85. A second signal, two seconds or more after the first, ends the process at once, and so does the first while
    the run still starts, with ``REQUEUE`` and 85: there is nothing new to save.

    Any rank may be told; a number is agreed on in the background between one optimizer step (or validation batch) and
    the next, over gloo, so that no GPU waits for it. Nothing happens in a run without ``save``. Being one of
    Lightning's Checkpoint callbacks it runs after those that train and log; Lightning's own handling of signals, and
    its own requeueing under SLURM, are put out of action.
    """

    def __init__(self, run_dir: str | Path):
        self.requeue = Path(run_dir) / "REQUEUE"
        self._save: Save | None = None
        self._told = 0  # the first signal's number
        self._saved = False
        self._step = 0
        self._stepped = False  # nothing is half accumulated
        self._group: Any = None
        self._asked: tuple[Any, Tensor] | None = None
        self._ears: tuple[int, int] | None = None  # the wake-up descriptors: the one before ours, and ours
        self._before: dict[signal.Signals, Any] = {}  # the handlers before ours
        self._starting = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen from here on."""
        if stage != "fit":
            return
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._save = next((callback for callback in callbacks if isinstance(callback, Save)), None)
        if self._save is None or threading.current_thread() is not threading.main_thread():
            return
        if trainer.is_global_zero:
            self.requeue.unlink(missing_ok=True)
        trainer.strategy.barrier("requeue")  # who listens may write it
        self._starting, self._told = True, 0
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        self._ears = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False), mouth
        self._before = {number: signal.signal(number, _woken) for number in SIGNALS}
        threading.Thread(target=self._listen, args=(ear, trainer), name="signals", daemon=True).start()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take Lightning's handlers, which are up by now, down again, and save before leaving from here on."""
        self._step = trainer.global_step
        if self._ears is None:
            return
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")
        # Lightning asks all ranks before every step whether rank 0 has had a SIGTERM, and waits for the GPU to answer
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        for number in SIGNALS:
            signal.signal(number, _woken)
        self._starting = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave after an optimizer step: half-accumulated gradients are in no checkpoint."""
        self._stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        self._look(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave in the middle of a validation."""
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is asked now comes too late: the run is complete."""
        if self._asked is not None:
            self._asked[0].wait()
        self._close(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._close(trainer)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stepped and self._ears is not None and self._agreed():
            self._leave(trainer, pl_module)

    def _agreed(self) -> int:
        """A signal that some rank had at the last look, the same answer on every rank; 0 for none."""
        if self._group is None:
            return self._told
        answer = 0
        if self._asked is not None:
            work, told = self._asked
            work.wait()
            answer = int(told)
        told = torch.tensor(self._told, dtype=torch.int32)
        work = distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = work, told
        return answer

    def _leave(self, trainer: L.Trainer, pl_module: L.LightningModule) -> NoReturn:
        assert self._save is not None
        self._save.save_now(trainer, pl_module)
        images = int(pl_module.images_seen)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            write_whole(self.requeue, f"{images}\n".encode())
        trainer.strategy.barrier("preempt")  # whoever leaves first may take the others down
        self._saved = True
        if trainer.is_global_zero:
            print(f"stopped by a signal after {images:,} images, saved; resume=auto continues", file=sys.stderr)
        raise Preempted(0 if launched_by_lightning(trainer) else EXIT_CODE)

    def _leave_early(self, trainer: L.Trainer, number: int) -> NoReturn:
        write_whole(self.requeue, b"0\n")
        os.write(2, b"stopped by a signal before training began; resume=auto starts it again\n")
        if not launched_by_lightning(trainer):
            end_at_once(EXIT_CODE)
        os.kill(os.getppid(), number)
        end_at_once(0)

    def _listen(self, ear: int, trainer: L.Trainer) -> None:
        """In a thread: the main one may be deep in a collective that never ends when the second signal comes."""
        first = 0.0
        while True:
            for number in os.read(ear, 64):
                if number == 0:
                    os.close(ear)
                    return
                if number not in SIGNALS:
                    continue
                if self._starting:
                    self._leave_early(trainer, number)
                if not self._told:
                    self._told, first = number, time.monotonic()
                elif time.monotonic() - first >= TOGETHER_S:
                    end_at_once(EXIT_CODE if self._saved else 128 + number)

    def _close(self, trainer: L.Trainer) -> None:
        if self._ears is not None:
            before, mouth = self._ears
            self._ears = None
            # what Lightning's teardown puts back: it came after ours
            trainer._signal_connector._original_handlers.update(self._before)  # type: ignore[arg-type]
            signal.set_wakeup_fd(before)
            os.write(mouth, b"\0")
            os.close(mouth)


def launched_by_lightning(trainer: L.Trainer) -> bool:
    """Whether rank 0 started this process: it speaks for it, and is killed where it ends with another code than 0."""
    environment = trainer._accelerator_connector.cluster_environment
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def end_at_once(code: int) -> NoReturn:
    """End this process, whatever its threads do, and its loader processes with it."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def _nothing() -> None:
    """In the place of what this callback does better."""


def _woken(number: int, frame: Any) -> None:
    """Python must have a handler for the descriptor to be written to; the thread that reads it does the rest."""
