"""Run files to runs: every one takes a step, leaves a model that paints, and says clearly what is wrong."""

import json
from pathlib import Path

import pytest
import torch

from sb import config
from sb.assemble import assemble, build_denoiser, build_text, build_vae, load_inpainter
from sb.masks import Ladder
from sb.types import Request

CONFIGS = Path(__file__).parents[1] / "configs"
RUN_FILES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "base.yaml")
SMALL_VAE = ["vae.widths=8", "vae.blocks=1"]
SMALL_NET = ["denoiser.widths=[16,32]", "denoiser.attention=[false,true]", "denoiser.blocks=1", "denoiser.heads=2",
             "denoiser.groups=8", "text={name: tiny, width: 16, layers: 1, heads: 2}", "vae.weights=null"]
GOLDEN = Path(__file__).parent / "golden.json"


def shrunk(name: str, overrides: list[str]):
    loaded = config.load(CONFIGS / name)
    small = SMALL_VAE + (SMALL_NET if "denoiser" in loaded else [])
    return config.load(CONFIGS / name, [*small, *overrides])


@pytest.mark.parametrize("name", RUN_FILES)
def test_each_run_file_takes_a_step(name, tiny_overrides):
    run = assemble(shrunk(name, tiny_overrides))
    run.fit()
    assert run.system.images_seen == 8
    assert (run.run_dir / "model" / "meta.json").is_file() and (run.run_dir / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((run.run_dir / "versions.json").read_text())["torch"] != "absent"


@pytest.mark.parametrize("name", RUN_FILES)
def test_each_run_file_builds_at_full_width(name):
    cfg = config.plain(config.load(CONFIGS / name))
    cfg["vae"].pop("weights", None)
    with torch.device("meta"):
        vae = build_vae(cfg)
        if "denoiser" in cfg:
            text = build_text(cfg)
            denoiser = build_denoiser(cfg, Ladder(**cfg["ladder"]), vae.latent_channels, text)
            assert sum(p.numel() for p in denoiser.parameters()) > 1e6


@pytest.fixture
def trained(tiny_overrides):
    """A run of a few steps, and the overrides that made it."""
    run = assemble(shrunk("quickstart.yaml", tiny_overrides))
    run.fit()
    return run, tiny_overrides


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


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, "trainer.images=24", "trainer.val_every_images=12",
                 "optimizer.decay=none", "callbacks.save.every_images=4"]
    straight = assemble(shrunk("quickstart.yaml", [*overrides, f"run_dir={tmp_path}/straight"]))
    straight.fit()
    torch.manual_seed(99)  # whatever the global state is
    stopped = assemble(shrunk("quickstart.yaml", overrides))

    class Stop(Exception):
        pass

    def stop(trainer, module, outputs, batch, index):
        if module.images_seen == 16:
            raise Stop

    stopped.trainer.callbacks[0].on_train_batch_end = stop
    with pytest.raises(Stop):
        stopped.fit()
    resumed = assemble(shrunk("quickstart.yaml", [*overrides, "resume=auto"]))
    resumed.fit()
    for (name, a), b in zip(straight.system.state_dict().items(), resumed.system.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_another_shape_is_refused_with_the_tensors(trained):
    run, overrides = trained
    cfg = shrunk("quickstart.yaml", [*overrides, "denoiser.widths=[24,32]",
                                     f"denoiser.weights={run.run_dir}/model/unet.safetensors", "run_dir=other"])
    with pytest.raises(ValueError, match=r"does not fit this model; \d+ of another shape: .*conv_in.*not \(24,"):
        assemble(cfg)


@pytest.mark.parametrize("override, says", [
    ("+denoser={name: unet}", "no key 'denoser'; did you mean 'denoiser'"),
    ("data.train=[{shards: []}]", "no shards"),
    ("trainer.precision=16-mixed", "unusably slow without a GPU"),
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
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(losses))
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)
