"""The ``data:`` section of a run file as train and validation loaders, with rank and world as plain numbers."""

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import lightning.pytorch as pl
import torch

from sb.config import check_keys
from sb.data.crop import Crop
from sb.data.ledger import SkipLedger
from sb.data.pipeline import FixedStream, Look, Samples, ShardLoader, TrainStream, check_enough_shards
from sb.data.shards import ShardStore
from sb.data.tasks import Task, TaskContext
from sb.registry import build

VAL_SEED, VAL_SHARDS = 0, 16  # held-out samples depend neither on the seed nor on shuffle_shards: runs compare
log = logging.getLogger(__name__)


class ShardData(pl.LightningDataModule):
    """Training batches without end and a fixed set of held-out ones, read from shards.

    train, val: sources, each ``{shards: [addresses], weight: 1.0}``. tasks: each ``{name, weight: 1.0, ...}`` with
    the keys of that task. batch_size: images per rank. crop: keys of ``Crop``, null shows the largest square.
    (``{min_context: 1, max_context: 1, max_zoom: 1, variants: n}`` shows it too where it is no larger than image_size.)
    min_area, max_area: an object's share of its image. flip: the share mirrored. shuffle_shards: how many shards are
    shuffled together. cache_dir, cache_gib: where remote shards are kept. max_broken_share: see ``ledger``.

    ``total_images`` (images of the whole run) is set by whoever builds the run, before fitting. The position in the
    run is the model's ``images_seen``. Callbacks feed each batch to ``ledger`` and ask it to check.
    """

    def __init__(
        self,
        train: Sequence[Mapping[str, Any]],
        val: Sequence[Mapping[str, Any]],
        tasks: Sequence[Mapping[str, Any]],
        batch_size: int,
        *,
        seed: int,
        image_size: int,
        level_weights: Sequence[float],
        workers: int = 2,
        prefetch: int = 4,
        min_area: float = 0.02,
        max_area: float = 0.6,
        sample_by: str = "instance",
        crop: Mapping[str, Any] | None = None,
        flip: float = 0.5,
        shuffle_shards: int = 16,
        val_images: int = 256,
        cache_dir: str | None = None,
        cache_gib: float = 20.0,
        max_broken_share: float = 0.1,
        max_megapixels: float = 64.0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0 or prefetch < 1 or val_images < 1 or not 0 <= flip <= 1 or image_size < 1:
            raise ValueError(
                "data: needs batch_size, prefetch, val_images, image_size >= 1, workers >= 0 and flip in [0, 1], not "
                f"{batch_size}, {prefetch}, {val_images}, {image_size}, {workers} and {flip}"
            )
        if not train or not tasks:
            raise ValueError("data: 'train' needs at least one source and 'tasks' at least one task")
        for where, entries in (("train", train), ("val", val)):
            for entry in entries:
                _check_entry(f"data.{where}", entry, "shards", ("shards", "weight"))
        for entry in tasks:
            _check_entry("data.tasks", entry, "name")
        for where, entries in (("train", train), ("tasks", tasks)):
            if not sum(float(entry.get("weight", 1.0)) for entry in entries) > 0:
                raise ValueError(f"data.{where}: all weights are 0")
        check_keys("data.crop", crop or {}, [f.name for f in fields(Crop)])
        self.train_spec, self.val_spec, self.task_specs = list(train), list(val), list(tasks)
        self.batch_size, self.workers, self.prefetch = batch_size, workers, prefetch
        self.seed, self.shuffle_shards, self.val_images = seed, shuffle_shards, val_images
        self.cache: dict[str, Any] = {"cache_dir": cache_dir, "cache_gib": cache_gib}
        self.look = Look(
            image_size, None if crop is None else Crop(**crop), flip, int(max_megapixels * 1e6), (min_area, max_area)
        )
        self.context: dict[str, Any] = {
            "level_weights": list(level_weights), "min_area": min_area, "max_area": max_area, "sample_by": sample_by,
        }
        self.ledger = SkipLedger(max_broken_share)
        self.total_images: int | None = None
        self._restored = 0
        self._samples: dict[str, Samples] = {}
        self._loaders: dict[str, ShardLoader] = {}

    @property
    def task_names(self) -> list[str]:
        """The tasks in the order that ``Batch.task`` counts them in."""
        return [str(spec["name"]) for spec in self.task_specs]

    def samples(self, split: str) -> Samples:
        """The reader of ``train`` or ``val``; ValueError where its shards or tasks cannot be used."""
        if split not in self._samples:
            self._samples[split] = self._build(split)
        return self._samples[split]

    def sources(self) -> list[dict[str, Any]]:
        """``data.train`` with what manifests say of each entry's ``sets``: images, source and licences."""
        stores = self.samples("train").stores
        return [{**entry, "sets": store.sets} for entry, store in zip(self.train_spec, stores, strict=True)]

    def longest_read(self) -> tuple[str, str, float] | None:
        """(who, shard, seconds) of the read that has been going on for longest, over all loaders of this rank."""
        reads = [(split, loader.longest_read()) for split, loader in self._loaders.items()]
        found = [(f"{read[0]} of data.{split}", *read[1:]) for split, read in reads if read is not None]
        return max(found, key=lambda read: read[2], default=None)

    def setup(self, stage: str | None = None) -> None:
        """Find the shards and say what is missing before any step is taken."""
        if stage in (None, "fit"):
            check_enough_shards("data.train", self._num_shards("train"), self._world, self.workers)
        if self.val_spec and stage in (None, "fit", "validate"):
            self._check_apart()

    def train_dataloader(self) -> ShardLoader:
        """Endless batches from ``images_seen`` on; its length is the number of batches of the whole run."""
        stream = TrainStream(self.samples("train"), self.batch_size, self._rank, self._world)
        return self._loader("train", stream, self._train_batches, self.workers, self._images_seen)

    def val_dataloader(self) -> ShardLoader | list[Any]:
        """The first ``val_images`` held-out samples, the same in every run and however many ranks share them.

        Each rank gets one number of batches, none padded; batch sizes differ by at most one, so log with
        ``batch_size=len(batch)``.
        """
        if not self.val_spec:
            return []
        samples = self.samples("val")
        count = min(self.val_images, sum(order.num_samples for order in samples.orders))
        stream = FixedStream(samples, count, self.batch_size, self._rank, self._world)
        return self._loader("val", stream, lambda: stream.num_batches, min(self.workers, stream.num_batches))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Without waiting for what the device still has to do."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def state_dict(self) -> dict[str, Any]:
        """What the order of the run rests on, and how many batches a resumed run has behind it."""
        return {"order": self._fingerprint(), "batches": self._batches_done()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the batches done; say so where the sequence is not the one that the checkpoint was trained on."""
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        self._restored = int(state_dict.get("batches", 0)) // accumulate * accumulate  # as ``save`` counts on
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # it is, by images_seen
        if state_dict.get("order") != self._fingerprint():
            log.warning("shards, weights, data.shuffle_shards or the seed changed: the order of images is another")

    def _build(self, split: str) -> Samples:
        entries = self.train_spec if split == "train" else self.val_spec
        stores = [ShardStore(entry["shards"], **self.cache) for entry in entries]
        labels: Counter[str] = sum((store.labels for store in stores), Counter())
        for folder in [folder for store in stores for folder in store.label_only]:
            log.info("data.%s: %s has no captions of single objects, their labels are the text", split, folder)
        context = TaskContext(**self.context, labels=labels)
        if context.sample_by == "category" and not labels:
            log.warning("data.%s: sample_by: category needs the label counts of a manifest; objects are drawn evenly",
                        split)
        tasks: list[Task] = []
        for spec in self.task_specs:
            tasks.append(build("task", {k: v for k, v in spec.items() if k != "weight"}, context=context))
        return Samples(
            stores, [float(entry.get("weight", 1.0)) for entry in entries],
            tasks, [float(spec.get("weight", 1.0)) for spec in self.task_specs],
            self.look, *((self.seed, self.shuffle_shards) if split == "train" else (VAL_SEED, VAL_SHARDS)),
        )

    def _check_apart(self) -> None:
        """Raise ValueError where a shard is both trained on and held out."""
        train, val = (
            {os.path.realpath(a) if os.path.exists(a) else a for a in self._addresses(split)}
            for split in ("train", "val")
        )
        if train & val:
            raise ValueError(f"data: train and val both read {min(train & val)}; give val shards of its own")

    def _addresses(self, split: str) -> list[str]:
        return [shard.address for store in self.samples(split).stores for shard in store.shards]

    def _loader(
        self, split: str, stream: TrainStream | FixedStream, length: Callable[[], int], workers: int,
        start: Callable[[], int] | None = None,
    ) -> ShardLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        self._loaders[split] = ShardLoader(
            stream, length, workers=workers, pin_memory=on_gpu, prefetch=self.prefetch, start=start
        )
        return self._loaders[split]

    def _train_batches(self) -> int:
        """Batches done plus those of the optimizer steps still to come, however many ranks there are now."""
        if self.total_images is None:
            raise ValueError("data: total_images is not set; it is the number of images of the whole run")
        left = max(self.total_images - self._images_seen(), 0)
        step = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return self._batches_done() + -(-left // (self.batch_size * self._world * step)) * step

    def _batches_done(self) -> int:
        """As Lightning counts them; its own count is restored later than the length of the loader is asked for."""
        if self.trainer is None:
            return self._restored
        return max(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready, self._restored)

    def _images_seen(self) -> int:
        return int(getattr(self.trainer.lightning_module, "images_seen", 0)) if self.trainer is not None else 0

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _num_shards(self, split: str) -> int:
        return len(self._addresses(split))

    def _fingerprint(self) -> str:
        samples = self.samples("train")
        shards = [(s.name, s.sha256 or s.size) for store in samples.stores for s in store.shards]
        counts = [store.counts for store in samples.stores]
        facts = [self.seed, self.shuffle_shards, samples.mixture.slots.tolist(), counts, shards]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _check_entry(where: str, entry: Any, key: str, known: Sequence[str] = ()) -> None:
    if isinstance(entry, Mapping) and known:
        check_keys(where, entry, known)
    if not isinstance(entry, Mapping) or key not in entry:
        raise ValueError(f"{where}: every entry needs '{key}:', this one is {entry!r}")
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or weight < 0:
        raise ValueError(f"{where}: weight must be a number from 0 on, not {weight!r}")
