"""The ablation's run files: each differs from the full method in what it names, sees as many images, and trains."""

from functools import cache
from pathlib import Path

import pytest

from sb import config
from sb.assemble import assemble
from tests.test_assemble import shrunk

FOLDER = Path(__file__).parents[1] / "configs" / "ablation"
OWN = {"name", "run_dir"}
LABEL = "data.tasks.0.label_share"
BASELINE = {  # Stable Diffusion's inpainting recipe: text about the whole picture in masks that no object has
    *(f"data.tasks.{number}.{key}" for number in range(3) for key in ("name", "weight")), LABEL,
    "denoiser.with_level", "denoiser.with_mask_head", "callbacks.mask_log", "objective.region",
    "conditioning.name", "conditioning.encode", "conditioning.mask_channels",
}
PAPER = {"schedule.prediction", "schedule.zero_terminal_snr", "denoiser.scale_shift"}
DIFFERENCES = {
    "full": set(),
    "paper": PAPER | {"conditioning.encode"},
    "random_masks": BASELINE | PAPER,
    "random_masks_v": BASELINE,
    "outlines_only": {*(f"ladder.level_weights.{level}" for level in range(1, 6)), "denoiser.with_level"},
    "no_level": {"denoiser.with_level"},
    "no_mask_head": {"denoiser.with_mask_head", "callbacks.mask_log"},
    "no_text_to_image": {"data.tasks.0.weight", "data.tasks.1.name", "data.tasks.2.name", "data.tasks.2.weight"},
    "labels_only": {LABEL},
    "captions_only": {LABEL},
    "whole_loss": {"objective.region"},
    "encode_full": {"conditioning.encode"},
    "trained_text": {"system.train_text"},
    "eps": {"schedule.prediction", "schedule.zero_terminal_snr"},
    "added_time": {"denoiser.scale_shift"},
    "flow": {f"schedule.{key}" for key in ("name", "prediction", "shift", "num_steps", "beta_start", "beta_end",
                                           "zero_terminal_snr")},
    "equal_levels": {"ladder.level_weights.5"},
    "no_flip": {"data.flip"},
    "wide": {f"denoiser.widths.{level}" for level in range(3)},
}
COMPOSITES = {
    "full": set(),
    "random_masks": {
        *(f"data.tasks.{number}.{key}" for number in range(2) for key in ("name", "weight")), LABEL,
        "denoiser.with_level", "denoiser.with_mask_head", "callbacks.mask_log", "objective.region",
        "conditioning.name", "conditioning.encode", "conditioning.mask_channels", "data.train.0.shards",
        "data.val.0.shards",
    },
    "outlines_only": {*(f"ladder.level_weights.{level}" for level in range(6)), "denoiser.with_level"},
    "no_mask_head": {"denoiser.with_mask_head", "callbacks.mask_log"},
}


def flat(tree, where=""):
    """Every value of nested settings by its dotted key."""
    if not isinstance(tree, (dict, list)):
        return {where: tree}
    found = {}
    for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found |= flat(part, f"{where}.{name}" if where else str(name))
    return found


def changed(one, other):
    """The dotted keys whose values differ, or that only one has; of a section that only one has, the section's."""
    one, other = flat(one), flat(other)
    keys = {key for key in one.keys() | other.keys() if one.get(key, "absent") != other.get(key, "absent")}
    return {key for key in keys if not any(key.startswith(f"{whole}.") for whole in keys)}


@cache
def loaded(name):
    """A row with another seed than its file's."""
    return config.plain(config.load(FOLDER / f"{name}.yaml", ["seed=3"]))


def test_every_row_is_there():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(DIFFERENCES)
    assert {path.stem for path in FOLDER.glob("composites/*.yaml")} == set(COMPOSITES)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_row_differs_from_the_full_method_in_what_it_names(name):
    full, row = loaded("full"), loaded(name)
    assert row["name"] == name and row["run_dir"] == f"runs/ablation/{name}-3"
    assert changed(full, row) - OWN == DIFFERENCES[name]
    assert row["trainer"]["images"] == 51200 and row["seed"] == 3


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_row_on_composites_differs_in_the_same(name):
    full, row = loaded("composites/full"), loaded(f"composites/{name}")
    assert row["name"] == name and row["run_dir"] == f"runs/ablation/composites/{name}-3"
    assert changed(full, row) - OWN == COMPOSITES[name] and row["trainer"]["images"] == 51200 and row["seed"] == 3


def test_the_full_method_is_the_quickstarts():
    quickstart = config.plain(config.load(FOLDER.parent / "quickstart.yaml"))
    assert changed(quickstart, config.plain(config.load(FOLDER / "full.yaml"))) == OWN


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DIFFERENCES, *(f"composites/{name}" for name in COMPOSITES)])
def test_a_row_trains(name, tiny_overrides):
    run = assemble(shrunk(f"ablation/{name}.yaml", tiny_overrides))
    run.fit()
    assert run.system.images_seen == 8 and (run.run_dir / "model" / "meta.json").is_file()
