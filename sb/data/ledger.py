"""Why a sample was not delivered, and the count that stops a run whose data is rotten."""

from collections import Counter
from typing import Any

from torch import distributed

from sb.types import Batch

BROKEN = (
    "truncated", "unreachable", "missing_key", "bad_json", "bad_schema", "absurd_size", "bad_image", "bad_mask",
    "bad_moments",
)
UNUSABLE = ("no_object", "no_caption")  # nothing is wrong with these, their task just cannot use them
NAMES_KEPT = 8


class Broken(Exception):
    """A sample that cannot be delivered, for one of the reasons above; name says where it lies, once that is known."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.reason, self.name = reason, name


class SkipLedger:
    """Counts of skipped samples by reason, over all batches that reached the main process.

    With several ranks each counts its own until all of them call ``gather``.
    """

    def __init__(self, max_broken_share: float = 0.1, min_samples: int = 256) -> None:
        if not 0 <= max_broken_share <= 1:
            raise ValueError(f"max_broken_share {max_broken_share} is outside [0, 1]")
        self.max_broken_share, self.min_samples = max_broken_share, min_samples
        self.seen = 0
        self.counts: Counter[str] = Counter()
        self.names: list[str] = []
        self._common: tuple[int, Counter[str]] = (0, Counter())  # the part of seen and counts that all ranks know

    @property
    def broken(self) -> int:
        """Samples that were broken, those a task merely could not use left out."""
        return sum(count for reason, count in self.counts.items() if reason not in UNUSABLE)

    def add(self, batch: Batch) -> None:
        """Count one delivered batch and what was skipped while it was made."""
        self.seen += len(batch)
        for skip in batch.skipped:
            self.counts[skip.reason] += 1
            if skip.reason not in UNUSABLE and len(self.names) < NAMES_KEPT:
                self.names.append(f"{skip.name} ({skip.reason})")

    def gather(self) -> None:
        """Add up what all ranks counted; each of them must call it."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        seen, counts = self._common
        every: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(every, (self.seen - seen, self.counts - counts, self.names))
        self.seen = seen + sum(rank[0] for rank in every)
        self.counts = sum((rank[1] for rank in every), counts)
        self.names = list(dict.fromkeys(name for rank in every for name in rank[2]))[:NAMES_KEPT]
        self._common = self.seen, self.counts.copy()

    def state_dict(self) -> dict[str, Any]:
        """All that was counted, of the other ranks up to the last ``gather``."""
        return {"seen": self.seen, "counts": dict(self.counts), "names": list(self.names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was counted; every rank must load the same."""
        self.seen, self.counts = state_dict["seen"], Counter(state_dict["counts"])
        self.names, self._common = list(state_dict["names"]), (self.seen, self.counts.copy())

    def check(self) -> None:
        """Raise ValueError with reasons and names where more than the configured share was broken."""
        if self.seen < self.min_samples or self.broken <= self.max_broken_share * self.seen:
            return
        reasons = ", ".join(f"{r} {n}" for r, n in self.counts.most_common() if r not in UNUSABLE)
        raise ValueError(
            f"{self.broken} of {self.seen} samples are broken ({reasons}), more than max_broken_share "
            f"{self.max_broken_share:g}; the first: {', '.join(self.names)}; run tools/check_shards.py on the shards"
        )
