"""Callbacks for runs that are stopped: what each rank was given, written down; a shard and a rank that get stuck."""

import json
import os
import time
import zlib
from pathlib import Path

import lightning.pytorch as pl

from sb.registry import register


@register("callback", "batch_trace")
class BatchTrace(pl.Callback):
    """``folder/rank-R.jsonl`` gets a line per batch; the checksums of the pixels pin crop and flip."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer, pl_module):
        path = self.folder / f"rank-{trainer.global_rank}.jsonl"
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        line = {
            "images": pl_module.images_seen, "world": trainer.world_size, "keys": batch.key,
            "levels": batch.level.tolist(), "tasks": batch.task.tolist(), "texts": batch.text,
            "image": zlib.crc32(batch.image.numpy().tobytes()), "outline": zlib.crc32(batch.outline.numpy().tobytes()),
            "pid": os.getpid(),
        }
        os.write(self.file, (json.dumps(line) + "\n").encode())


@register("callback", "stuck_shard")
class StuckShard(pl.Callback):
    """Shard ``number`` of the first training source never answers once training has been set up."""

    def __init__(self, number: int):
        self.number = number

    def setup(self, trainer, pl_module, stage):
        shard = trainer.datamodule.samples("train").stores[0].shards[self.number]
        fifo = f"{trainer.default_root_dir}/fifo-{trainer.global_rank}"
        os.makedirs(trainer.default_root_dir, exist_ok=True)
        os.mkfifo(fifo)
        os.makedirs(f"{fifo}.d")
        shard.address = f"{fifo}.d/{shard.name}"
        os.rename(fifo, shard.address)


@register("callback", "stuck_rank")
class StuckRank(pl.Callback):
    """One rank stops for good at ``images``, without an error."""

    def __init__(self, rank: int, images: int):
        self.rank, self.images = rank, images

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == self.rank and pl_module.images_seen >= self.images:
            time.sleep(600)
