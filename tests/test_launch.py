"""Placement: every interval in images, rounded so that a run ends on a validation."""

from types import SimpleNamespace

import pytest

from sb.launch import EndOfImages, Placement


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


def test_intervals_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        Placement(8, 100, 0, accelerator="cpu")


@pytest.mark.parametrize("total, stops", [(15, True), (16, True), (17, False)])
def test_a_run_ends_by_images_however_many_steps_there_were(total, stops):
    trainer, end = SimpleNamespace(should_stop=False), EndOfImages(total)
    end.on_train_batch_end(trainer, SimpleNamespace(images_seen=16), None, None, 0)
    assert trainer.should_stop is stops
