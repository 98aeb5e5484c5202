"""A bounded queue in front of one painter thread: jobs that ask alike are painted in one batch.

The thread owns the device; everything else only puts jobs in and hears of them through ``tell``.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, NamedTuple

from sb.app.limits import Limits
from sb.inpaint import Inpainter
from sb.preview import Progress
from sb.types import Request, Result

log = logging.getLogger(__name__)


class Full(Exception):
    """The queue holds as many jobs as it may."""


class Abandoned(Exception):
    """Nobody waits for this batch any more."""


class Event(NamedTuple):
    """What a job's owner is told: ``progress`` with a Progress of its own requests, ``done`` with its results, or
    ``error`` with a line, or ``late`` where its time is up."""

    kind: Literal["progress", "done", "error", "late"]
    value: Any = None


@dataclass(eq=False)
class Job:
    """Requests of one client for one model with one set of options. ``tell`` is called from the painter's thread."""

    model: str
    requests: list[Request]
    options: Mapping[str, Any]
    tell: Callable[[Event], None]
    deadline: float = 0.0
    cancelled: bool = False
    key: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.model, tuple(sorted(self.options.items())), *{r.image.shape for r in self.requests})

    def over(self) -> bool:
        """Whether nobody waits for it, or too long."""
        return self.cancelled or time.monotonic() > self.deadline


class Jobs:
    """The queue and its thread; ``painted`` hears of every batch: model, pictures in it, seconds."""

    def __init__(
        self, models: Mapping[str, Inpainter], limits: Limits,
        painted: Callable[[str, int, float], None] = lambda model, pictures, seconds: None,
    ):
        self.models, self.limits, self.painted = models, limits, painted
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Job) -> int:
        """Queue a job; the number of jobs before it. Full where it finds no place, RuntimeError after ``close``."""
        with self._changed:
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
            if self._closed:
                raise RuntimeError("the queue is closed")
            if len(self._waiting) >= self.limits.queue:
                raise Full
            job.deadline = time.monotonic() + self.limits.seconds
            self._waiting.append(job)
            self._changed.notify()
            return len(self._waiting) - 1

    def close(self) -> None:
        """Answer what is being painted, tell the rest, end the thread."""
        with self._changed:
            self._closed = True
            left, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in left:
            job.tell(Event("error", "the server is shutting down"))
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                batch = self._take()
            if batch:
                self._paint(batch)

    def _take(self) -> list[Job]:
        """The first job and those that can be painted with it; jobs that are over are told so and left out."""
        batch: list[Job] = []
        kept: deque[Job] = deque()
        for job in self._waiting:
            if job.over():
                if not job.cancelled:
                    job.tell(Event("late"))
            elif not batch or (job.key == batch[0].key and self._fits(batch, job)):
                batch.append(job)
            else:
                kept.append(job)
        self._waiting = kept
        return batch

    def _fits(self, batch: list[Job], job: Job) -> bool:
        return sum(len(other.requests) for other in (*batch, job)) <= self.limits.batch

    def _paint(self, batch: list[Job]) -> None:
        requests = [request for job in batch for request in job.requests]
        owners = [job for job in batch for _ in job.requests]
        began = time.monotonic()

        def watch(progress: Progress) -> None:
            if all(job.over() for job in batch):
                raise Abandoned
            once = replace(progress, draw=cache(progress.draw))
            for job in {id(owners[place]): owners[place] for place in progress.places}.values():
                if not job.over():
                    job.tell(Event("progress", _own(once, [owner is job for owner in owners])))

        try:
            results = self.models[batch[0].model].paint(requests, watch=watch, **batch[0].options)
        except Abandoned:
            results = None
        except Exception as error:
            known = isinstance(error, ValueError)
            if not known:
                log.exception("a batch of %d failed", len(requests))
            line = " ".join(str(error).split()) if known else "painting failed; the server's log says why"
            for job in batch:
                job.tell(Event("error", line))
            return
        if results is not None:
            self.painted(batch[0].model, len(requests), time.monotonic() - began)
        for job in batch:
            if results is None or time.monotonic() > job.deadline:
                job.tell(Event("late"))
            else:
                own: list[Result] = [r for r, owner in zip(results, owners, strict=True) if owner is job]
                job.tell(Event("done", own))


def _own(progress: Progress, mine: list[bool]) -> Progress:
    """The part of a batch's progress that is one job's."""
    rows = [row for row, place in enumerate(progress.places) if mine[place]]
    return Progress(
        [progress.places[row] for row in rows], progress.step, progress.steps,
        lambda: [progress.pictures()[row] for row in rows],
    )
