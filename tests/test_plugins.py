"""A team's private package adds a denoiser, a degradation and a callback with no edit in ``sb/``."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sb import config
from sb.assemble import assemble, load_inpainter
from sb.masks import Ladder
from sb.models.text import tiny
from sb.networks import build_denoiser
from sb.registry import build
from sb.types import Condition, Request

PACKAGE = '''
import lightning.pytorch as pl
import torch
from torch import nn

from sb.registry import register


@register("denoiser", "acme_flat")
class Flat(nn.Module):
    """One convolution of x_t and the mask, shifted by the text; it has no use for the level."""

    def __init__(self, in_channels: int, out_channels: int, mask_head: int, text_width: int, kernel: int = 3):
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, out_channels + mask_head, kernel, padding=kernel // 2)
        self.shift = nn.Linear(text_width, out_channels + mask_head)

    def forward(self, x, t, cond):
        out = self.conv(x) + self.shift(cond.tokens.mean(1))[:, :, None, None]
        return out[:, : self.out_channels], out[:, self.out_channels :]


@register("degradation", "acme_spray")
def spray(radius: int = 2):
    """The outline, grown by a square."""
    return lambda outline: torch.nn.functional.max_pool2d(outline, 2 * radius + 1, 1, radius)


@register("callback", "acme_count")
class Count(pl.Callback):
    """Counts training batches."""

    def __init__(self, start: int = 0):
        self.batches = start

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
'''
RUN = """
base: quickstart.yaml
plugins: [acme_brushes]
ladder:
  levels: [{name: outline}, {name: acme_spray, radius: 1}, {name: box}]
  level_weights: [1, 1, 1]
denoiser: {name: acme_flat, kernel: 3}
data: {tasks: [{name: object, weight: 1.0, label_share: 0.25}]}
callbacks: {count: {name: acme_count, start: 0}}
"""


@pytest.fixture
def run_file(tmp_path, monkeypatch, own_registry):
    """A run file in a folder that also holds the private package; the folder is the working folder."""
    (tmp_path / "acme_brushes").mkdir()
    (tmp_path / "acme_brushes" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "run.yaml"
    sys.modules.pop("acme_brushes", None)


def test_private_entries_are_built_from_a_run_file(run_file):
    overrides = ["ladder.levels.1.radius=3", "denoiser.kernel=1", "callbacks.count.start=7"]
    cfg = config.plain(config.load(run_file, overrides))

    denoiser = build_denoiser(cfg, Ladder(**cfg["ladder"]), 4, tiny(width=8, layers=1, heads=2))
    cond = Condition(torch.zeros(2, 1, 8), None, torch.zeros(2))
    prediction, logits = denoiser(torch.zeros(2, 4 + 16, 8, 8), torch.zeros(2, dtype=torch.int64), cond)
    assert prediction.shape == (2, 4, 8, 8) and logits.shape == (2, 16, 8, 8)  # k = 4 x 4 mask pixels
    assert denoiser.conv.kernel_size == (1, 1)

    outline = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    outline[..., 10:20, 10] = outline[..., 10, 10:20] = 1  # an L, whose box it does not fill
    mask = Ladder(cfg["ladder"]["levels"])(outline, torch.tensor([1]))
    assert int(mask.sum()) == 100 - 36  # the L grown by 3 px, clipped to its box: all but a 6 x 6 corner

    assert build("callback", cfg["callbacks"]["count"]).batches == 7


def test_a_private_model_trains_and_paints(run_file, tiny_overrides):
    small = ["vae={weights: null, widths: 8, blocks: 1}", "text={width: 16, layers: 1, heads: 2}"]
    run = assemble(config.load(run_file, [*small, *tiny_overrides]))
    before = {name: value.clone() for name, value in run.system.denoiser.state_dict().items()}
    run.fit()
    counts = [callback for callback in run.trainer.callbacks if type(callback).__name__ == "Count"]
    assert [count.batches for count in counts] == [2] and run.system.images_seen == 8  # 8 images in fours
    assert any(not torch.equal(value, before[name]) for name, value in run.system.denoiser.state_dict().items())
    assert (run.run_dir / "model" / "unet.safetensors").is_file()

    painter = load_inpainter(run.run_dir)
    assert type(painter.denoiser).__name__ == "Flat"
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, 8:20, 8:20] = 1
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    pixels = painter.paint([Request(image, mask, "red star", level=1.0, seed=1)], steps=2)[0].pixels
    assert torch.equal(pixels[:, mask[0] == 0], image[:, mask[0] == 0]) and not torch.equal(pixels, image)


def test_a_typo_in_a_private_name_finds_the_private_name(run_file):
    cfg = config.plain(config.load(run_file, ["denoiser.name=acme_flatt"]))
    with pytest.raises(ValueError, match="did you mean 'acme_flat'"):
        build("denoiser", cfg["denoiser"], in_channels=5, out_channels=4, mask_head=1, text_width=8)


def test_the_private_entry_needs_its_plugin(run_file):
    run_file.write_text(RUN.replace("[acme_brushes]", "[]"))
    cfg = config.plain(config.load(run_file))
    with pytest.raises(ValueError, match="no degradation named 'acme_spray'"):
        Ladder(cfg["ladder"]["levels"])


def test_a_private_denoiser_that_is_not_told_the_task_cannot_learn_to_remove(run_file, tiny_overrides):
    small = ["vae={weights: null, widths: 8, blocks: 1}", "text={width: 16, layers: 1, heads: 2}"]
    remove = "data.tasks=[{name: remove, weight: 1.0}]"
    with pytest.raises(ValueError, match="'remove' is for a denoiser that is told the task; set denoiser.with_task"):
        assemble(config.load(run_file, [*small, *tiny_overrides, remove]))


def test_the_tests_own_plugins_are_found_beside_a_stray_package_of_their_name(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    root = Path(__file__).parents[1]
    command = [sys.executable, "-P", "-c", "import tests; print(tests.__file__)"]
    env = {"PYTHONPATH": f"{root}:{tmp_path}"}
    found = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).parent == root / "tests"
