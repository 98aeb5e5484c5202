"""Run files to runs: every one takes a step, leaves a model that paints, and says clearly what is wrong."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from sb import config
from sb.assemble import Run, assemble, load_inpainter
from sb.masks import Ladder
from sb.models.unet import UNet
from sb.networks import build_denoiser, build_text, build_vae
from sb.registry import register
from sb.types import Request

CONFIGS = Path(__file__).parents[1] / "configs"
RUN_FILES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "base.yaml")
SMALL_VAE = {
    "tiny": ["vae.widths=8", "vae.blocks=1"],
    "kl": ["vae.channels=8", "vae.multipliers=[1,1,1]", "vae.blocks=1", "+vae.norm_groups=4"],
}
SMALL_NET = ["denoiser.widths=[16,32]", "denoiser.attention=[false,true]", "denoiser.blocks=1", "denoiser.heads=2",
             "denoiser.groups=8", "text={name: tiny, width: 16, layers: 1, heads: 2}", "vae.weights=null",
             "callbacks.ema.every_images=0"]
GOLDEN = Path(__file__).parent / "golden.json"


def shrunk(name: str, overrides: list[str]):
    loaded = config.load(CONFIGS / name)
    small = SMALL_VAE[loaded.vae.name] + (SMALL_NET if "denoiser" in loaded else [])
    return config.load(CONFIGS / name, [*small, *overrides])


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name == "shapes.yaml")) for name in RUN_FILES  # it trains an oracle
])
def test_each_run_file_takes_a_step(name, tiny_overrides, tmp_path, finished):
    start = ["start=null"]  # starting from published weights is in tests/formats/test_start.py
    if config.load(CONFIGS / name).lora:  # adapts a trained model of the same networks
        base = assemble(shrunk("coco.yaml", [*tiny_overrides, f"run_dir={tmp_path}/start"]))
        base.fit()
        start = [f"start={base.run_dir}", f"vae.weights={base.run_dir}"]
    if config.load(CONFIGS / name).teacher:
        start += [f"teacher={finished().run_dir}"]
    run = assemble(shrunk(name, [*tiny_overrides, *start]))
    run.fit()
    assert run.system.images_seen == 8
    assert (run.run_dir / "model" / "meta.json").is_file() and (run.run_dir / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((run.run_dir / "versions.json").read_text())["torch"] != "absent"


@pytest.mark.parametrize("name", RUN_FILES)
def test_each_run_file_builds_at_full_width(name):
    cfg = config.plain(config.load(CONFIGS / name))
    for section in {"vae", "text", "denoiser"} & cfg.keys():
        cfg[section].pop("weights", None)
    with torch.device("meta"):
        vae = build_vae(cfg)
        if "denoiser" in cfg:
            text = build_text(cfg)
            denoiser = build_denoiser(cfg, Ladder(**cfg["ladder"]), vae.latent_channels, text)
            assert sum(p.numel() for p in denoiser.parameters()) > 1e6


@pytest.fixture(scope="module")
def finished(tiny_settings, tmp_path_factory):
    """Overrides -> the quickstart's run of two steps with them, trained once."""
    made: dict[tuple[str, ...], Run] = {}

    def of(*recipe: str) -> Run:
        if recipe not in made:
            place = f"run_dir={tmp_path_factory.mktemp('finished')}/run"
            steps = ["trainer.images=8", "trainer.val_every_images=8"]
            made[recipe] = assemble(shrunk("quickstart.yaml", [*tiny_settings, *steps, place, *recipe]))
            made[recipe].fit()
        return made[recipe]

    return of


@pytest.fixture
def copied(finished, tmp_path):
    """The same in a folder of the test's own, where ``tiny_overrides`` has its run."""

    def of(*recipe: str) -> Run:
        run = finished(*recipe)
        shutil.copytree(run.run_dir, tmp_path / "run")
        return replace(run, run_dir=tmp_path / "run")

    return of


@pytest.fixture
def trained(copied, tiny_overrides):
    """A run of a few steps, and the overrides that made it."""
    return copied(), tiny_overrides


def test_the_model_folder_paints_wherever_it_is_moved(trained, tmp_path):
    run, _ = trained
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, 8:20, 8:20] = 1
    request = Request(image, mask, "red star", seed=1)
    expected = load_inpainter(run.run_dir).paint([request])[0]
    moved = (run.run_dir / "model").rename(tmp_path / "elsewhere")
    for place in (moved, moved / "unet.safetensors"):
        assert torch.equal(load_inpainter(place).paint([request])[0].decoded, expected.decoded)
    averaged, raw = load_inpainter(moved).denoiser, load_inpainter(moved / "unet.raw.safetensors").denoiser
    assert any(not torch.equal(a, b) for a, b in zip(averaged.parameters(), raw.parameters(), strict=True))


