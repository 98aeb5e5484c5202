"""The training step: what it noises, whom it tells what, and that it can learn."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from sb.conditioning import SmartBrushConditioning
from sb.estimate import forward_flops
from sb.losses import DenoisingObjective
from sb.masks import Ladder
from sb.models.smartbrush import SmartBrush
from sb.models.text import tiny
from sb.models.tiny_vae import TinyVAE
from sb.models.unet import UNet
from sb.schedule import scaled_linear
from sb.types import Batch, Condition

LADDER = Ladder([{"name": "outline"}, {"name": "blur", "sigma": 0.1}, {"name": "box"}])


def a_system(**other) -> SmartBrush:
    text = tiny(width=16, layers=1, heads=2)
    parts = dict(
        denoiser=UNet(8 + 16, 8, 16, 16, 3, widths=(16, 32), attention=(False, True), blocks=1, heads=2, groups=8,
                      pooled_width=16, zero_init=False),
        vae=TinyVAE(latent_channels=8, stages=2, widths=16, blocks=1), text=text,
        schedule=scaled_linear(prediction="v", zero_terminal_snr=True), ladder=LADDER,
        conditioning=SmartBrushConditioning(16), objective=DenoisingObjective(), optimizer=None,
        tasks=["object", "text_to_image"], has_object=[True, False], object_share=0.8, total_images=100, batch_size=4,
        seed=0,
    )
    return SmartBrush(**{**parts, **other})


def a_batch() -> Batch:
    image = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    outline = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    outline[:, :, 8:20, 10:14] = 1
    outline[:, :, 8:12, 10:24] = 1
    outline[3] = 1
    level, task = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 0, 1])
    return Batch(image, outline, level, task, ["star", "red star", "ring", "a scene"], list("abcd")).check()


def step(system, batch, seed=0, dropout=0.0):
    return system.step(batch, system.draw(batch.image, torch.Generator().manual_seed(seed), dropout))


def test_flops_are_three_forwards_of_what_is_trained_and_one_of_what_is_frozen():
    system, meta = a_system(), torch.device("meta")
    one = torch.zeros(1, device=meta, dtype=torch.int64)
    length = system.text.context_length
    cond = Condition(torch.empty(1, length, 16, device=meta), torch.empty(1, 16, device=meta), one.float(), one)
    tokens = torch.zeros(1, length, device=meta, dtype=torch.int64)
    unet = forward_flops(system.denoiser, torch.empty(1, 24, 8, 8, device=meta), one, cond)
    vae = forward_flops(system.vae.encoder, torch.empty(1, 3, 32, 32, device=meta))
    text = forward_flops(system.text, tokens)
    assert min(unet, vae, text) > 0
    assert system.flops(32, pictures=False, texts=False) == 3 * unet
    assert system.flops(32, pictures=True, texts=True) == 3 * unet + 2 * vae + text  # the picture, and it masked
    full = a_system(conditioning=SmartBrushConditioning(16, encode="full"), train_text=True)
    assert full.flops(32, pictures=True, texts=True) == 3 * unet + vae + 3 * text


def test_frozen_parts_follow_the_module(monkeypatch):
    system = a_system()
    assert system.vae is system.vae and system._place == torch.device("cpu")
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: moved.append((module, device)))
    monkeypatch.setattr(type(system), "device", torch.device("meta"))
    assert system.text is system._outside["text"] and system.vae is system._outside["vae"]
    assert moved == [(system._outside["vae"], torch.device("meta")), (system._outside["text"], torch.device("meta"))]


def test_total_is_denoising_plus_a_hundredth_of_dice():
    system = a_system(object_share=0.75)  # the batch's own share
    out = step(system, a_batch())
    assert torch.allclose(out["loss"], out["denoise"] + 0.01 * out["dice"])


def test_what_callbacks_get():
    out = step(a_system(), a_batch())
    assert out["predicted"].shape == out["target"].shape == (4, 16, 8, 8)
    assert out["denoise_each"].shape == out["dice_each"].shape == (4,)
    assert out["has_object"].tolist() == [True, True, True, False]
    assert torch.equal(out["mask"][:1], a_batch().outline[:1])  # level 0 is the outline
    assert int(out["mask"][3].min()) == 1  # text-to-image: the whole picture
    assert not any(v.requires_grad for k, v in out.items() if k != "loss")


def test_dice_leaves_out_samples_without_an_object():
    batch = a_batch()
    with_all = step(a_system(), batch)
    assert torch.allclose(with_all["dice"], with_all["dice_each"][:3].mean())


def test_the_same_seed_gives_the_same_loss_and_another_one_does_not():
    system = a_system()
    assert torch.equal(step(system, a_batch(), 1)["loss"], step(system, a_batch(), 1)["loss"])
    assert not torch.equal(step(system, a_batch(), 1)["loss"], step(system, a_batch(), 2)["loss"])


def test_dropping_all_text_is_asking_for_nothing():
    system, batch = a_system(), a_batch()
    dropped = step(system, batch, dropout=1.0)["loss"]
    kept = step(system, batch)["loss"]
    batch.text = [""] * 4
    assert torch.equal(dropped, step(system, batch)["loss"]) and not torch.equal(dropped, kept)


def test_frozen_towers_are_neither_trained_nor_saved():
    names = set(a_system().state_dict())
    assert all(name.startswith("denoiser.") for name in names)
    trained = a_system(train_text=True)
    assert any(name.startswith("text_tower.") for name in trained.state_dict())
    assert not any(p.requires_grad for p in trained.vae.parameters())


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_it_learns_one_batch(prediction):
    torch.manual_seed(0)
    system, batch = a_system(schedule=scaled_linear(prediction=prediction, zero_terminal_snr=True)), a_batch()
    optimizer = torch.optim.Adam(system.parameters(), 3e-3)
    first, last = [], []
    for i in range(60):
        out = step(system, batch, seed=i)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        (first if i < 10 else last).append([float(out["denoise"]), float(out["dice"])])
    before, after = torch.tensor(first).mean(0), torch.tensor(last[-10:]).mean(0)
    assert (after < 0.8 * before).all(), (before, after)


def parts_of(batch: Batch, *sizes: int) -> list[Batch]:
    """A batch cut into batches of these sizes."""
    names, ends = ("image", "outline", "level", "task", "text", "key"), [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [Batch(*(getattr(batch, name)[end - n : end] for name in names)) for n, end in zip(sizes, ends)]


def validated(system, batches, folder) -> dict[str, float]:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=folder, **quiet)
    return trainer.validate(system, DataLoader(batches, batch_size=None), verbose=False)[0]


def test_the_held_out_loss_does_not_depend_on_the_batch_size(tmp_path):
    system, batch = a_system(), a_batch()
    whole, cut = (validated(system, parts_of(batch, *sizes), tmp_path) for sizes in ((4,), (1, 2, 1)))
    assert set(whole) == {"val/loss", "val/denoise", "val/dice", "step"} and whole == pytest.approx(cut, rel=1e-4)
    batch.key[0] = "another"
    assert validated(system, [batch], tmp_path)["val/denoise"] != pytest.approx(whole["val/denoise"], rel=1e-4)


def test_the_held_out_dice_is_the_mean_over_samples_with_an_object(tmp_path):
    system, parts = a_system(), parts_of(a_batch(), 2, 1, 1)  # 2, 1 and no samples with an object
    want: list[float] = []
    system.step, step_of = (lambda *args: want_of(step_of(*args))), system.step

    def want_of(out):
        want.extend(out["dice_each"][out["has_object"]].tolist())
        return out

    logged = validated(system, parts, tmp_path)
    assert len(want) == 3 and logged["val/dice"] == pytest.approx(sum(want) / 3, rel=1e-5)
    nothing, whole = a_system(tasks=["text_to_image"], has_object=[False], object_share=1.0), a_batch()
    whole.task[:] = 0
    logged = validated(nothing, [whole], tmp_path)
    assert "val/dice" not in logged and "val/loss" in logged
