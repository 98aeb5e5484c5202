"""A run small enough for every callback test: six weights, and data that is a function of images seen."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, IterableDataset

from sb.schedule import cosine
from sb.types import Batch, Skip

BATCH = 4


def batch_at(images: int, size: int = BATCH, rank: int = 0, world: int = 1) -> Batch:
    """The batch of this rank that starts at a global count of images."""
    own = [images + rank + world * i for i in range(size)]
    pixels = [torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(j)) for j in own]
    outline = torch.zeros(size, 1, 8, 8, dtype=torch.uint8)
    outline[:, :, 2:6, 2:6] = 1
    level = torch.tensor([j % 3 for j in own])
    skipped = [Skip("bad_image", "broken")] if images % 8 == 0 else []
    return Batch(
        torch.stack(pixels).to(torch.uint8), outline, level, torch.zeros(size, dtype=torch.int64),
        ["a"] * size, [f"key-{j}" for j in own], skipped,
    )


class Stream(IterableDataset):
    """Reads the run's position at the first next, as the project's own loader does."""

    def __init__(self, trainer):
        self.trainer = trainer

    def __iter__(self):
        images = self.trainer.lightning_module.images_seen
        rank, world = self.trainer.global_rank, self.trainer.world_size
        while True:
            yield batch_at(images, rank=rank, world=world)
            images += BATCH * world


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Stream(self.trainer), batch_size=None)

    def val_dataloader(self):
        return DataLoader([batch_at(10_000), batch_at(20_000)], batch_size=None)


class System(L.LightningModule):
    """A scale per colour and a frozen part; ``hook(self, batch)`` runs in front of each step's loss."""

    def __init__(self, lr: float = 0.01):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(6).view(2, 3) / 10)
            self.layer.bias.zero_()
            self.frozen.weight.fill_(0.5), self.frozen.bias.zero_()
        self.lr, self.images_seen, self.hook, self.val_hook = lr, 0, None, None
        self.schedule, self.ladder = cosine(100), SimpleNamespace(num_levels=2)
        self.keys: list[str] = []

    def loss(self, batch):
        colour = batch.image.float().mean((2, 3)).to(self.layer.weight.dtype) / 255
        return (self.layer(colour) - colour[:, :2].flip(1) * 3).square().mean()

    def training_step(self, batch, _):
        self.keys += batch.key
        loss = self.loss(batch)
        if self.hook:
            loss = self.hook(self, loss)
        self.images_seen += len(batch) * self.trainer.world_size
        self.log_dict({"train/loss": loss, "step": float(self.images_seen)}, batch_size=len(batch))
        return {"loss": loss}

    def validation_step(self, batch, index):
        if self.val_hook:
            self.val_hook(self)
        loss = self.loss(batch)
        self.log_dict({"val/loss": loss, "step": float(self.images_seen)}, batch_size=len(batch), sync_dist=True)
        target = torch.nn.functional.avg_pool2d(batch.outline.float(), 2)
        return {
            "loss": loss, "predicted": target.clone(), "target": target, "mask": batch.outline,
            "dice_each": torch.tensor([0.0, 0.1, 0.2, 0.3]), "has_object": torch.tensor([True, True, True, False]),
            "t": torch.tensor([0, 30, 99, 5]),
        }

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.layer.parameters(), self.lr)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97), "interval": "step"}]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint):
        self.images_seen = checkpoint["images_seen"]


def trainer_of(folder, callbacks, steps: int, **options) -> L.Trainer:
    """A quiet trainer on the CPU with TensorBoard under ``folder/tensorboard``."""
    defaults = dict(
        accelerator="cpu", devices=1, max_epochs=-1, max_steps=steps, callbacks=callbacks, default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""), log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        val_check_interval=3, check_val_every_n_epoch=None,
        enable_checkpointing=any(isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks),
    )
    return L.Trainer(**{**defaults, **options})


def scalars(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard would show: tag -> step -> value."""
    board = opened(folder)
    return {tag: {e.step: e.value for e in board.Scalars(tag)} for tag in board.Tags()["scalars"]}


def opened(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    board.Reload()
    return board


@pytest.fixture
def tiny():
    """The parts above, by name."""
    return SimpleNamespace(
        BATCH=BATCH, System=System, Data=Data, trainer=trainer_of, batch_at=batch_at, scalars=scalars, opened=opened
    )
