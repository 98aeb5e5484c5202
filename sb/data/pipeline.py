"""From a position in the run to a sample, and from a reader's share of positions to batches.

The table of contents of the loader: ``order`` says which stored sample stands at position j, ``shards`` reads its
bytes, the task plans what they are used for, ``decode`` and ``crop`` make arrays, ``collate`` makes the batch.
"""

import atexit
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sb.data.collate import Parcel, Sample, collate
from sb.data.crop import Crop, Frame, crop_image, crop_outline, draw_frame, enough_pixels, pixel_of
from sb.data.decode import decode_image, decode_mask, read_record
from sb.data.latents import look_up, same_latents
from sb.data.ledger import Broken
from sb.data.order import Draws, Mixture, Place, SourceOrder, local_positions
from sb.data.reading import ReadingTable
from sb.data.shards import RawSample, ShardStore
from sb.data.tasks import Plan, Record, Task, pick
from sb.data.variants import shown_in, variant_frame
from sb.types import Batch, Skip

MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError)  # odd json
ATTEMPTS, ATTEMPTS_NEAR = 64, 8  # stand-ins tried for a sample, the first ones out of shards that are open anyway


@dataclass
class Look:
    """How a stored image becomes a sample: the side in pixels, the crop, the share mirrored, the pixel limit, and the
    share of their image that objects cover around which fixed frames lie."""

    size_px: int
    crop: Crop | None = None
    flip: float = 0.5
    max_pixels: int = 64_000_000
    area: tuple[float, float] = (0.0, 1.0)

    @property
    def variants(self) -> int:
        """How many fixed frames each image has; 0 where each sample gets a fresh one."""
        return self.crop.variants if self.crop is not None else 0

    def frames(self) -> dict[str, Any]:
        """What decides on the fixed frames, by its names in a run file."""
        crop = None if self.crop is None else asdict(self.crop)
        return {"image_size": self.size_px, "crop": crop, "flip": float(self.flip),
                "min_area": float(self.area[0]), "max_area": float(self.area[1])}

    def frame(self, record: Record, key: str, variant: int) -> Frame:
        """Fixed frame ``variant`` of an image."""
        assert self.crop is not None
        return variant_frame(record, key, variant, self.crop, self.size_px, self.flip, self.area)

    def pixels(self, body: bytes, record: Record, frame: Frame) -> NDArray[np.uint8]:
        """The frame (S, S, 3) of a stored image; Broken where it cannot be decoded."""
        width, height = record["width"], record["height"]
        image = decode_image(body, width, height, enough_pixels(width, height, frame, self.size_px))
        return crop_image(image, width, height, frame, self.size_px)


