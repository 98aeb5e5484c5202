"""Placement: every interval in images, rounded so that a run ends on a validation."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from sb.launch import EndOfImages, Placement, check_started
from sb.models.optim import AdamW, AdamW8bit


@pytest.mark.parametrize("images, val_every, devices, accumulate", [
    (64000, 16000, 1, 1), (60000, 15000, 2, 1), (1000, 300, 1, 1), (1000, 300, 2, 3), (10, 100000, 4, 2),
    (100, 1, 1, 1),
])
def test_a_run_ends_on_a_validation_and_sees_what_was_asked(images, val_every, devices, accumulate):
    placed = Placement(8, images, val_every, accelerator="cpu", devices=devices, accumulate=accumulate)
    assert placed.images_per_step == 8 * devices * accumulate
    assert placed.steps % placed.steps_per_val == 0
    assert placed.total_images >= images
    validations = placed.steps // placed.steps_per_val
    assert placed.total_images - images < max(validations, 1) * placed.images_per_step
    if placed.images_per_step <= val_every <= images:
        between = placed.steps_per_val * placed.images_per_step
        assert 0.66 * val_every < between < 1.5 * val_every + placed.images_per_step


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="precision 16-mixed is unusably slow"):
        Placement(8, 100, 100, accelerator="cpu", precision="16-mixed")


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_refused(accelerator, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match=f"no GPU here for accelerator {accelerator}; set trainer.accelerator=cpu"):
        Placement(8, 100, 100, accelerator=accelerator)


def test_more_gpus_than_there_are_is_refused_but_under_torchrun(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="3 devices asked for, 2 here; set trainer.devices=2"):
        Placement(8, 100, 100, accelerator="gpu", devices=3)
    for name in ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE"):  # it may show one GPU alone
        monkeypatch.setenv(name, "1")
    assert Placement(8, 100, 100, accelerator="gpu", devices=3).ranks == 3


@pytest.mark.parametrize("devices", [0, "0,1", -2])
def test_devices_are_a_number_of_them(devices):
    with pytest.raises(ValueError, match="devices is a number of devices on each node, 1 or more, or auto, not"):
        Placement(8, 100, 100, accelerator="cpu", devices=devices)


@pytest.mark.parametrize("started, ranks, launcher", [(8, 1, "torchrun"), (1, 2, "torchrun"), (8, 1, "srun")])
def test_a_launcher_that_starts_other_processes_is_refused(started, ranks, launcher, monkeypatch):
    """Else each of them would be a whole run of its own in the one folder."""
    names = {
        "torchrun": ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
        "srun": ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
    }[launcher]
    check_started(ranks)  # nobody started anything
    for name in names:
        monkeypatch.setenv(name, str(started))
    check_started(started)
    with pytest.raises(ValueError, match=f"the launcher started {started} processes and the run file says {ranks}"):
        check_started(ranks)


def test_in_an_allocation_of_one_task_lightning_starts_the_ranks(monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "1")
    check_started(8)


@pytest.mark.parametrize("strategy, refused", [("auto", False), ("ddp", False), ("fsdp", True)])
def test_eight_bits_are_refused_where_state_is_in_parts(strategy, refused):
    placed = Placement(8, 100, 100, accelerator="cpu", strategy=strategy)
    placed.check_optimizer(AdamW())
    with pytest.raises(ValueError, match="one device and with ddp") if refused else nullcontext():
        placed.check_optimizer(SimpleNamespace(in_parts=AdamW8bit.in_parts))


@pytest.mark.parametrize("torchrun", [False, True])
def test_slurm_does_not_queue_again_behind_our_back(torchrun, monkeypatch, tmp_path):
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "sb"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    if torchrun:
        ones, zeros = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), ("RANK", "LOCAL_RANK", "GROUP_RANK")
        for name in (*ones, *zeros):
            monkeypatch.setenv(name, "1" if name in ones else "0")
    trainer = Placement(8, 100, 100, accelerator="cpu", progress_bar=False).trainer(tmp_path, [])
    environment = trainer._accelerator_connector.cluster_environment
    if torchrun:
        assert isinstance(environment, TorchElasticEnvironment)
    else:
        assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue


def test_intervals_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        Placement(8, 100, 0, accelerator="cpu")


@pytest.mark.parametrize("total, stops", [(15, True), (16, True), (17, False)])
def test_a_run_ends_by_images_however_many_steps_there_were(total, stops):
    trainer, end = SimpleNamespace(should_stop=False, global_step=0), EndOfImages(total)
    end.on_train_batch_end(trainer, SimpleNamespace(images_seen=16), None, None, 0)
    assert not trainer.should_stop  # gradients are still accumulating
    trainer.global_step = 1
    end.on_train_batch_end(trainer, SimpleNamespace(images_seen=16), None, None, 0)
    assert trainer.should_stop is stops
