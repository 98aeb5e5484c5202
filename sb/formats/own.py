"""Our model folders: ``run_dir/model`` and what a MODEL argument stands for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sb import checkpoints
from sb import config as run_files
from sb.formats import names
from sb.formats.part import Part
from sb.models.weights import digest, read_state, write_state

MODEL_SCHEMA_VERSION = 1


def find_folder(path: str | Path) -> Path | None:
    """The ``model`` folder that a run folder, the folder itself or a file in it stands for, if there is one."""
    path = Path(path)
    for folder in (path.parent,) if path.is_file() else (path / "model", path):
        if (folder / "meta.json").is_file():
            return folder
    return None


def read_meta(folder: Path) -> dict[str, Any]:
    """A model folder's ``meta.json``, refused where it was written by a later version."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder}/meta.json is not readable: {error}") from None
    if meta.get("schema_version", 0) > MODEL_SCHEMA_VERSION:
        raise ValueError(
            f"{folder} has schema {meta['schema_version']}, this version reads up to {MODEL_SCHEMA_VERSION}"
        )
    return meta


def read_folder(folder: Path, raw: bool) -> tuple[dict[str, Any], dict[str, Part], list[str], dict[str, Any]]:
    """The run file's sections, the networks, what is left aside, and ``meta.json``; the denoiser averaged, or ``raw``.

    The VAE has the scale and shift that were measured.
    """
    config, meta = run_files.plain(run_files.load(folder / "config.yaml")), read_meta(folder)
    config["vae"].update(scale=float(meta["latent_scale"]), shift=float(meta["latent_shift"]))
    files = {"vae": "vae", "text": "text", "unet": "unet.raw" if raw else "unet"}
    parts = {
        name: Part(read_state(place), names.plain(), str(place))
        for name, stem in files.items() if (place := folder / f"{stem}.safetensors").is_file()
    }
    other = "unet" if raw else "unet.raw"  # the weights that were not asked for
    extras = [f"{other}.safetensors"] if (folder / f"{other}.safetensors").is_file() else []
    return config, parts, extras, meta


def read_checkpoint(
    path: Path, folder: Path, raw: bool
) -> tuple[dict[str, Any], dict[str, Part], list[str], dict[str, Any]]:
    """Like ``read_folder``, of a training checkpoint, whichever strategy wrote it; what was frozen comes from the run's
    model folder. Raises ValueError where that is another run's, or the checkpoint lacks what its adapters adapt."""
    config, parts, _, meta = read_folder(folder, raw)
    checkpoint = checkpoints.read(path)
    if "adapter" in meta:
        raise ValueError(f"{path} holds adapters, not what they adapt: give the run folder, where they are merged")
    others = [name for name, found in checkpoint["frozen"].items() if digest(parts[name].tensors) != found]
    if others:
        raise ValueError(f"{path} was trained with another {' and '.join(others)} than {folder} holds")
    state = dict(checkpoint["state_dict"])
    averaging = [spec for spec in (config.get("callbacks") or {}).values() if spec and spec["name"] == "ema"]
    if averaging and not raw:
        state.update(checkpoint["callbacks"]["ema"]["averages"][averaging[0]["primary"]])
    for name, prefix in {"unet": "denoiser.", "text": "text_tower.", "vae": "vae."}.items():
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if found:
            parts[name] = Part(found, names.plain(), str(path))
    if "latents" in checkpoint:
        config["vae"].update(zip(("scale", "shift"), checkpoint["latents"], strict=True))
    return config, parts, [], {**meta, "images_seen": checkpoint["images_seen"]}


def write_folder(
    folder: Path, states: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """A model folder of networks under our names (``vae``, ``text``, ``unet``, ``unet.raw``), the run file's sections
    and what else is known (``meta.json``)."""
    for name, state in states.items():
        write_state(state, folder / f"{name}.safetensors")
    vae = config["vae"]
    meta = {
        "schema_version": MODEL_SCHEMA_VERSION, "kind": config["conditioning"]["name"] if "unet" in states else "vae",
        "latent_scale": vae.get("scale", 1.0), "latent_shift": vae.get("shift", 0.0),
        "image_size": config["image_size"], "pixel_range": [-1, 1], **about,
    }
    run_files.save(config, folder / "config.yaml")
    run_files.write_whole(folder / "meta.json", json.dumps(meta, indent=1).encode())
