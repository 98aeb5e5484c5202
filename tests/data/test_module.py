import itertools

import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from sb.data.module import ShardData
from sb.types import Batch

TASKS = [{"name": "object", "weight": 0.8, "label_share": 0.5}, {"name": "text_to_image", "weight": 0.2}]


def data_of(folder, **changes):
    """A data module that trains on a set and holds out a copy of it."""
    if not Path(f"{folder}-val").exists():
        shutil.copytree(folder, f"{folder}-val")
    options = {
        "train": [{"shards": [folder], "weight": 1.0}], "val": [{"shards": [f"{folder}-val"]}], "tasks": TASKS,
        "batch_size": 4, "seed": 0, "image_size": 24, "level_weights": [1.0] * 6, "workers": 0, "min_area": 0.0,
        "max_area": 1.0, "val_images": 10, **changes,
    }
    data = ShardData(**options)
    data.total_images = 48
    return data


class Model(pl.LightningModule):
    """Keeps the keys it is shown, and counts images as the real one does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.images_seen, self.keys, self.val_keys = 0, [], []

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, Batch)
        self.images_seen += len(batch)
        self.keys.append(batch.key)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.val_keys.append(batch.key)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint):
        self.images_seen = checkpoint["images_seen"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.trainer.estimated_stepping_batches * 0.0)


class Saver(pl.Callback):
    """A checkpoint in the middle of a run."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.after:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/{self.after}.ckpt")


def fit(data, tmp_path, model=None, **options):
    model = model or Model()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, **{k: v for k, v in options.items() if k != "ckpt_path"},
    )
    trainer.fit(model, data, ckpt_path=options.get("ckpt_path"))
    for loader in data._loaders.values():  # now: collected as garbage, each waits for its workers in vain
        workers = getattr(loader._loader, "_iterator", None)
        if workers is not None:
            workers._shutdown_workers()
    return model, trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_anywhere_goes_on_with_the_next_sample(tiny, tmp_path, workers):
    folder = tiny.set(tmp_path / "set", [6, 6, 6])
    whole, trainer = fit(data_of(folder, workers=workers), tmp_path, val_check_interval=5, callbacks=[Saver(5)])
    assert len(whole.keys) == 12 and trainer.num_training_batches == 12
    later, _ = fit(data_of(folder, workers=workers), tmp_path, ckpt_path=tmp_path / "5.ckpt")
    assert later.keys == whole.keys[5:]
    half, _ = fit(data_of(folder, batch_size=2, workers=workers), tmp_path, ckpt_path=tmp_path / "5.ckpt")
    assert sum(half.keys, []) == sum(whole.keys[5:], [])


def test_held_out_samples_are_fixed(tiny, tmp_path):
    folder = tiny.set(tmp_path / "set", [6, 6, 6])
    first, _ = fit(data_of(folder), tmp_path, val_check_interval=6, num_sanity_val_steps=0)
    other, _ = fit(data_of(folder, seed=5), tmp_path, val_check_interval=12, num_sanity_val_steps=0)
    assert first.val_keys == other.val_keys * 2 and sum(len(k) for k in other.val_keys) == 10
    assert first.keys != other.keys
    assert data_of(folder, val=[]).val_dataloader() == []


def test_bad_sections_are_one_clear_line(tiny, tmp_path):
    folder = tiny.set(tmp_path / "set", [6, 6])
    for changes, message in (
        ({"train": []}, "'train' needs at least one source"),
        ({"train": [{"shard": [folder]}]}, "data.train has no key 'shard'; did you mean 'shards'"),
        ({"crop": {"min_contxt": 1.0}}, "data.crop has no key 'min_contxt'; did you mean 'min_context'"),
        ({"batch_size": 0}, "batch_size"), ({"flip": 2.0}, "flip"),
        ({"tasks": [{"name": "object", "weight": -1}]}, "data.tasks: weight must be a number from 0 on, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            data_of(folder, **changes)
    for changes, message in (
        ({"workers": 3}, "2 shards are fewer than 1 ranks x 3 workers = 3"),
        ({"val": [{"shards": [f"{folder}/../set/*1.tar"]}]}, "train and val both read .*shard-000001.tar; give val"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"tasks": [{"name": "objct"}]}, "no task named 'objct'; did you mean 'object'"),
        ({"train": [{"shards": []}]}, "list of shards is empty"),
        ({"tasks": [{"name": "object", "weight": 0.0}]}, "data.tasks: all weights are 0"),
    ):
        with pytest.raises(ValueError, match=message):
            data_of(folder, **changes).setup("fit")


def test_a_changed_order_is_said_on_resume(tiny, tmp_path, caplog):
    folder = tiny.set(tmp_path / "set", [6, 6])
    state = data_of(folder).state_dict()
    data_of(folder, batch_size=2, workers=1).load_state_dict(state)
    assert not caplog.records
    data_of(folder, seed=1).load_state_dict(state)
    assert "the order of images is another" in caplog.text
    caplog.clear()
    tiny.set(tmp_path / "set", [6, 6], caption="another")
    data_of(folder).load_state_dict(state)
    assert "the order of images is another" in caplog.text


def test_without_a_trainer_it_reads_from_the_start(tiny, tmp_path):
    data = data_of(tiny.set(tmp_path / "set", [6, 6]))
    assert len(data.train_dataloader()) == 12 and data.task_names == ["object", "text_to_image"]
    batch = next(itertools.islice(data.train_dataloader(), 1))
    assert len(batch) == 4 and data.ledger.max_broken_share == 0.1


def test_one_percent_broken_in_each_of_five_ways_is_delivered_in_full(broken_set):
    data = data_of(broken_set, batch_size=20, workers=1, tasks=TASKS[:1])
    for batch in itertools.islice(data.train_dataloader(), 20):
        assert len(batch) == 20
        data.ledger.add(batch)
        data.ledger.check()
    assert data.ledger.seen == 400 and data.ledger.broken == 20 and len(data.ledger.counts) == 5
    for path in (Path(__file__).parents[2] / "configs/data").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["data"]["max_broken_share"] == data.ledger.max_broken_share
    held_out = list(data_of(broken_set, val_images=400, tasks=TASKS[:1]).val_dataloader())
    assert sum(len(batch) for batch in held_out) == 400 and sum(len(batch.skipped) for batch in held_out) == 20


def test_held_out_samples_do_not_depend_on_how_training_is_shuffled(tiny, tmp_path):
    folder = tiny.set(tmp_path / "set", [3] * 20)
    keys = [[b.key for b in data_of(folder, shuffle_shards=n).val_dataloader()] for n in (1, 4)]
    assert keys[0] == keys[1]


def test_rare_labels_need_counts(tiny, tmp_path, caplog):
    folder = tiny.set(tmp_path / "set", [3, 3])
    data_of(folder, sample_by="category").samples("train")
    assert not caplog.records
    data_of(folder, sample_by="category", train=[{"shards": [f"{folder}/*.tar"]}]).samples("train")
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "label counts of a manifest" in caplog.text