class Samples:
    """Sample j of a run, as a pure function of (seed, j). Picklable; keeps nothing but caches.

    stores, weights: the sources and how often each is drawn. tasks, task_weights: likewise. An image that is broken,
    or that its task cannot use, is replaced by a spare chosen from (seed, j) and named in ``Sample.skipped``.
    """

    def __init__(
        self, stores: Sequence[ShardStore], weights: Sequence[float], tasks: Sequence[Task],
        task_weights: Sequence[float], look: Look, seed: int, block_shards: int = 16,
    ) -> None:
        self.stores, self.tasks, self.task_weights = list(stores), list(tasks), list(task_weights)
        if not tasks or min(task_weights) < 0 or not sum(task_weights):
            raise ValueError(f"data: tasks need weights >= 0 that are not all 0, not {list(task_weights)}")
        self.look, self.draws = look, Draws(seed)
        self.mixture = Mixture(weights, seed)
        self.orders = [SourceOrder(s.counts, seed, n, block_shards) for n, s in enumerate(stores)]
        self.latents = same_latents([(store.shards[0].address, store.latents) for store in self.stores])
        if self.latents is not None:
            self.latents.check_frames(look.frames())
        self.texts = [table for store in self.stores for table in store.texts]
        self.reading = ReadingTable()
        self._ahead: dict[int, tuple[int, int]] = {}

    def sample(self, j: int) -> Sample:
        """The sample at position j of the run; ValueError where no spare can be had either."""
        source, position = self.mixture.place(j)
        store, order = self.stores[source], self.orders[source]
        self._fetch_ahead(source, position)
        rng = self.draws.at(j, 0)
        task = pick(rng, self.task_weights)
        skipped = None
        for attempt in range(ATTEMPTS):
            cause = ""
            try:
                place = order.place(position)
                if attempt:
                    rng = self.draws.at(j, attempt)
                    place = order.spare(position, rng.random(), anywhere=attempt > ATTEMPTS_NEAR)
                variant = int(rng.random() * self.look.variants) if self.look.variants else None
                raw = self._read(source, place, variant)
                try:
                    sample = self._make(raw, task, rng)
                except MALFORMED as error:
                    cause = f": {error!r}"
                    raise Broken("bad_schema") from None
                sample.skipped = skipped
                return sample
            except Broken as error:
                last = Skip(error.reason, error.name or raw.name)
                skipped = skipped or last
        raise ValueError(
            f"data: {ATTEMPTS} samples in a row cannot be used for task {task + 1} of {len(self.tasks)}, the last: "
            f"{last.name} ({last.reason}{cause}); run tools/check_shards.py on "
            f"{store.shards[0].address.rpartition('/')[0]}"
        )

    def _read(self, source: int, place: Place, variant: int | None) -> RawSample:
        worker = _worker()[0]
        self.reading.begin(worker, source, place.shard)
        try:
            return self.stores[source].read(*place, variant)
        finally:
            self.reading.end(worker)

    def plan(self, raw: RawSample, task: int, rng: np.random.Generator) -> tuple[dict[str, Any], Plan, Frame]:
        """What will be shown of a stored sample: its record, the task's plan and the frame."""
        record = read_record(raw.record, self.look.max_pixels)
        if raw.variant is not None:
            frame = self.look.frame(record, key_of(raw), raw.variant)
            return record, self.tasks[task].plan(shown_in(record, frame), rng), frame
        plan = self.tasks[task].plan(record, rng)
        frame = self._frame(record, None if plan.instance is None else list(plan.instance["box"]), rng)
        return record, plan, frame

    def features(self, texts: Sequence[str]) -> NDArray[np.int16] | None:
        """The cached features (len(texts), n) of texts, None where there are none."""
        return look_up(self.texts, texts) if self.texts else None

    def _make(self, raw: RawSample, task: int, rng: np.random.Generator) -> Sample:
        record, plan, frame = self.plan(raw, task, rng)
        size_px, own = self.look.size_px, None
        width, height = record["width"], record["height"]
        if plan.instance is not None:
            mask = decode_mask(plan.instance["mask"], width, height)
            own = crop_outline(mask, frame, size_px)
            if not own.any():
                pixel = pixel_of(mask)
                if pixel is None:
                    raise Broken("bad_mask")
                if raw.variant is not None:
                    raise Broken("no_object")  # in this frame
                frame = self._frame(record, pixel, rng)
                own = crop_outline(mask, frame, size_px)
        moments = None if self.latents is None else self.latents.read(raw.image)
        pixels = self.look.pixels(raw.image, record, frame) if moments is None else None
        outline = self.tasks[task].outline(own, size_px, rng, partial(_objects, record, frame, size_px))
        return Sample(pixels, outline, plan.level, task, plan.text, key_of(raw), moments=moments)

    def _frame(self, record: Mapping[str, Any], box: Sequence[float] | None, rng: np.random.Generator) -> Frame:
        look = self.look
        return draw_frame(rng, record["width"], record["height"], box, look.crop, look.size_px, look.flip)

    def _fetch_ahead(self, source: int, position: int) -> None:
        if self.stores[source].remote and self._ahead.get(source) != (block := self.orders[source].block_of(position)):
            if self.stores[source].fetch_ahead(self.orders[source].next_shards(position)):
                self._ahead[source] = block


def _objects(record: Record, frame: Frame, size_px: int) -> NDArray[np.uint8]:
    """Where a frame shows any object, (S, S) uint8."""
    taken = np.zeros((size_px, size_px), dtype=np.uint8)
    for instance in record["instances"]:
        taken |= crop_outline(decode_mask(instance["mask"], record["width"], record["height"]), frame, size_px)
    return taken


def key_of(raw: RawSample) -> str:
    """The key of a stored sample, without its tar."""
    return raw.name.partition("/")[2]


@dataclass
class Failure:
    """An error on its way from a worker to the main process, where it is raised as one clear line."""

    message: str


