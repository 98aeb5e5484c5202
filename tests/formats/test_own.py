"""Training checkpoints as models: any moment of a run, without the strategy that wrote it."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sb.assemble import assemble, load_inpainter
from sb.convert import convert


@pytest.fixture(scope="module")
def run(small_run_file, tmp_path_factory):
    """A finished run of 16 images with a checkpoint kept at 8."""
    folder = tmp_path_factory.mktemp("own") / "run"
    run = assemble(small_run_file(
        f"run_dir={folder}", "trainer.images=16", "trainer.val_every_images=8", "callbacks.save.keep_images=8",
        "callbacks.ema.every_images=0",
    ))
    run.fit()
    return folder


@pytest.mark.parametrize("weights, file", [("ema", "unet"), ("raw", "unet.raw")])
def test_the_last_checkpoint_is_the_model(run, tmp_path, weights, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    lines = convert(run / "checkpoints" / "last.ckpt", tmp_path / "out", "sb", weights)
    assert lines[0].endswith("last.ckpt: training checkpoint")
    ours, theirs = load_file(tmp_path / "out" / "unet.safetensors"), load_file(run / "model" / f"{file}.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_earlier_moment_becomes_one_file_that_paints(run, tmp_path):
    kept = run / "checkpoints" / "images-000000008.ckpt"
    convert(kept, tmp_path / "one.safetensors", "single-file")
    assert load_inpainter(tmp_path / "one.safetensors").about["images_seen"] == 8
    early = dict(load_inpainter(kept).denoiser.named_parameters())
    late = load_inpainter(run).denoiser.named_parameters()
    assert any(not torch.equal(value, early[name]) for name, value in late)


def test_a_run_stopped_before_its_first_model_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="last.ckpt: its run has no model folder yet; resume it up to its next save"):
        convert(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "out", "sb")


def test_another_runs_frozen_parts_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    text = tmp_path / "run" / "model" / "text.safetensors"
    save_file({name: value + 1 for name, value in load_file(text).items()}, text)
    with pytest.raises(ValueError, match="last.ckpt was trained with another text than .*model holds"):
        convert(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "out", "sb")
    assert not (tmp_path / "out").exists()


def test_adapters_alone_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    meta = tmp_path / "run" / "model" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "adapter": {"rank": 2}}))
    with pytest.raises(ValueError, match="holds adapters, not what they adapt: give the run folder"):
        convert(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "out", "sb")
