"""The networks that a run file describes, with the weights of the checkpoints that it names: assemble's other half."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from sb.formats import describe
from sb.formats.part import widen
from sb.formats.source import Source, open_source
from sb.masks import Ladder
from sb.models.lora import check_grown
from sb.models.weights import load_state
from sb.registry import build, build_fitted, call, filled, lookup, settings

log = logging.getLogger(__name__)


def build_vae(cfg: Mapping[str, Any]) -> Any:
    """The autoencoder of a run file, with the weights of ``vae.weights`` where it names a checkpoint, and that one's
    scale and shift unless the run file gives its own.

    Raises ValueError where the checkpoint holds none, or another one than the run file describes.
    """
    spec = dict(cfg["vae"])
    weights = spec.pop("weights", None)
    vae = build("vae", spec)
    if weights:
        source = open_source(weights)
        _agree("vae", spec, source)
        _load(vae, source, "vae")
        found = source.config.get("vae", {})
        known = {"scale": vae.scale, "shift": vae.shift} | {k: found[k] for k in ("scale", "shift") if k in found}
        vae.scale, vae.shift = (float({**known, **spec}[name]) for name in ("scale", "shift"))
    return vae


def build_quick(path: str, vae: Any) -> Any:
    """The autoencoder of a checkpoint that decodes another one's latents; ValueError where the latents differ."""
    source = open_source(path)
    if "vae" not in source.parts:
        raise ValueError(f"preview: {path} holds {' and '.join(source.parts)}, not an autoencoder")
    quick = build_vae({"vae": {**source.config["vae"], "weights": path}})
    seen, needed = ((v.latent_channels, v.factor) for v in (quick, vae))
    if seen != needed:
        raise ValueError(
            f"preview: {path} has {seen[0]} latent channels of {seen[1]} px, the model's have {needed[0]} of "
            f"{needed[1]}"
        )
    return quick


def build_text(cfg: Mapping[str, Any]) -> Any:
    """The text tower of a run file, with the weights of ``text.weights`` where it names a checkpoint.

    What the tower does not need (layers after the one it stops at, a projection) may be in the checkpoint or not.
    """
    spec = dict(cfg["text"])
    weights = spec.pop("weights", None)
    text = build("text", spec)
    if weights:
        source = open_source(weights)
        _agree("text", spec, source)
        found = source.config.get("text", {})
        if not {"clip"} == {found.get("name"), spec["name"]}:
            _load(text, source, "text")
            return text
        with torch.device("meta"):
            there = build("text", found)
        state = source.part("text").state(there.state_dict())
        load_state(text, {name: state[name] for name in text.state_dict() if name in state}, str(weights))
    return text


def build_denoiser(cfg: Mapping[str, Any], ladder: Ladder, latent_channels: int, text: Any) -> Any:
    """The denoiser of a run file, fitted to its latents, text tower and ladder.

    ``denoiser.weights`` may name a checkpoint with fewer channels and no precision levels (Stable Diffusion), which
    then start at zero. Raises ValueError where the two differ in anything else.
    """
    spec = dict(cfg["denoiser"])
    weights = spec.pop("weights", None)
    conditioning = build("conditioning", cfg["conditioning"])
    offered = {
        "in_channels": conditioning.in_channels(latent_channels), "out_channels": latent_channels,
        "text_width": text.width, "pooled_width": text.pooled_width,
        "level_rows": ladder.num_levels + 1 if spec.pop("with_level", True) else 0,
        "task_rows": len(cfg["data"]["tasks"]) if spec.pop("with_task", False) else 0,
        "mask_head": conditioning.mask_channels if spec.pop("with_mask_head", True) else 0,
    }
    denoiser = build_fitted("denoiser", spec, offered)
    if weights:
        source = open_source(weights)
        own = there = denoiser.state_dict()
        if "denoiser" in source.config:
            _agree("denoiser", spec, source)
            _warn_of_prediction(cfg, source)
            about_unet = ("denoiser", "conditioning", "data")
            sections: dict[str, Any] = {key: source.config[key] for key in about_unet if key in source.config}
            rungs = call("ladder", Ladder, source.config["ladder"]) if "ladder" in source.config else ladder
            with torch.device("meta"):
                there = build_denoiser({**cfg, **sections}, rungs, latent_channels, text).state_dict()
        state = source.part("unet").state(there)
        if isinstance(cfg.get("lora"), Mapping):
            shapes = {name: value.shape for name, value in state.items()}
            grown = {name.rpartition(".")[0] for name in own if shapes.get(name) != own[name].shape}
            check_grown(grown, cfg["lora"].get("also") or (), str(weights))
        load_state(denoiser, widen(state, own), str(weights))
    return denoiser


