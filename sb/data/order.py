"""The order of a run: which stored sample stands at position j, as a pure function of (seed, j).

Nothing here remembers where it is, so any number of ranks and workers, and any later start, walk the same sequence.
An epoch of a source visits each sample once: shards are shuffled per epoch, and samples inside blocks of shards, so
that a reader has only a few tars open. A mixture deals its sources in shuffled cycles by weight.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CYCLE = 1000
SHARDS, SAMPLES, MIXTURE, DRAWS = range(4)  # what a stream of random numbers is for
Ints = NDArray[np.int64]


class Draws:
    """The random numbers of a position: a counter-based generator, put in place instead of made anew (7x faster)."""

    def __init__(self, seed: int) -> None:
        bits = np.random.Philox(0)
        if not 0 <= seed < 2**63:
            raise ValueError(f"data: seed must be between 0 and 2**63 - 1, not {seed}")
        self._rng, self._state = np.random.Generator(bits), bits.state
        self._state["state"]["key"][:] = seed, DRAWS
        self._counter = self._state["state"]["counter"]

    def at(self, j: int, attempt: int) -> np.random.Generator:
        """The generator at the start of (seed, j, attempt); the one given out before is this same object."""
        self._counter[1], self._counter[2] = attempt, j
        self._rng.bit_generator.state = self._state
        return self._rng


def permutation(count: int, seed: int, purpose: int, *place: int) -> Ints:
    """A permutation of ``count`` that does not depend on numpy's version (raw bits are part of its promise)."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, purpose, *place])).random_raw(count)
    return np.argsort(bits, kind="stable")


class Place(NamedTuple):
    """Where a sample lies: sample number ``sample`` of shard number ``shard``."""

    shard: int
    sample: int


class _Block(NamedTuple):
    """Shards whose samples are shuffled together: their numbers, where each starts, and the samples' order."""

    shards: list[int]
    starts: list[int]
    order: Ints

    def place(self, offset: int) -> Place:
        flat = int(self.order[offset])
        nth = bisect_right(self.starts, flat) - 1
        return Place(self.shards[nth], flat - self.starts[nth])


class SourceOrder:
    """The endless sequence of one source's samples, epoch after epoch, at any position."""

    def __init__(self, counts: Sequence[int], seed: int, source: int = 0, block_shards: int = 16) -> None:
        if seed < 0 or block_shards < 1 or sum(counts) < 1:
            raise ValueError(
                f"data: needs seed >= 0, shuffle_shards >= 1 and a sample, not {seed}, {block_shards}, {sum(counts)}"
            )
        self.counts = np.asarray(counts, dtype=np.int64)
        self.num_samples = int(self.counts.sum())
        self.seed, self.source, self.block_shards = seed, source, block_shards
        self._epochs: dict[int, tuple[list[int], list[int]]] = {}
        self._blocks: dict[tuple[int, int], _Block] = {}

    def place(self, position: int) -> Place:
        """The sample at a position; positions 0 to N - 1 are epoch 0."""
        block, offset = self._locate(position)
        return self._block(*block).place(offset)

    def spare(self, position: int, drawn: float, anywhere: bool = False) -> Place:
        """The stand-in that ``drawn`` in [0, 1) chooses, out of the position's block or out of the whole epoch."""
        if anywhere:
            return self.place(position - position % self.num_samples + int(drawn * self.num_samples))
        block = self._block(*self._locate(position)[0])
        return block.place(int(drawn * len(block.order)))

    def block_of(self, position: int) -> tuple[int, int]:
        """The (epoch, block) a position falls in."""
        return self._locate(position)[0]

    def next_shards(self, position: int) -> list[int]:
        """The shards of the block that follows the one at ``position``."""
        epoch, block = self._locate(position)[0]
        shards, starts = self._epoch(epoch)
        if block + 2 >= len(starts):
            epoch, block = epoch + 1, -1
            shards, starts = self._epoch(epoch)
        first = (block + 1) * self.block_shards
        return shards[first : first + self.block_shards]

    def _locate(self, position: int) -> tuple[tuple[int, int], int]:
        epoch, offset = divmod(position, self.num_samples)
        starts = self._epoch(epoch)[1]
        block = bisect_right(starts, offset) - 1
        return (epoch, block), offset - starts[block]

    def _epoch(self, epoch: int) -> tuple[list[int], list[int]]:
        """The shards' order and where each block of them starts, with the epoch's length at the end."""
        if epoch not in self._epochs:
            shards = permutation(len(self.counts), self.seed, SHARDS, self.source, epoch)
            sizes = np.add.reduceat(self.counts[shards], np.arange(0, len(shards), self.block_shards))
            _keep(self._epochs, epoch, (shards.tolist(), [0, *np.cumsum(sizes).tolist()]))
        return self._epochs[epoch]

    def _block(self, epoch: int, block: int) -> _Block:
        if (epoch, block) not in self._blocks:
            first = block * self.block_shards
            shards = self._epoch(epoch)[0][first : first + self.block_shards]
            starts = [0, *np.cumsum(self.counts[shards]).tolist()]
            order = permutation(starts.pop(), self.seed, SAMPLES, self.source, epoch, block)
            _keep(self._blocks, (epoch, block), _Block(shards, starts, order))
        return self._blocks[(epoch, block)]


class Mixture:
    """Which source position j draws from, and how many it drew from that source before: cycles of 1,000 by weight."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not weights or min(weights) < 0 or not sum(weights):
            raise ValueError(f"data: the weights of the sources must be >= 0 and not all 0, not {list(weights)}")
        share = np.asarray(weights, dtype=np.float64) / sum(weights) * CYCLE
        slots = np.where(share > 0, np.maximum(np.floor(share), 1), 0).astype(np.int64)
        if np.count_nonzero(slots) > CYCLE:
            raise ValueError(f"data: a mixture takes at most {CYCLE} sources, not {np.count_nonzero(slots)}")
        while slots.sum() < CYCLE:
            slots[np.argmax(share - slots)] += 1
        while slots.sum() > CYCLE:  # a source of next to no weight got its slot; the largest gives it up
            slots[np.argmax(slots)] -= 1
        self.slots, self.seed = slots, seed
        self._cycles: dict[int, tuple[Ints, Ints]] = {}

    def place(self, j: int) -> tuple[int, int]:
        """(source, position in that source's own sequence) of position ``j`` of the run."""
        if len(self.slots) == 1:
            return 0, j
        cycle, slot = divmod(j, CYCLE)
        sources, ranks = self._cycle(cycle)
        source = int(sources[slot])
        return source, cycle * int(self.slots[source]) + int(ranks[slot])

    def _cycle(self, cycle: int) -> tuple[Ints, Ints]:
        if cycle not in self._cycles:
            dealt = np.repeat(np.arange(len(self.slots)), self.slots)
            sources = dealt[permutation(CYCLE, self.seed, MIXTURE, cycle)]
            ranks = np.empty(CYCLE, dtype=np.int64)
            for source, count in enumerate(self.slots):
                ranks[sources == source] = np.arange(count)
            _keep(self._cycles, cycle, (sources, ranks))
        return self._cycles[cycle]


def _keep(cache: dict, key: object, value: object, limit: int = 4) -> None:  # type: ignore[type-arg]
    while len(cache) >= limit:
        del cache[next(iter(cache))]
    cache[key] = value


def local_positions(start: int, n: int, rank: int, world: int, batch_size: int) -> range:
    """The positions j of rank ``rank``'s n-th batch of a run that goes on from position ``start``."""
    first = start + (n * world + rank) * batch_size
    return range(first, first + batch_size)
