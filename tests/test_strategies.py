"""Every strategy on CPU ranks as the command starts it: the same training, the same files, one after another."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sb.launch import Placement

STRATEGIES = ["ddp", "fsdp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
# equal but for rounding: AdamW would blow up the rounding of gradients that are next to nothing
PLAIN = ["+optimizer.eps=0.001", "optimizer.decay=none", "optimizer.warmup_images=0", "callbacks.save.every_images=16",
         "callbacks.ema.every_images=0"]


def started(train, settings: list[str], folder: Path, ranks: int, *overrides: str) -> subprocess.CompletedProcess:
    """Steps of 8 images in two batches: of 4 each by one process, of 2 each by each of two."""
    return train(
        *settings, *PLAIN, "system.name=keyed_noise", f"run_dir={folder}", f"trainer.devices={ranks}",
        f"data.batch_size={4 // ranks}", "trainer.accumulate=2", "trainer.val_every_images=16", *overrides,
        plugins="keyed_noise",
    )


def run_of(train, settings: list[str], folder: Path, ranks: int, *overrides: str) -> Path:
    done = started(train, settings, folder, ranks, *overrides)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All that is trained, by name: weights, average and the optimizer's moments."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = checkpoint["optimizer_states"][0]["state"]
    return {
        **{f"raw.{name}": value for name, value in checkpoint["state_dict"].items()},
        **{f"ema.{name}": value for name, value in checkpoint["callbacks"]["ema"]["averages"]["main"].items()},
        **{f"{number}.{name}": value for number, entry in kept.items() for name, value in entry.items()},
    }


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    worst = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert worst <= 1e-6, worst


@pytest.fixture(scope="module")
def alone(train, tiny_settings, tmp_path_factory):
    """What one process makes of 64 images."""
    return run_of(train, tiny_settings, tmp_path_factory.mktemp("alone") / "run", 1, "trainer.images=64")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_like_one_process(alone, train, tiny_settings, strategy, tmp_path):
    """Weights, EMA and AdamW's moments to 1e-6; the exported average as well."""
    run = run_of(train, tiny_settings, tmp_path / "run", 2, f"trainer/{strategy}.yaml", "trainer.images=64")
    assert_close(state(alone), state(run))
    for name in ("unet", "unet.raw"):
        assert_close(*(load_file(place / "model" / f"{name}.safetensors") for place in (alone, run)))
    sizes = [(place / "checkpoints" / "last.ckpt").stat().st_size for place in (alone, run)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy, options", [
    ("zero3", ["recompute"]), ("auto", ["compile"]), ("ddp", ["compile", "recompute"]),
    ("fsdp", ["compile", "recompute"]),
])
def test_recomputed_and_compiled_networks_train_the_same(alone, train, tiny_settings, strategy, options, tmp_path):
    ranks, parents = (1, []) if strategy == "auto" else (2, [f"trainer/{strategy}.yaml"])
    run = run_of(
        train, tiny_settings, tmp_path / "run", ranks, *parents, "trainer.images=64",
        *(f"trainer.{option}=true" for option in options),
    )
    assert_close(state(alone), state(run))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_under_another_strategy(alone, train, tiny_settings, tmp_path):
    """Every 16 images another one takes over the same checkpoint."""
    for number, (ranks, strategy) in enumerate([(2, "zero3"), (2, "fsdp"), (1, "ddp"), (2, "zero2")], 1):
        run_of(
            train, tiny_settings, tmp_path / "run", ranks, f"trainer/{strategy}.yaml", "resume=auto",
            f"trainer.images={16 * number}",
        )
    assert_close(state(alone), state(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_steps_that_are_not_finite_are_dropped_and_end_the_run(train, tiny_settings, strategy, tmp_path):
    """Two good steps of 8 images, then three that are not finite: what was saved in between is as after the second."""
    done = started(
        train, tiny_settings, tmp_path / "run", 2, f"trainer/{strategy}.yaml", "trainer.images=64",
        "objective.name=breaks",
    )
    assert done.returncode == 2 and "3 in a row: stopped" in done.stderr, done.stderr[-2000:]
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["images_seen"] == 32 and all(value.isfinite().all() for value in last["state_dict"].values())
    good = run_of(
        train, tiny_settings, tmp_path / "good", 2, f"trainer/{strategy}.yaml", "trainer.images=16",
        "objective.name=breaks", "callbacks.ema=null",
    )
    two = torch.load(good / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, two[name]) for name, value in last["state_dict"].items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_a_full_disk_ends_all_ranks_with_one_line(train, tiny_settings, strategy, tmp_path):
    """Only rank zero writes, and no other waits for it."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / ".writing.ckpt").symlink_to("/dev/full")
    done = started(train, tiny_settings, tmp_path / "run", 2, f"trainer/{strategy}.yaml", "trainer.images=64")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and set(lines) == {lines[0]} and "the disk is full: cannot write" in lines[0]
    assert not list((tmp_path / "run" / "checkpoints").iterdir()) and "Traceback" not in done.stderr


def placed(**options) -> Placement:
    return Placement(4, 8, 8, accelerator="cpu", **options)


def test_names_stages_and_precisions_are_checked():
    with pytest.raises(ValueError, match="no strategy named 'dpp'; did you mean 'ddp'"):
        placed(strategy="dpp")
    with pytest.raises(ValueError, match="stage must be 1, 2 or 3, not 4"):
        placed(strategy={"name": "deepspeed", "stage": 4})
    with pytest.raises(ValueError, match="strategy 'deepspeed' has no key 'stages'"):
        placed(strategy={"name": "deepspeed", "stages": 2})
    with pytest.raises(ValueError, match="must be bf16-mixed or 32-true, not 16-mixed"):
        from sb.strategies import deepspeed

        deepspeed(2, "16-mixed")


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed.ops", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[deepspeed\]'"):
        placed(strategy={"name": "deepspeed"})


def test_deepspeed_is_told_to_autocast_and_not_to_cast():
    strategy = placed(strategy={"name": "deepspeed", "stage": 3, "offload": True}, precision="bf16-mixed")._strategy
    config = strategy.config
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"} and "bf16" not in config
    zero = config["zero_optimization"]
    assert zero["stage"] == 3 and zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu"}
    extra = placed(strategy={"name": "deepspeed", "options": {"steps_per_print": 7}})._strategy
    assert extra.config["steps_per_print"] == 7
