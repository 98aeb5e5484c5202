"""A bounded queue in front of one painter thread: jobs that ask alike are painted in one batch.

The thread owns the device; everything else only puts jobs in and hears of them through ``tell``.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
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


class Closed(Exception):
    """The queue takes no more jobs."""


class Abandoned(Exception):
    """Nobody waits for this batch any more."""


class Event(NamedTuple):
    """What a job's owner is told: ``progress`` with a Progress of its own requests, ``done`` with its results,
    ``refused`` with a line, or that it ``failed``, is ``late``, or that the queue was ``closed``."""

    kind: Literal["progress", "done", "refused", "failed", "late", "closed"]
    value: Any = None


@dataclass(eq=False)
class Job:
    """Requests of one client for one model with one set of options. ``tell`` is called from the painter's thread.

    deadline: of ``time.monotonic``. alike: jobs that differ in it are never painted together, such as the size at
    which the model sees them.
    """

    model: str
    requests: list[Request]
    options: Mapping[str, Any]
    tell: Callable[[Event], None]
    deadline: float
    alike: Hashable = None
    cancelled: bool = False
    key: Hashable = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.model, tuple(sorted(self.options.items())), self.alike)

    def over(self) -> bool:
        """Whether nobody waits for it, or too long."""
        return self.cancelled or time.monotonic() > self.deadline

    def say(self, kind: Any, value: Any = None) -> None:
        """Tell, unless nobody listens; a job whose owner cannot be told its end is cancelled."""
        if self.cancelled:
            return
        try:
            self.tell(Event(kind, value))
        except Exception:
            log.exception("a client could not be told")
            self.cancelled = kind != "progress"


class Jobs:
    """The queue and its thread; ``painted`` hears of every batch: model, pictures in it, seconds.

    pace: seconds that the last batch took.
    """

    def __init__(
        self, models: Mapping[str, Inpainter], limits: Limits,
        painted: Callable[[str, int, float], None] = lambda model, pictures, seconds: None,
    ):
        self.models, self.limits, self.painted = models, limits, painted
        self.pace = 0.0
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        with self._changed:
            return sum(not job.cancelled for job in self._waiting)

    def put(self, job: Job) -> int:
        """Queue a job; the number of jobs before it. Full where it finds no place, Closed after ``close``."""
        with self._changed:
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled)
            if self._closed:
                raise Closed
            if len(self._waiting) >= self.limits.queue:
                raise Full
            self._waiting.append(job)
            self._changed.notify()
            return len(self._waiting) - 1

    def close(self) -> None:
        """Tell those that wait; what is being painted is answered still, by a thread that then ends."""
        with self._changed:
            self._closed = True
            left, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in left:
            job.say("closed")

    def join(self) -> None:
        """Wait until the last batch is answered."""
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
                job.say("late")
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
                    job.say("progress", _own(once, [owner is job for owner in owners]))

        try:
            results = self.models[batch[0].model].paint(requests, watch=watch, **batch[0].options)
        except Abandoned:
            for job in batch:
                job.say("late")
            return
        except Exception as error:
            self._failed(batch, error)
            return
        self.pace = time.monotonic() - began
        self.painted(batch[0].model, len(requests), self.pace)
        for job in batch:
            own: list[Result] = [r for r, owner in zip(results, owners, strict=True) if owner is job]
            job.say(*(("late",) if job.over() else ("done", own)))

    def _failed(self, batch: list[Job], error: Exception) -> None:
        """One job must not spoil another's: those of a batch are painted again, each by itself."""
        if len(batch) > 1:
            for job in batch:
                if not job.over():
                    self._paint([job])
        elif type(error) is ValueError:  # a line of ours; its heirs (UnicodeError, ...) may say anything
            batch[0].say("refused", " ".join(str(error).split()))
        else:
            log.error("painting failed", exc_info=error)
            batch[0].say("failed")


def _own(progress: Progress, mine: list[bool]) -> Progress:
    """The part of a batch's progress that is one job's."""
    rows = [row for row, place in enumerate(progress.places) if mine[place]]
    return Progress(
        [progress.places[row] for row in rows], progress.step, progress.steps,
        lambda: [progress.pictures()[row] for row in rows],
    )
