"""Each way in which a run would die is one line that says so; a sound run may go; nothing is left behind."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sb import preflight, reach
from sb.preflight import FAIL, OK, WARN, Line, go, table

ROOT = Path(__file__).parents[1]
SMALL = ["vae.widths=8", "vae.blocks=1", "vae.weights=null", "denoiser.widths=[16,32]", "denoiser.blocks=1",
         "denoiser.attention=[false,true]", "denoiser.heads=2", "denoiser.groups=8",
         "text={name: tiny, width: 16, layers: 1, heads: 2}"]


@pytest.fixture
def look(tiny_overrides, monkeypatch):
    """``look(*overrides)``: the lines of a small run file by check, several of one check joined; ``only`` some checks,
    and those that they rest on."""
    monkeypatch.setattr(preflight, "READ_S", 0.0)
    every = preflight.CHECKS

    def at(*overrides: str, only: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        needed = {"_run_file", "_device", "_train_shards", *(f"_{check.replace(' ', '_')}" for check in only)}
        needed |= {"_networks"} if needed & {"_disk", "_device_memory", "_step"} else set()
        monkeypatch.setattr(preflight, "CHECKS", [c for c in every if not only or c.__name__ in needed])
        lines = preflight.preflight(ROOT / "configs/quickstart.yaml", [*SMALL, *tiny_overrides, *overrides])
        for line in lines:
            status, said = found.get(line.check, (OK, ""))
            worse = max(status, line.status, key=reach.ORDER.index)
            found[line.check] = worse, f"{said} {line.found}; {line.advice}".strip()
        assert go(lines) == all(status != FAIL for status, _ in found.values())
        return found

    return at


def test_a_sound_run_may_go_and_nothing_is_left_behind(look, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = look()
    assert {check for check, (status, _) in found.items() if status == FAIL} == set()
    assert "3 shards for 1 ranks x 1 workers, 96 images; 8 to see: 0.1 epochs" in found["train shards"][1]
    assert "16 images, 8 used" in found["val shards"][1]
    assert "fresh" in found["run folder"][1] and "images/s by one worker" in found["reading"][1]
    assert "3 checkpoints of" in found["disk"][1] and "GiB a rank by estimate, " in found["device memory"][1]
    assert "loss" in found["step"][1] and "ranks" not in found
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("check, overrides, said", [
    ("run file", ["+sections=1"], "no key 'sections'"),
    ("device", ["trainer.precision=bf16-true"], "precision bf16-true is none of"),
    ("weights", ["vae.weights=nowhere"], "vae.weights: there is no nowhere"),
    ("train shards", ["data.train=[{shards: nowhere}]"], "no tar at 'nowhere'"),
    ("train shards", ["data.workers=4"], "3 shards are fewer than 1 ranks x 4 workers"),
    ("run folder", ["run_dir=README.md/run"], "README.md is a file"),
    ("networks", ["+denoiser.widhts=[8]"], "did you mean 'widths'"),
    ("step", ["optimizer.lr=1.0e+30", "optimizer.warmup_images=0"], "the loss is not finite"),
])
def test_what_would_fail_is_a_line(look, check, overrides, said):
    status, found = look(*overrides, only=(check,))[check]
    assert status == FAIL and said in found


def test_a_gpu_that_is_not_there(look, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    status, found = look("trainer.accelerator=gpu", only=("device",))["device"]
    assert status == FAIL and "no CUDA device here; run this where the job will run" in found


def test_no_validation_and_no_captions_are_warnings(look, tiny):
    found = look("data.val=[]", only=("val shards",))
    assert found["val shards"][0] == WARN and go([Line("val shards", *found["val shards"])])


def test_a_run_that_is_there_is_refused_or_resumed(look, tiny_overrides, tmp_path):
    from sb import config
    from sb.assemble import assemble

    assemble(config.load(ROOT / "configs/quickstart.yaml", [*SMALL, *tiny_overrides])).fit()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status, found = look(only=("run folder",))["run folder"]
    assert status == FAIL and "holds a run already; resume=auto continues it" in found
    found = look("resume=auto", "trainer.images=16", only=("run folder", "networks"))
    assert f"resumes from {tmp_path}" in found["networks"][1] and "last.ckpt, 8 images" in found["networks"][1]
    assert found["run folder"][0] == OK
    average = "+callbacks.ema.averages.other={half_life_images: 10}"
    networks = look("resume=auto", average, only=("networks",))["networks"]
    assert networks[0] == FAIL and "holds the averages main, this run asks for main, other" in networks[1]
    networks = look("resume=auto", "seed=7", only=("networks",))["networks"]  # another random VAE and text tower
    assert networks[0] == FAIL and "was trained with another" in networks[1]
    status, said = look("resume=auto", "denoiser.widths=[16,48]", only=("networks",))["networks"]
    assert status == FAIL and "can be resumed" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_too_little_room(look, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(preflight.scale, "memory", lambda *counts, **about: dict(total=2**60, host=2**60))
    found = look(only=("disk", "device memory"))
    assert found["disk"][0] == FAIL and "make room" in found["disk"][1]
    assert found["device memory"][0] == FAIL and "lower data.batch_size" in found["device memory"][1]
    assert "GiB of host memory a rank by estimate" in found["device memory"][1]
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    status, said = look("data.workers=1", only=("shared memory",))["shared memory"]
    if preflight.SHM.is_dir():
        assert status == FAIL and "lower data.workers" in said


def test_checkpoints_that_are_there_count_as_room_once(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(bytes(100))
    os.link(folder / "last.ckpt", folder / "best.ckpt")
    (folder / "images-8.ckpt").write_bytes(bytes(30))
    assert preflight.checkpoints.size(tmp_path) == 130


def test_what_has_no_estimate_is_skipped(look, monkeypatch):
    monkeypatch.setattr(preflight, "STRATEGIES", ("ddp",))
    assert look(only=("device memory",))["device memory"][1] == "no estimate for strategy 'single';"

    def count(cfg, sizes):
        raise preflight.scale.NoEstimate("scale: no estimate for denoiser 'ours', which has no grid")

    monkeypatch.undo()
    monkeypatch.setattr(preflight.scale, "count", count)
    lines = preflight._device_memory(SimpleNamespace(
        run=SimpleNamespace(system=torch.nn.Linear(1, 1)), strategy="single", callbacks={},
        placement=SimpleNamespace(ranks=1),
        cfg={"denoiser": {}, "image_size": 64, "trainer": {}},
    ))
    assert list(lines) == [("-", "no estimate for denoiser 'ours', which has no grid", "")]


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_8_bit_moments_cannot_be_shared_out(look, strategy):
    status, said = look(f"trainer.strategy={strategy}", "optimizer.name=adamw8bit", only=("device",))["device"]
    assert status == FAIL and "adamw8bit' works on one device and with ddp" in said


@pytest.mark.parametrize("strategy, ranks, status", [
    ("single", 1, FAIL), ("ddp", 2, FAIL), ("fsdp", 1, FAIL), ("fsdp", 2, WARN), ("zero2_offload", 1, WARN),
])
def test_a_step_that_does_not_fit_is_no_verdict_where_state_is_shared_out(monkeypatch, strategy, ranks, status):
    def step(*arguments):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(preflight.rehearsal, "step", step)
    placement = SimpleNamespace(ranks=ranks, precision="bf16-mixed", clip=None)
    seen = SimpleNamespace(run=1, data=None, device=None, strategy=strategy, placement=placement, need=3 * 2**30)
    (found,) = preflight._step(seen)
    assert found[0] == status and (status == FAIL or "by estimate a rank needs 3.0 GiB" in found[1])


def test_rotten_shards_cannot_be_read(look, tiny, tmp_path):
    def spoil(number, sample):
        return {**sample, "png": b"no picture"}

    folder = tiny.set(tmp_path / "rotten", [8], spoil=spoil)
    found = look(f"data.train=[{{shards: {folder}}}]", only=("reading",))
    assert found["reading"][0] == FAIL and "cannot be used" in found["reading"][1]


def test_the_tool_says_go_or_no_by_its_exit_code(tiny_overrides, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "READ_S", 0.0)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["preflight.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools/preflight.py"), run_name="__main__")
        return ended.value.code, capsys.readouterr()

    small = [str(ROOT / "configs/quickstart.yaml"), *SMALL, *tiny_overrides]
    code, out = run(*small)
    assert code == 0 and out.out.endswith("\ngo\n") and out.err == ""
    code, out = run(*small, "data.workers=9")
    assert code == 1 and out.out.endswith("\nno go\n") and "  FAIL  data.train: 3 shards are fewer" in out.out
    code, out = run("nowhere.yaml")
    assert code == 2 and out.err.startswith("error: no run file")


def test_ranks_that_cannot_meet_are_a_line(look, monkeypatch):
    monkeypatch.setattr(reach, "TIMEOUT_S", 1.0)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    found = look("trainer.devices=2", only=("device",))
    assert found["ranks"][0] == FAIL and "no process group of 2 ranks" in found["ranks"][1]


def test_the_worst_of_all_ranks_is_shown(monkeypatch):
    mine = [Line("disk", OK, "room"), Line("step", WARN, "slow")]
    other = [Line("disk", FAIL, "none", "make some"), Line("step", OK, "fast")]

    def gather(every, own, group):
        every[:] = [[tuple(line) for line in mine], [tuple(line) for line in other]]

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(reach.dist, "all_gather_object", gather)
    shown = reach.worst(mine, reach.Meeting("", object()))
    assert shown == [*mine, Line("disk", FAIL, "rank 1: none", "make some")]
    assert table(shown).splitlines()[-1] == "disk  FAIL  rank 1: none; make some"


@pytest.mark.slow
def test_two_ranks_meet_and_one_that_sees_another_run_file_is_named(tiny_overrides, tmp_path):
    script = tmp_path / "run.sh"
    script.write_text(f"""#!/bin/sh
extra=$1; shift
[ "$RANK" = 1 ] && set -- "$@" $extra
exec {sys.executable} {ROOT}/tools/preflight.py "$@"
""")
    script.chmod(0o755)

    def both(extra):
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", str(script), extra,
             str(ROOT / "configs/quickstart.yaml"), *SMALL, *tiny_overrides, "trainer.devices=2"],
            capture_output=True, text=True, timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )

    same = both("")
    assert same.returncode == 0 and "2 ranks on gloo, all-reduce of 64 MiB" in same.stdout, same.stdout + same.stderr
    other = both("seed=5")
    assert other.returncode == 1 and "rank 1 sees another run file than rank 0" in other.stdout, other.stderr
