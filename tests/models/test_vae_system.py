"""VAE training: the clock, the measured latents, the objective's parts, the critic beside one optimizer."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from sb.models.latents import Posterior
from sb.models.optim import AdamW
from sb.models.tiny_vae import TinyVAE
from sb.models.vae import KLVAE
from sb.models.vae_system import VAEObjective, VAESystem, psnr
from sb.registry import build
from sb.types import Batch

SIZE, BATCH = 16, 4


def make_batches(number: int, seed: int = 0) -> list[Batch]:
    """Batches of two-coloured pictures."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(number):
        colours = torch.randint(0, 256, (BATCH, 3, 2, 1), generator=generator, dtype=torch.uint8)
        image = colours.repeat_interleave(SIZE // 2, dim=2).expand(-1, -1, -1, SIZE).contiguous()
        zeros = torch.zeros(BATCH, dtype=torch.int64)
        outline = torch.ones(BATCH, 1, SIZE, SIZE, dtype=torch.uint8)
        made.append(Batch(image, outline, zeros, zeros, [""] * BATCH, ["k"] * BATCH).check())
    return made


def loader(batches: list[Batch]) -> Any:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def make_system(seed: int = 0, vae: Any = None, **objective: Any) -> VAESystem:
    torch.manual_seed(seed)
    vae = vae or TinyVAE(stages=1, widths=8, blocks=1)
    return VAESystem(vae, VAEObjective(**objective), AdamW(lr=5e-3), total_images=400, batch_size=BATCH, seed=seed)


def make_trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults = {"accelerator": "cpu", "logger": False, "log_every_n_steps": 1, "max_epochs": 1, **quiet}
    return L.Trainer(default_root_dir=folder, **{**defaults, **options})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_training_lowers_the_loss(tmp_path: Path, kind: str, precision: Any) -> None:
    torch.manual_seed(0)
    vae = TinyVAE(stages=1, widths=8, blocks=1) if kind == "tiny" else KLVAE(8, [1, 1], blocks=1, norm_groups=4)
    system = make_system(vae=vae)
    held_out = loader(make_batches(2, seed=1))
    trainer = make_trainer(tmp_path, precision=precision)
    (before,) = trainer.validate(system, held_out, verbose=False)
    trainer.fit(system, loader(make_batches(50)))
    (after,) = trainer.validate(system, held_out, verbose=False)
    assert after["val/loss"] < 0.8 * before["val/loss"]
    assert after["val/psnr"] > before["val/psnr"]


def test_the_clock_counts_images_and_survives_a_checkpoint(tmp_path: Path) -> None:
    system = make_system()
    trainer = make_trainer(tmp_path)
    trainer.fit(system, loader(make_batches(3)), loader(make_batches(2, seed=1)))
    assert system.images_seen == 3 * BATCH
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    again = make_system(seed=1)
    make_trainer(tmp_path, max_epochs=2).fit(again, loader(make_batches(2)), ckpt_path=tmp_path / "some.ckpt")
    assert again.images_seen == 5 * BATCH
    assert (again.vae.scale, again.vae.shift) == (system.vae.scale, system.vae.shift) != (1.0, 0.0)


def test_logs_use_images_as_their_axis(tmp_path: Path) -> None:
    system = make_system()
    start = system.images_seen = 20_000_001  # odd and above 2^24: float32 cannot hold it
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = make_trainer(tmp_path, logger=logger)
    trainer.fit(system, loader(make_batches(2)), loader(make_batches(1, seed=1)))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [start + BATCH, start + 2 * BATCH]
    assert [event.step for event in events.Scalars("val/psnr")] == [start + 2 * BATCH]
    assert "step" not in events.Tags()["scalars"]
    assert events.Images("val/reconstruction")[-1].step == start + 2 * BATCH
    assert (events.Images("val/reconstruction")[-1].width, events.Images("val/reconstruction")[-1].height) == (64, 32)


def test_validation_measures_the_latents(tmp_path: Path) -> None:
    system = make_system(vae=KLVAE(8, [1, 1], blocks=1, norm_groups=4))
    batches = make_batches(3)
    make_trainer(tmp_path).validate(system, loader(batches), verbose=False)
    images = torch.cat([batch.image for batch in batches]).float() / 127.5 - 1
    with torch.no_grad():
        draw = system.vae.latents(images, torch.Generator().manual_seed(0))
    assert float(draw.std()) == pytest.approx(1, abs=0.05)
    assert float(draw.mean()) == pytest.approx(0, abs=0.05)


def test_same_seed_same_training(tmp_path: Path) -> None:
    runs = [make_system(noise_std=0.1) for _ in range(2)]
    for index, system in enumerate(runs):
        torch.manual_seed(index)  # the global generator has no say
        make_trainer(tmp_path).fit(system, loader(make_batches(3)))
    assert all(torch.equal(a, b) for a, b in zip(*(s.parameters() for s in runs), strict=True))


@pytest.mark.parametrize("name", ["l1", "mse", "gradient", "kl"])
def test_each_weight_scales_its_part(name: str) -> None:
    torch.manual_seed(0)
    off: dict[str, Any] = {"l1": 0.0, "mse": 0.0, "gradient": 0.0, "kl": 0.0}
    picture, target = torch.randn(2, 1, 3, 8, 8)
    posterior = Posterior(torch.randn(1, 4, 4, 4), torch.rand(1, 4, 4, 4) + 0.1)
    out = build("objective", {"name": "vae", **off, name: 2.5})(picture, target, posterior, 0)
    assert float(out["loss"]) == pytest.approx(2.5 * float(out[name]), rel=1e-5)
    assert float(VAEObjective(**off)(picture, target, posterior, 0)["loss"]) == 0


def test_fixed_noise_widens_the_draw() -> None:
    plain = Posterior(torch.ones(1, 4, 32, 32), torch.zeros(1, 4, 32, 32))
    assert torch.equal(VAEObjective().draw(plain, torch.Generator()), plain.mean)
    noisy = VAEObjective(noise_std=0.3).draw(plain, torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(0.3, abs=0.02)


def test_critic_pulls_from_its_start_on_and_learns_before() -> None:
    torch.manual_seed(0)
    objective = VAEObjective(critic_weight=0.5, critic_start_images=100, critic_width=8)
    picture, target = torch.randn(1, 3, 32, 32, requires_grad=True), torch.randn(1, 3, 32, 32)
    posterior = Posterior(torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4))
    pulls: dict[int, Any] = {}
    for images_seen in (99, 100):
        out = objective(picture, target, posterior, images_seen)
        picture.grad = None
        objective.zero_grad()
        out["loss"].backward()
        assert picture.grad is not None and objective.critic is not None
        assert all(p.grad is not None for p in objective.critic.parameters())
        pulls[images_seen] = picture.grad.clone(), [p.grad.clone() for p in objective.critic.parameters()]
        assert ("adversarial" in out) is (images_seen == 100)
    plain = VAEObjective().reconstruction(picture, target, posterior)["loss"]
    (reconstruction,) = torch.autograd.grad(plain, picture)
    assert torch.allclose(pulls[99][0], reconstruction, atol=1e-7)
    extra = (pulls[100][0] - reconstruction).norm() / reconstruction.norm()
    assert float(extra) == pytest.approx(0.5, rel=1e-3)  # the adaptive weight times critic_weight
    assert all(torch.allclose(a, b) for a, b in zip(pulls[99][1], pulls[100][1], strict=True))


def test_training_with_a_critic_clips_and_accumulates(tmp_path: Path) -> None:
    system = make_system(critic_weight=0.1, critic_start_images=2 * BATCH, critic_width=8, vae=TinyVAE(4, 1, 8, 1))
    before = [p.clone() for p in system.parameters()]
    small = [Batch(b.image.repeat(1, 1, 2, 2), b.outline.repeat(1, 1, 2, 2), b.level, b.task, b.text, b.key)
             for b in make_batches(4)]
    trainer = make_trainer(tmp_path, gradient_clip_val=1.0, accumulate_grad_batches=2, precision="bf16-mixed")
    trainer.fit(system, loader(small))
    assert trainer.global_step == 2
    assert all(not torch.equal(a, b) for a, b in zip(before, system.parameters(), strict=True))
    assert all(bool(p.isfinite().all()) for p in system.parameters())


def test_perceptual_stays_outside_the_module_tree(tmp_path: Path) -> None:
    from torchvision.models.vgg import cfgs, make_layers

    torch.save(make_layers(cfgs["D"], batch_norm=False).state_dict(), tmp_path / "vgg16.pth")
    system = make_system(perceptual_path=str(tmp_path / "vgg16.pth"), perceptual_weight=2.0)
    assert not any("perceptual" in name or "features" in name for name in system.state_dict())
    picture, target = torch.rand(2, 1, 3, 16, 16)
    posterior = Posterior(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4))
    out = system.objective(picture, target, posterior, 0)
    plain = VAEObjective()(picture, target, posterior, 0)
    assert float(out["loss"]) == pytest.approx(float(plain["loss"]) + 2 * float(out["perceptual"]), rel=1e-5)


def test_psnr_known_answers() -> None:
    target = torch.zeros(2, 3, 4, 4)
    picture = torch.stack([target[0] + 0.2, target[1]])
    assert psnr(picture, target).tolist() == pytest.approx([20.0, 106.0206], abs=1e-3)
    assert float(psnr(torch.full((1, 3, 2, 2), 5.0), torch.ones(1, 3, 2, 2))) > 100  # clamped


def test_a_checkpoint_of_another_shape_is_one_line(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(make_system(), loader(make_batches(1)))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    wider = make_system(vae=TinyVAE(stages=1, widths=16, blocks=1))
    with pytest.raises(ValueError, match=r"some.ckpt does not fit this model; \d+ of another shape: vae") as error:
        make_trainer(tmp_path, max_epochs=2).fit(wider, loader(make_batches(2)), ckpt_path=tmp_path / "some.ckpt")
    assert "\n" not in str(error.value)
