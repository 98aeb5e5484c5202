"""A callback that writes down what each rank was given: one line of JSON per training batch, kept through any kill."""

import json
import os
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
