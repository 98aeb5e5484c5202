"""What a Prometheus server may ask: requests by status, seconds, pictures, batches, and how many wait."""

from collections.abc import Sized

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Counters:
    """Counts of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter("sb_answers", "answers by status", ["status"], registry=self.registry)
        self._seconds = Histogram(
            "sb_answer_seconds", "from arrival to answer", buckets=SECONDS, registry=self.registry
        )
        self._pictures = Counter("sb_pictures", "pictures painted", ["model"], registry=self.registry)
        self._batches = Counter("sb_batches", "batches painted", ["model"], registry=self.registry)
        self._busy = Counter("sb_painting_seconds", "seconds spent painting", ["model"], registry=self.registry)
        self._waiting = Gauge("sb_waiting", "requests in the queue", registry=self.registry)

    def watch(self, queue: Sized) -> None:
        """Let the gauge show a queue's length."""
        self._waiting.set_function(lambda: len(queue))

    def answered(self, status: int, seconds: float | None = None) -> None:
        """Count an answer."""
        self._answers.labels(str(status)).inc()
        if seconds is not None:
            self._seconds.observe(seconds)

    def painted(self, model: str, pictures: int, seconds: float) -> None:
        """Count a batch."""
        self._pictures.labels(model).inc(pictures)
        self._batches.labels(model).inc()
        self._busy.labels(model).inc(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