def task_objects(cfg: Mapping[str, Any]) -> dict[str, bool]:
    """The tasks of a run file, in its order, and whether they paint an object; ValueError for one that a denoiser must
    be told and is not, and for one that is told and stands there twice."""
    names = [task["name"] for task in cfg["data"]["tasks"]]
    found = {name: lookup("task", name) for name in names}
    told = cfg["denoiser"].get("with_task", False)
    for name, task in found.items():
        if task.must_be_told and not told:  # type: ignore[attr-defined]
            raise ValueError(
                f"data.tasks: '{name}' is for a denoiser that is told the task; set denoiser.with_task=true, or leave "
                "it out"
            )
        if told and names.count(name) > 1:
            raise ValueError(f"data.tasks: '{name}' stands there twice, and the denoiser is told the task by its name")
    return {name: bool(task.has_object) for name, task in found.items()}  # type: ignore[attr-defined]


def build_teacher(cfg: Mapping[str, Any], ladder: Ladder, latent_channels: int, text: Any) -> Any:
    """The denoiser of ``teacher``, a trained model that agrees with the run file's own in everything but weights;
    ValueError where it was trained to answer something else, or on something else."""
    source = open_source(cfg["teacher"])
    missing = {"unet", "vae", "text"} - source.parts.keys()
    there = {} if missing else source.sections()
    faults = [f"it has no {' and '.join(sorted(missing))}"] if missing else []
    for section in () if missing else ("schedule", "conditioning", "vae", "text"):
        ours, theirs = settings(section, cfg[section]), settings(section, there[section])
        faults += [
            f"{section}.{key} is {theirs.get(key)} there, {value} here"
            for key, value in ours.items() if theirs.get(key) != value
        ]
    if not missing and there["ladder"]["levels"] != cfg["ladder"]["levels"]:
        faults.append("its ladder has other levels")
    if not missing and cfg["denoiser"].get("with_task") and list(task_objects(there)) != list(task_objects(cfg)):
        faults.append("its data.tasks are others, or in another order")
    if faults:
        raise ValueError(f"teacher: {cfg['teacher']} is no model of this kind: {'; '.join(faults)}")
    return build_denoiser(
        {**cfg, "lora": None, "denoiser": {**cfg["denoiser"], "weights": cfg["teacher"]}}, ladder, latent_channels, text
    )


def build_parts(cfg: Mapping[str, Any], ladder: Ladder) -> dict[str, Any]:
    """The networks that a model's sections describe, with the weights they are made with."""
    vae, text = build("vae", cfg["vae"]), build("text", cfg["text"])
    return {"vae": vae, "text": text, "unet": build_denoiser(cfg, ladder, vae.latent_channels, text)}


def outlines(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of a run file on the meta device: what can be counted before anything is read or made."""
    bare = {key: {k: v for k, v in cfg[key].items() if k != "weights"} for key in ("vae", "text", "denoiser")}
    with torch.device("meta"):
        return build_parts({**cfg, **bare}, call("ladder", Ladder, cfg["ladder"]))


def _load(module: torch.nn.Module, source: Source, name: str) -> None:
    module.load_state_dict(source.part(name).state(module.state_dict()))


def _agree(section: str, spec: Mapping[str, Any], source: Source) -> None:
    """Raise ValueError where a run file's section and a checkpoint differ in what tensor shapes do not show."""
    found = source.config.get(section)
    if not found or {spec["name"], found["name"]} == {"clip", "openclip"}:
        return
    if spec["name"] != found["name"]:
        faults = [f"name is {spec['name']}, there {found['name']}"]
    elif spec["name"] == "clip":
        faults = describe.differences(describe.tower_seen(spec), describe.tower_seen(found))
    else:
        faults = describe.differences(filled(section, spec), filled(section, found))
    if faults:
        raise ValueError(f"{section}: {source.path} is another network: {'; '.join(faults)}")


def _warn_of_prediction(cfg: Mapping[str, Any], source: Source) -> None:
    ours, there = (sections.get("schedule", {}).get("prediction") for sections in (cfg, source.config))
    if ours and there and ours != there:
        log.warning("%s predicts %s, this run %s: it starts with the wrong answers", source.path, there, ours)
