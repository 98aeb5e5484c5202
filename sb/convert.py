"""From any checkpoint that is known to any format that is written: ``sb``, ``diffusers``, ``single-file``, ``onnx``."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sb import networks
from sb import config as run_files
from sb.formats import write
from sb.formats.own import write_folder
from sb.formats.source import Source, open_source
from sb.masks import Ladder
from sb.models.weights import no_init
from sb.registry import build, call

FORMATS = ("sb", "diffusers", "single-file", "onnx")


def convert(
    source: str | Path, target: str | Path, to: str, weights: str = "ema", prediction: str | None = None
) -> list[str]:
    """Write ``source`` to ``target``, whole or not at all; returns a report, a line each.

    to: one of ``FORMATS``; all but onnx (denoiser and VAE decoder alone) keep every tensor's values and dtype.
    weights: ``ema`` or ``raw``, where the source holds both. prediction: what an SD2 single file predicts. Raises
    ValueError for a source that is not known or does not fit what it claims to be, a target that exists, and what a
    format cannot hold.
    """
    target = Path(target)
    if to not in FORMATS:
        raise ValueError(f"--to must be {', '.join(FORMATS)}, not '{to}'; {run_files.nearest(to, FORMATS)}")
    if target.exists():
        raise ValueError(f"{target} exists: give another place, or remove it first")
    if to == "single-file" and target.suffix != ".safetensors":
        raise ValueError(f"{target}: a single file is written as .safetensors")
    opened = open_source(source, weights, prediction)
    cfg = opened.sections()
    states = _states(opened, cfg)
    with _aside(target) as place:
        said = _WRITERS[to](place, states, cfg, opened)
    lines = [f"{opened.path}: {opened.kind}"]
    lines += [f"{name}: {len(opened.part(name).tensors)} tensors matched" for name in states]
    if opened.extras:
        lines.append(f"not needed by any network, left out: {_some(opened.extras)}")
    return [*lines, *said, f"wrote {target}"]


def _states(opened: Source, cfg: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """Every network's tensors under our names, checked against the network that the sections describe."""
    with torch.device("meta"):
        if opened.parts.keys() == {"vae", "text", "unet"}:
            modules = networks.build_parts(cfg, call("ladder", Ladder, cfg["ladder"]))
        elif opened.parts.keys() == {"vae"}:
            modules = {"vae": build("vae", opened.config["vae"])}
        else:
            there = " and ".join(opened.parts) or "nothing"
            raise ValueError(f"{opened.path} holds {there} of vae, text, unet: convert a whole model, or a VAE alone")
    return opened.states({name: module.state_dict() for name, module in modules.items()})


def _to_sb(place: Path, states: Any, cfg: dict[str, Any], opened: Source) -> list[str]:
    about = {"name": opened.path.stem, "imported_from": opened.kind, **opened.about}
    write_folder(place, states, {**cfg, "name": about["name"]}, about)
    return []


def _to_diffusers(place: Path, states: Any, cfg: dict[str, Any], opened: Source) -> list[str]:
    return _beside("diffusers", write.write_diffusers(place, states, cfg, opened.about))


def _to_single_file(place: Path, states: Any, cfg: dict[str, Any], opened: Source) -> list[str]:
    return _beside("a single file", write.write_single_file(place, states, cfg, opened.about))


def _beside(what: str, names: list[str]) -> list[str]:
    return [f"no place in {what}, kept beside: {_some(names)}"] if names else []


def _to_onnx(place: Path, states: Any, cfg: dict[str, Any], opened: Source) -> list[str]:
    from sb.formats.onnx import write_onnx

    if "unet" not in states:
        raise ValueError(f"{opened.path} holds a VAE alone: --to onnx needs a whole model")
    with no_init():
        modules = networks.build_parts(cfg, call("ladder", Ladder, cfg["ladder"]))
    for name, module in modules.items():
        module.load_state_dict(states[name])
        module.eval().requires_grad_(False)
    text = modules["text"]
    errors = write_onnx(place, modules["unet"], modules["vae"], (text.context_length, text.width))
    return [f"{name}: onnxruntime differs by {error:.1e} of the output's std" for name, error in errors.items()]


_WRITERS: dict[str, Callable[[Path, Any, dict[str, Any], Source], list[str]]] = {
    "sb": _to_sb, "diffusers": _to_diffusers, "single-file": _to_single_file, "onnx": _to_onnx,
}


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A place beside the target that becomes it at the end, and is removed where something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield folder / target.name
        (folder / target.name).rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _some(names: list[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
