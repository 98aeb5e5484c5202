"""The queue: alike jobs share a batch, nobody's answers are lost or mixed, and what nobody waits for is not painted."""

import threading
import time
from types import SimpleNamespace

import pytest

from sb.app.jobs import Closed, Event, Full, Job, Jobs
from sb.app.limits import Limits
from sb.preview import Progress


class Painter:
    """Paints a request's seed; waits for ``go`` first, and keeps what it was asked."""

    def __init__(self):
        self.go, self.began, self.batches = threading.Event(), threading.Event(), []

    def paint(self, requests, watch, **options):
        self.batches.append(([r.seed for r in requests], options))
        self.began.set()
        assert self.go.wait(10)
        for step in range(2):
            watch(Progress(range(len(requests)), step, 2, lambda step=step: [f"{r.seed}@{step}" for r in requests]))
        if any(r.seed < 0 for r in requests):
            raise ValueError("a negative seed")
        if options.get("breaks"):
            raise options["breaks"]
        return [SimpleNamespace(seed=r.seed) for r in requests]


@pytest.fixture
def painter():
    return Painter()


def job(*seeds, model="a", side=8, seconds=60.0, **options):
    requests = [SimpleNamespace(seed=seed) for seed in seeds]
    found = Job(model, requests, options, lambda event: None, time.monotonic() + seconds, side)
    found.events = []
    found.tell = found.events.append
    return found


def ended(*jobs):
    until = time.monotonic() + 10
    while not all(j.events and j.events[-1].kind != "progress" for j in jobs):
        assert time.monotonic() < until
        time.sleep(0.01)


def seeds(events):
    return [result.seed for result in events[-1].value]


def test_what_waits_and_is_alike_is_painted_together(painter):
    jobs = Jobs({"a": painter, "b": painter}, Limits(batch=4))
    first = job(0)
    assert jobs.put(first) == 0
    painter.began.wait(10)
    others = [job(1, 2), job(3, steps=5), job(4), job(5, model="b"), job(6, side=9), job(7), job(8)]
    assert [jobs.put(other) for other in others] == list(range(7)) and len(jobs) == 7
    painter.go.set()
    ended(first, *others)
    assert [asked for asked, _ in painter.batches] == [[0], [1, 2, 4, 7], [3], [5], [6], [8]]
    assert painter.batches[2][1] == {"steps": 5}
    assert [seeds(j.events) for j in (first, *others)] == [[0], [1, 2], [3], [4], [5], [6], [7], [8]]
    seen = [event.value for event in others[2].events[:-1]]
    assert [(p.step, p.pictures()) for p in seen] == [(0, ["4@0"]), (1, ["4@1"])]
    jobs.close()


def test_a_full_queue_turns_away_and_cancelled_jobs_make_room(painter):
    jobs = Jobs({"a": painter}, Limits(queue=2, batch=1))
    jobs.put(job(0))
    painter.began.wait(10)
    waiting = [job(1), job(2)]
    for one in waiting:
        jobs.put(one)
    with pytest.raises(Full):
        jobs.put(job(3))
    waiting[0].cancelled = True
    last = job(4)
    jobs.put(last)
    painter.go.set()
    ended(waiting[1], last)
    assert [asked for asked, _ in painter.batches] == [[0], [2], [4]] and not waiting[0].events
    jobs.close()


def test_a_batch_that_everybody_left_is_given_up(painter):
    jobs = Jobs({"a": painter}, Limits(batch=1))
    left, next_one = job(0), job(1)
    jobs.put(left)
    jobs.put(next_one)
    painter.began.wait(10)
    left.cancelled = True
    painter.go.set()
    ended(next_one)
    assert not left.events and seeds(next_one.events) == [1]
    jobs.close()


def test_time_runs_out_in_the_queue_and_at_work(painter):
    jobs = Jobs({"a": painter}, Limits(batch=1))
    both = job(0, seconds=0.2), job(1, seconds=0.2)
    for one in both:
        jobs.put(one)
    time.sleep(0.4)
    painter.go.set()
    ended(*both)
    assert [[event.kind for event in one.events] for one in both] == [["late"], ["late"]]
    assert len(painter.batches) == 1
    jobs.close()


@pytest.mark.parametrize("error, told", [
    (ValueError("steps must\nbe less"), Event("refused", "steps must be less")),
    (KeyError("/etc/secret"), Event("failed")), (UnicodeError("/etc/secret"), Event("failed")),
])
def test_a_batch_that_fails_says_so_and_the_next_is_painted(painter, error, told):
    jobs = Jobs({"a": painter}, Limits())
    painter.go.set()
    bad, good = job(0, breaks=error), job(1)
    jobs.put(bad)
    jobs.put(good)
    ended(bad, good)
    assert bad.events[-1] == told and seeds(good.events) == [1]
    jobs.close()


def test_one_that_cannot_be_painted_spoils_no_other(painter):
    jobs = Jobs({"a": painter}, Limits(batch=4))
    first, bad, good = job(0), job(1, -1), job(2)
    jobs.put(first)
    painter.began.wait(10)
    for one in (bad, good):
        jobs.put(one)
    painter.go.set()
    ended(first, bad, good)
    assert [asked for asked, _ in painter.batches] == [[0], [1, -1, 2], [1, -1], [2]]
    assert bad.events[-1] == Event("refused", "a negative seed") and seeds(good.events) == [2]
    jobs.close()


def test_one_that_cannot_be_told_spoils_no_other(painter):
    jobs = Jobs({"a": painter}, Limits(batch=4))
    first, deaf, good = job(0), job(1), job(2)

    def tell(event):
        raise RuntimeError("the loop is closed")

    deaf.tell = tell
    jobs.put(first)
    painter.began.wait(10)
    for one in (deaf, good):
        jobs.put(one)
    painter.go.set()
    ended(first, good)
    assert seeds(good.events) == [2] and deaf.cancelled
    jobs.close()


def test_closing_answers_everybody(painter):
    painted = []
    jobs = Jobs({"a": painter}, Limits(batch=1), lambda *counts: painted.append(counts[:2]))
    both = job(0), job(1)
    for one in both:
        jobs.put(one)
    painter.began.wait(10)
    jobs.close()
    assert both[1].events == [Event("closed")]
    painter.go.set()
    jobs.join()
    assert both[0].events[-1].kind == "done" and painted == [("a", 1)]
    with pytest.raises(Closed):
        jobs.put(job(2))


@pytest.mark.parametrize("name, value", [("queue", 0), ("seconds", float("nan")), ("max_pixels", -1)])
def test_limits_are_more_than_nothing(name, value):
    with pytest.raises(ValueError, match=f"{name} must be more than 0"):
        Limits(**{name: value})