class TrainStream(IterableDataset):  # type: ignore[type-arg]
    """One rank's endless batches from position ``start`` on; worker w of W makes the batches w, w + W, ..."""

    def __init__(self, samples: Samples, batch_size: int, rank: int = 0, world: int = 1, start: int = 0) -> None:
        self.samples, self.batch_size, self.rank, self.world, self.start = samples, batch_size, rank, world, start

    def __iter__(self) -> Iterator[Parcel | Failure]:
        worker, workers = _worker()
        for n in itertools.count(worker, workers):
            yield _batch(self.samples, local_positions(self.start, n, self.rank, self.world, self.batch_size))


class FixedStream(IterableDataset):  # type: ignore[type-arg]
    """Positions 0 to ``count`` - 1 once, cut into one number of batches per rank, none empty and none padded.

    Chunk n * world + rank is the rank's n-th batch; chunk sizes differ by at most one.
    """

    def __init__(self, samples: Samples, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if count < world:
            raise ValueError(f"data: {count} validation samples cannot be split over {world} ranks; raise val_images")
        self.samples, self.rank, self.world = samples, rank, world
        self.num_batches = -(-count // (batch_size * world))
        chunks = self.num_batches * world
        self.cuts = [count * n // chunks for n in range(chunks + 1)]

    def __iter__(self) -> Iterator[Parcel | Failure]:
        worker, workers = _worker()
        for n in range(worker, self.num_batches, workers):
            chunk = n * self.world + self.rank
            yield _batch(self.samples, range(self.cuts[chunk], self.cuts[chunk + 1]))


class ShardLoader:
    """Batches of a stream, made by worker processes. Sized; what lies beneath may be endless.

    start: where a TrainStream begins, asked at the first batch, because a checkpoint is restored after the loader
    is built. length: batches in all, asked each time.
    """

    def __init__(
        self, stream: TrainStream | FixedStream, length: Callable[[], int], *, workers: int = 0,
        pin_memory: bool = False, prefetch: int = 4, start: Callable[[], int] | None = None,
    ) -> None:
        self.stream, self.start, self.length = stream, start, length
        stream.samples.reading = ReadingTable(workers)
        self.options: dict[str, Any] = {"batch_size": None, "num_workers": workers, "pin_memory": pin_memory}
        if workers:
            persistent = isinstance(stream, FixedStream)
            self.options.update(prefetch_factor=prefetch, persistent_workers=persistent, worker_init_fn=_ignore_signals)
            atexit.register(_kill_loaders)
        self._loader: DataLoader[Parcel | Failure] | None = None

    def __len__(self) -> int:
        return self.length()

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self.stream, TrainStream):
            self.stream.start = self.start() if self.start else self.stream.start
            self._loader = None  # workers hold a copy of the stream, so a new start needs new ones
        if self._loader is None:
            self.stream.samples.reading.clear()
            self._loader = DataLoader(self.stream, **self.options)
        for item in self._loader:
            if isinstance(item, Failure):
                raise ValueError(item.message)
            yield item.batch()

    def longest_read(self) -> tuple[str, str, float] | None:
        """(who, shard, seconds) of the read that has been going on for longest."""
        read = self.stream.samples.reading.longest()
        if read is None:
            return None
        who = f"loader process {read.worker}" if self.options["num_workers"] else "the loader"
        return who, self.stream.samples.stores[read.source].shards[read.shard].address, read.seconds


def check_enough_shards(where: str, shards: int, world: int, workers: int) -> None:
    """Raise ValueError where some reader would have no shard of its own to open first."""
    readers = world * max(workers, 1)
    if shards < readers:
        raise ValueError(
            f"{where}: {shards} shards are fewer than {world} ranks x {max(workers, 1)} workers = {readers}; "
            f"build at least {readers} smaller shards or lower data.workers"
        )


def _ignore_signals(worker: int) -> None:
    """A cluster signals every process of a job: the loader goes on, so that the trainer can save and then end it."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill_loaders() -> None:
    """What multiprocessing would end with SIGTERM, and wait for."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _batch(samples: Samples, positions: range) -> Parcel | Failure:
    try:
        made = [samples.sample(j) for j in positions]
        return collate(made, samples.features([*(sample.text for sample in made), ""]))
    except (ValueError, OSError) as error:
        return Failure(str(error))