def test_an_existing_run_is_refused_and_auto_continues_it(trained):
    run, overrides = trained
    with pytest.raises(ValueError, match="holds a run already: resume=auto continues it"):
        assemble(shrunk("quickstart.yaml", overrides))
    longer = assemble(shrunk("quickstart.yaml", [*overrides, "resume=auto", "trainer.images=16"]))
    longer.fit()
    assert longer.system.images_seen == 16


class Dropping(UNet):
    """A team's own denoiser, with dropout: it draws from torch's own generator."""

    def forward(self, x, t, cond):
        return super().forward(torch.nn.functional.dropout(x, 0.5, self.training), t, cond)


@pytest.mark.parametrize("denoiser", [pytest.param("unet", marks=pytest.mark.slow), "dropping"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(denoiser, tiny_overrides, tmp_path, own_registry):
    register("denoiser", "dropping")(Dropping)
    overrides = [*tiny_overrides, "trainer.images=24", "trainer.val_every_images=12",
                 "optimizer.decay=none", "callbacks.save.every_images=4"]

    def made(*more):
        cfg = shrunk("quickstart.yaml", [*overrides, *more])
        cfg.denoiser.name = denoiser
        return assemble(cfg)

    straight = made(f"run_dir={tmp_path}/straight")
    straight.fit()
    torch.manual_seed(99)  # whatever the global state is
    stopped = made()

    class Stop(Exception):
        pass

    def stop(trainer, module, outputs, batch, index):
        if module.images_seen == 16:
            raise Stop

    stopped.trainer.callbacks[0].on_train_batch_end = stop
    with pytest.raises(Stop):
        stopped.fit()
    resumed = made("resume=auto")
    resumed.fit()
    for (name, a), b in zip(straight.system.state_dict().items(), resumed.system.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_another_shape_is_refused_with_both_widths(trained):
    run, overrides = trained
    cfg = shrunk("quickstart.yaml", [*overrides, "denoiser.widths=[24,32]",
                                     f"denoiser.weights={run.run_dir}/model/unet.safetensors", "run_dir=other"])
    with pytest.raises(ValueError, match=r"another network: widths is \[24, 32\], there \[16, 32\]"):
        assemble(cfg)


@pytest.mark.parametrize("override, says", [
    ("+denoser={name: unet}", "no key 'denoser'; did you mean 'denoiser'"),
    ("data.train=[{shards: []}]", "the list of shards is empty"),
    ("trainer.precision=16-mixed", "unusably slow without a GPU"),
    ("trainer.precision=bf16-true", "precision bf16-true is none of 32-true, bf16-mixed, 16-mixed"),
    ("sampler={name: ddim, steps: 9}", "sampler: needs a name and nothing else"),
    ("data.tasks=[object]", "data.tasks: every entry needs 'name:', this one is 'object'"),
    ("data.tasks=[{name: object, weight: 0.0}]", "data.tasks: all weights are 0"),
    ("data.train=[{weight: 1.0}]", "data.train: every entry needs 'shards:'"),
    ("text.heads=3", "text 'tiny': needs context_length >= 3 and a width that heads divide"),
    ("callbacks.sample_log.every_images=0", "sample_log: every_images must be at least 1, not 0"),
    ("schedule.prediction=eps", "eps says nothing of x0 at zero terminal SNR"),
    ("resume=always", "resume must be 'never' or 'auto'"),
    ("optimizer.lr=fast", "lr must be float, not 'fast'"),
])
def test_what_is_wrong_is_said_in_one_line(override, says, tiny_overrides):
    with pytest.raises(ValueError, match=says) as error:
        assemble(shrunk("quickstart.yaml", [*tiny_overrides, override])).fit()
    assert "\n" not in str(error.value)


def test_golden_losses(tiny_overrides):
    """Five losses in fp32 on one thread: a change of structure may not move a digit that matters."""
    cfg = shrunk("quickstart.yaml", [*tiny_overrides, "trainer.images=20", "trainer.val_every_images=20"])
    run = assemble(cfg)
    losses = []

    def keep(trainer, module, outputs, batch, index):
        losses.append(float(outputs["loss"]))

    run.trainer.callbacks[0].on_train_batch_end = keep
    run.fit()
    if os.environ.get("WRITE_GOLDEN"):  # after a change that is meant to move them
        GOLDEN.write_text(json.dumps(losses))
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


def resumed(overrides, *more):
    """A run that goes on, the images at its optimizer steps with their learning rate, and at its validations."""
    run = assemble(shrunk("quickstart.yaml", [*overrides, "resume=auto", *more]))
    rates, validations = {}, []

    class Watch(L.Callback):
        def on_train_start(self, trainer, module):
            self.step = trainer.global_step

        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step != self.step:
                self.step = trainer.global_step
                rates[module.images_seen] = trainer.optimizers[0].param_groups[0]["lr"]

        def on_validation_end(self, trainer, module):
            validations.append(module.images_seen)

    run.trainer.callbacks.insert(0, Watch())
    run.fit()
    return run, rates, validations


RECIPE = ["optimizer.lr=0.001", "optimizer.warmup_images=0", "optimizer.decay=linear"]


@pytest.mark.parametrize("checkpoint", ["last.ckpt", "best.ckpt"])
def test_an_extended_run_trains_at_the_rate_of_its_new_length(copied, tiny_overrides, checkpoint):
    overrides = [*tiny_overrides, *RECIPE]
    first = copied(*RECIPE)
    before = {name: value.clone() for name, value in first.system.state_dict().items()}
    (first.run_dir / "checkpoints" / checkpoint).replace(first.run_dir / "checkpoints" / "last.ckpt")
    run, rates, validations = resumed(
        overrides, "trainer.images=16", "optimizer.lr=0.01", "optimizer.weight_decay=0.5"
    )
    assert run.system.images_seen == 16 and validations == [16]
    assert max(rates) == 16 and rates[16] == pytest.approx(0.01 * (1 - 12 / 16))  # 12 images lie before the last step
    assert run.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.5
    assert any(not torch.equal(value, before[name]) for name, value in run.system.state_dict().items())


@pytest.mark.parametrize("batch_size, accumulate", [(8, 1), (2, 1), (3, 1), (2, 3), (12, 1)])
def test_another_step_size_keeps_the_clock_in_images(copied, tiny_overrides, batch_size, accumulate):
    overrides = [*tiny_overrides, *RECIPE]
    copied(*RECIPE)
    run, rates, validations = resumed(
        overrides, "trainer.images=32", "trainer.val_every_images=16", f"data.batch_size={batch_size}",
        f"trainer.accumulate={accumulate}",
    )
    step, total = batch_size * accumulate, run.system.total_images
    seen = run.system.images_seen
    assert total <= seen < total + step and total - 32 < 16 + step
    assert validations[-1] == seen == max(rates)
    for images, rate in rates.items():
        if images > 8 + step:
            assert rate == pytest.approx(0.001 * (1 - (images - step) / total)), images


def test_a_run_may_go_on_in_another_memory_layout(tiny_overrides):
    """torch's fused AdamW reads weights and moments in memory order, whatever their shapes say."""
    recipe = [*tiny_overrides, "+optimizer.eps=0.001", "optimizer.warmup_images=0", "optimizer.decay=none"]
    straight = assemble(shrunk("quickstart.yaml", [*recipe, "trainer.images=16"]))
    straight.fit()
    straight.run_dir.rename(straight.run_dir.with_name("straight"))
    assemble(shrunk("quickstart.yaml", [*recipe, "trainer.channels_last=false"])).fit()
    run, _, _ = resumed(recipe, "trainer.images=16", "trainer.channels_last=true")
    for (name, a), b in zip(straight.system.state_dict().items(), run.system.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


def test_a_complete_run_is_left_as_it_is(trained):
    run, overrides = trained
    files = [path for part in ("model", "checkpoints") for path in (run.run_dir / part).iterdir()]
    before = {path: path.stat().st_mtime_ns for path in files}
    again, rates, validations = resumed(overrides)
    assert again.system.images_seen == 8 and not rates and not validations
    assert {path: path.stat().st_mtime_ns for path in files} == before
    for (name, a), b in zip(run.system.state_dict().items(), again.system.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_resuming_with_another_frozen_part_is_refused(trained):
    run, overrides = trained
    with pytest.raises(ValueError, match=r"last.ckpt was trained with another text: resume with the one of then"):
        resumed(overrides, "text.seed=1", "trainer.images=16")


def test_a_device_that_is_not_there_is_one_line(trained):
    run, _ = trained
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"^device '{name}' cannot be used here: .+$"):
            load_inpainter(run.run_dir, name)


def test_resuming_with_other_widths_or_half_a_checkpoint_is_one_line(trained):
    run, overrides = trained
    with pytest.raises(ValueError, match=r"last.ckpt does not fit this model; .* of another shape") as error:
        resumed(overrides, "denoiser.widths=[24,32]", "trainer.images=16")
    assert "\n" not in str(error.value)


def test_a_checkpoint_cut_off_is_passed_over_by_name_and_none_left_is_refused(trained, caplog):
    run, overrides = trained
    last, best = (run.run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.write_bytes(last.read_bytes()[:5000])
    again, rates, _ = resumed(overrides, "trainer.images=16")
    assert again.checkpoint == best and again.system.images_seen == 16
    assert f"passed over: {last} is not a readable checkpoint" in caplog.text
    for path in (last, best):
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="none of the 2 checkpoints in .*last.ckpt is not a readable") as error:
        resumed(overrides, "trainer.images=16")
    assert "\n" not in str(error.value)


def test_the_dtype_changes_what_is_computed_in_and_keeps_the_casts_answers(trained):
    run, _ = trained
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    request = Request(image, torch.ones(1, 32, 32, dtype=torch.uint8), "red star", seed=1)
    plain, low = (load_inpainter(run.run_dir, dtype=dtype) for dtype in ("fp32", "bf16"))
    assert low.denoiser.conv_in.weight.dtype == torch.bfloat16 and plain.denoiser.conv_in.weight.dtype == torch.float32
    fp32, bf16 = (painter.paint([request])[0].decoded for painter in (plain, low))
    plain.dtype = torch.bfloat16  # the casts at every call
    assert torch.equal(plain.paint([request])[0].decoded, bf16) and not torch.equal(fp32, bf16)
    assert load_inpainter(run.run_dir).dtype == torch.float32  # as it was trained
    with pytest.raises(ValueError, match="dtype 'fp16' is none of fp32, bf16"):
        load_inpainter(run.run_dir, dtype="fp16")


@pytest.mark.slow
def test_a_compiled_painter_paints_the_same(trained):
    run, _ = trained
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    request = Request(image, torch.ones(1, 32, 32, dtype=torch.uint8), "red star", seed=1)
    plain, quick = (load_inpainter(run.run_dir, compiled=compiled).paint([request])[0] for compiled in (False, True))
    assert (plain.decoded.int() - quick.decoded.int()).abs().max() <= 1


@pytest.mark.parametrize("changes, says", [
    (["schedule.prediction=eps"], "schedule.prediction is v there, eps here"),
    (["conditioning.encode=full"], "conditioning.encode is masked there, full here"),
    (["ladder.levels=[{name: outline}, {name: box}]", "ladder.level_weights=[1, 1]"], "its ladder has other levels"),
    (["data.tasks=[{name: remove}, {name: object}]"], "its data.tasks are others"),
    (["vae.blocks=2"], "vae.blocks"),
    (["system.train_text=true"], "set system.train_text=false"),
    (["teacher=null", "denoiser.weights=null"], "'distilled' learns from one; set teacher: to a trained model"),
])
def test_a_teacher_must_be_of_the_students_kind(trained, changes, says):
    run, overrides = trained
    cfg = shrunk("shapes_distilled.yaml", [*overrides, "run_dir=student", f"teacher={run.run_dir}", *changes])
    with pytest.raises(ValueError, match=says):
        assemble(cfg)


def test_a_system_without_a_teacher_is_given_none(trained):
    run, overrides = trained
    with pytest.raises(ValueError, match="teacher: system 'smartbrush' has none"):
        assemble(shrunk("quickstart.yaml", [*overrides, "run_dir=student", f"teacher={run.run_dir}"]))


def test_a_quick_autoencoder_draws_the_previews(trained, tmp_path):
    run, overrides = trained
    painter = load_inpainter(run.run_dir, "cpu", preview=str(run.run_dir))
    latents = torch.randn(1, painter.vae.latent_channels, 4, 4)
    assert torch.equal(painter.preview(latents), painter.vae.picture(latents))
    other = assemble(shrunk("quickstart.yaml", [*overrides, f"run_dir={tmp_path}/other", "vae.latent_channels=3"]))
    other.fit()
    with pytest.raises(ValueError, match="has 3 latent channels of 4 px, the model's have 4 of 4"):
        load_inpainter(run.run_dir, "cpu", preview=str(other.run_dir))
