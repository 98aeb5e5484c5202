"""The curve of scores: written at validations that are due, by the oracle it keeps."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from sb.evaluate import shapes_callback
from sb.evaluate.oracle import train_oracle
from sb.evaluate.requests import make_cases
from sb.evaluate.shapes_callback import ShapesScore
from sb.masks import Ladder
from sb.types import Result

LADDER = Ladder([{"name": "outline"}, {"name": "box"}])


class Board:
    add_image = None  # what a TensorBoard writer is known by

    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, global_step):
        self.scalars.append((name, value, global_step))


class Yes:
    """An oracle that reads whatever was asked for."""

    def __init__(self, cases):
        self.cases = cases

    def read(self, images, masks):
        return SimpleNamespace(
            **{word: [getattr(c, word) for c in self.cases] for word in ("shape", "colour", "texture")},
            features=torch.randn(len(self.cases), 4),
        )


def test_scores_become_curves(tmp_path, monkeypatch):
    cases = make_cases(4, shapes_callback.CURVE_SEED, 32)
    truth = {c.seed: c.image for c in cases}
    painted = []

    def paint(requests):
        painted.append(len(requests))
        return [
            Result(torch.where(r.mask > 0, truth[r.seed], r.image), truth[r.seed], r.mask.float(), r.seed)
            for r in requests
        ]

    callback = ShapesScore(paint, LADDER, tmp_path, num_requests=4, every_images=100, size_px=32)
    monkeypatch.setattr(callback, "_oracle", lambda module: Yes(cases))
    board = Board()
    trainer = SimpleNamespace(
        is_global_zero=True, sanity_checking=True, logger=SimpleNamespace(experiment=board)
    )
    callback.on_validation_epoch_end(trainer, SimpleNamespace(images_seen=0, device=torch.device("cpu")))
    assert not painted and callback.state_dict() == {"last": None}
    trainer.sanity_checking = False
    for images in (100, 150, 200):  # the second is not due
        callback.on_validation_epoch_end(trainer, SimpleNamespace(images_seen=images, device=torch.device("cpu")))
    assert painted == [4, 4] * 2
    assert {step for _, _, step in board.scalars} == {100, 200}
    assert dict((n, v) for n, v, _ in board.scalars)["shapes/outline/text"] == 1.0
    assert dict((n, v) for n, v, _ in board.scalars)["shapes/outline/iou"] > 0.9
    again = ShapesScore(paint, LADDER, tmp_path)
    again.load_state_dict(callback.state_dict())
    assert again.state_dict() == {"last": 200}
    trainer.logger = None  # a run without TensorBoard paints nothing
    callback.on_validation_epoch_end(trainer, SimpleNamespace(images_seen=900, device=torch.device("cpu")))
    assert painted == [4, 4] * 2


class System(L.LightningModule):
    """One weight, and a VAE that changes nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.images_seen = torch.nn.Linear(1, 1), 0
        self.vae = Same()

    def training_step(self, batch, _):
        self.images_seen += len(batch)
        return self.layer(batch).mean()

    def validation_step(self, batch, _):
        self.inference = torch.is_inference_mode_enabled()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Same(torch.nn.Module):
    factor = 1

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def latents(self, image):
        return image * self.scale

    def picture(self, latents):
        return latents


@pytest.mark.slow
def test_a_trainer_trains_the_oracle_and_writes_the_curves(tmp_path, monkeypatch):
    truth = {c.seed: c.image for c in make_cases(16, shapes_callback.CURVE_SEED)}

    def paint(requests):
        return [Result(torch.where(r.mask > 0, truth[r.seed], r.image), truth[r.seed], None, r.seed) for r in requests]

    small = partial(train_oracle, num_scenes=700, steps=300, batch=48, num_held_out=150)
    monkeypatch.setattr(shapes_callback, "train_oracle", small)
    callback = ShapesScore(paint, LADDER, tmp_path, num_requests=16, every_images=8)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=4, val_check_interval=2, callbacks=[callback],
        logger=TensorBoardLogger(tmp_path, name="board", version=""), enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )
    system, data = System(), DataLoader(torch.rand(4, 1))
    trainer.validate(system, data, verbose=False)
    assert system.inference  # so that is where the oracle was trained
    trainer.fit(system, DataLoader(torch.rand(16, 1), batch_size=4), data)
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    curve = board.Scalars("shapes/outline/text")
    assert [e.step for e in curve] == [0, 8, 16] and min(e.value for e in curve) >= 0.8
    assert (tmp_path / "oracle.safetensors").is_file()
