"""Config in, objects out: the only module that reads a run file's sections.

``assemble`` makes a training run, ``load_inpainter`` makes a painter of what a run left in ``run_dir/model``.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sb import checkpoints, launch, provenance
from sb import config as run_files
from sb.data.module import ShardData
from sb.denoising import PaintOptions
from sb.evaluate.held_out import val_requests
from sb.export import exporter
from sb.formats import describe
from sb.formats.part import widen
from sb.formats.source import Source, open_source
from sb.inpaint import Inpainter
from sb.masks import Ladder
from sb.models.latents import facts_of, tower_facts
from sb.models.lora import add_lora, check_grown
from sb.models.weights import load_state, no_init
from sb.registry import build, build_fitted, call, filled, lookup
from sb.types import Request, Result

log = logging.getLogger(__name__)
SECTIONS = {  # sections of a run file that name an entry, and the kind they name
    "system": "system", "vae": "vae", "text": "text", "denoiser": "denoiser", "schedule": "schedule",
    "conditioning": "conditioning", "objective": "objective", "optimizer": "optimizer", "sampler": "sampler",
}
OTHER_KEYS = (
    "name", "seed", "run_dir", "resume", "plugins", "image_size", "licence", "ladder", "inpaint", "data", "callbacks",
    "trainer", "start", "lora",
)


@dataclass
class Run:
    """A training run, ready to start."""

    run_dir: Path
    system: L.LightningModule
    data: ShardData
    trainer: L.Trainer
    checkpoint: Path | None

    def fit(self) -> None:
        """Train to the end, or from the last checkpoint to the end."""
        launch.check_started(self.trainer.world_size)
        safely = True if self.checkpoint else None  # what comes from outside is read without its code
        self.trainer.fit(self.system, self.data, ckpt_path=self.checkpoint, weights_only=safely)


class _Describe(L.Callback):
    """Writes what is run beside the run, once training really starts: a refused start leaves no trace."""

    def __init__(self, run_dir: Path, cfg: dict[str, Any]):
        self.run_dir, self.cfg = run_dir, cfg

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            run_files.save(self.cfg, self.run_dir / "config.yaml")
            run_files.write_whole(self.run_dir / "versions.json", provenance.versions_json())


def assemble(config: Any) -> Run:
    """Build every part of a training run. ValueError for whatever in the run file does not fit."""
    cfg = run_files.plain(config)
    check(cfg)
    run_dir = Path(cfg["run_dir"])
    _check_resume(run_dir, cfg["resume"])
    launch.seed_everything(cfg["seed"])
    ladder = call("ladder", Ladder, cfg["ladder"])
    data = build_data(cfg, ladder)
    placement = call("trainer", launch.Placement, cfg["trainer"], batch_size=data.batch_size)
    data.total_images = placement.total_images
    placement.check_optimizer(optimizer := build("optimizer", cfg["optimizer"]))
    clock = {
        "optimizer": optimizer, "total_images": placement.total_images, "batch_size": data.batch_size,
        "seed": cfg["seed"], "objective": build("objective", cfg["objective"]),
    }
    runtime: dict[str, Any] = {
        "run_dir": run_dir, "ladder": ladder, "ledger": data.ledger, "longest_read": data.longest_read,
    }
    adapter = None
    parts = _smartbrush_parts(cfg, ladder) if "denoiser" in cfg else {"vae": build_vae(cfg)}
    system: Any = build("system", cfg["system"], **parts, **clock)
    _check_latents(data, system, cfg)
    if "denoiser" in cfg:
        if cfg.get("lora") is not None:
            adapter = call("lora", add_lora, cfg["lora"], denoiser=system.denoiser)
        painter = _inpainter(system.denoiser, system.vae, system.text, cfg, ladder, {})
        _check_size(cfg["image_size"], painter)
        runtime.update(paint=_live(painter, system), requests=val_requests(data, painter, system))
    placement.check_system(system)
    placement.quicken(system)
    if placement.channels_last:
        for module in (system.vae,) if placement.in_parts else (system, system.vae):
            module.to(memory_format=torch.channels_last)
    checkpoint = checkpoints.newest(run_dir, system.check) if cfg["resume"] == "auto" else None
    latents = data.samples("train").latents
    encoded = {"pictures": latents is None, "texts": latents is None or latents.text is None}
    if hasattr(system, "flops"):
        runtime["flops"] = partial(system.flops, cfg["image_size"], **encoded)
    runtime.update(precision=str(placement.precision), export=exporter(cfg, system, adapter))
    specs = [spec for spec in (cfg.get("callbacks") or {}).values() if spec]
    callbacks = [*(build_fitted("callback", spec, runtime) for spec in specs), _Describe(run_dir, cfg)]
    return Run(run_dir, system, data, placement.trainer(run_dir, callbacks), checkpoint)


def check(cfg: Mapping[str, Any]) -> None:
    """Raise ValueError for a section nobody reads, or one that is missing."""
    run_files.check_keys("the run file", cfg, [*SECTIONS, *OTHER_KEYS])
    needed = ["name", "seed", "run_dir", "image_size", "system", "vae", "objective", "optimizer", "data", "trainer"]
    if "denoiser" in cfg:
        needed += ["text", "schedule", "conditioning", "sampler", "ladder"]
    for key in needed:
        if cfg.get(key) is None:
            raise ValueError(f"the run file has no '{key}:' section")
    if "denoiser" in cfg and set(cfg["sampler"]) != {"name"}:
        raise ValueError(f"sampler: needs a name and nothing else, not {cfg['sampler']}; inpaint: says how many steps")
    if cfg.get("lora") is not None and not (cfg.get("denoiser") or {}).get("weights"):
        raise ValueError("lora: adapts a trained denoiser, and none is named: set denoiser.weights, or lora=null")


def build_data(cfg: Mapping[str, Any], ladder: Ladder) -> ShardData:
    """The data of a run file."""
    facts = {"seed": cfg["seed"], "image_size": cfg["image_size"], "level_weights": ladder.level_weights}
    return call("data", ShardData, cfg["data"], **facts)


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


def load_inpainter(path: str | Path, device: str = "auto") -> Inpainter:
    """The Inpainter of a MODEL: a run folder, its ``model`` folder, or a file in it (which may be the raw weights).

    A published checkpoint paints as well: a nine-channel one as Stable Diffusion's inpainting does, a text-to-image one
    with the background put back at every step.
    """
    source = open_source(path)
    if not {"vae", "text", "unet"} <= source.parts.keys():
        raise ValueError(f"{path} holds {' and '.join(source.parts)} and cannot paint; train a smartbrush on it first")
    cfg = source.sections()
    ladder = call("ladder", Ladder, cfg["ladder"])
    with no_init():
        parts = build_parts(cfg, ladder)
    for name, state in source.states({name: module.state_dict() for name, module in parts.items()}).items():
        parts[name].load_state_dict(state)
    chosen = launch.find_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    layout = torch.channels_last if cfg["trainer"].get("channels_last") else torch.contiguous_format
    for module in parts.values():
        module.eval().requires_grad_(False).to(chosen, memory_format=layout)
    painter = _inpainter(parts["unet"], parts["vae"], parts["text"], cfg, ladder, source.about)
    painter.device = chosen
    return painter


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


def _smartbrush_parts(cfg: dict[str, Any], ladder: Ladder) -> dict[str, Any]:
    vae, text = build_vae(cfg), build_text(cfg)
    tasks = cfg["data"]["tasks"]
    has_object = [bool(lookup("task", task["name"]).has_object) for task in tasks]  # type: ignore[attr-defined]
    weights = [float(task.get("weight", 1.0)) for task in tasks]
    share = sum(w for w, has in zip(weights, has_object, strict=True) if has) / sum(weights)
    return {
        "denoiser": build_denoiser(cfg, ladder, vae.latent_channels, text), "vae": vae, "text": text,
        "schedule": build("schedule", cfg["schedule"]), "ladder": ladder,
        "conditioning": build("conditioning", cfg["conditioning"]),
        "tasks": [task["name"] for task in tasks], "has_object": has_object, "object_share": share or 1.0,
    }


def _check_latents(data: ShardData, system: Any, cfg: Mapping[str, Any]) -> None:
    """Open the shards' manifests, before anything is written: ValueError where shards are missing, or hold latents that
    this run cannot use."""
    for split in ("train", "val") if data.val_spec else ("train",):
        if (latents := data.samples(split).latents) is None:
            continue
        found = f"data.{split}: {latents.where} holds latents"
        if not hasattr(system, "conditioning"):
            raise ValueError(f"{found}; a VAE is trained on pictures")
        if system.conditioning.needs_picture:
            raise ValueError(f"{found}, and this conditioning needs pictures: {system.conditioning.needs_picture}")
        if latents.text is not None and "text" not in system._outside:
            raise ValueError(f"{found} with text features, and system.train_text changes them; build without --text")
        tower, precision = tower_facts(system.text, cfg["text"]), str(cfg["trainer"].get("precision", "32-true"))
        latents.check_networks(facts_of(system.vae, cfg["vae"]), tower, precision)


def _inpainter(
    denoiser: Any, vae: Any, text: Any, cfg: Mapping[str, Any], ladder: Ladder, about: dict[str, Any]
) -> Inpainter:
    bf16 = str(cfg["trainer"].get("precision", "32-true")).startswith("bf16")
    return Inpainter(
        denoiser, vae, text, build("schedule", cfg["schedule"]), ladder, build("conditioning", cfg["conditioning"]),
        lookup("sampler", cfg["sampler"]["name"]), call("inpaint", PaintOptions, cfg.get("inpaint") or {}),
        dtype=torch.bfloat16 if bf16 else torch.float32, about=about,
        tasks=[task["name"] for task in cfg["data"]["tasks"]] if getattr(denoiser, "task_rows", 0) else (),
        native_px=cfg.get("image_size"),
    )


def _check_size(image_size: int, painter: Inpainter) -> None:
    step = painter.vae.factor * painter.grid
    if image_size % step:
        near = max(step, round(image_size / step) * step)
        raise ValueError(f"image_size {image_size} must be a multiple of {step} for this VAE and denoiser, say {near}")


def _live(painter: Inpainter, system: Any) -> Callable[..., list[Result]]:
    """``painter.paint`` on a system in training, whose parts change devices."""

    def paint(requests: list[Request], **options: Any) -> list[Result]:
        painter.device, painter.vae, painter.text = system.device, system.vae, system.text
        return painter.paint(requests, **options)

    return paint


def _check_resume(run_dir: Path, resume: str) -> None:
    if resume not in ("never", "auto"):
        raise ValueError(f"resume must be 'never' or 'auto', not '{resume}'")
    if resume == "never" and launch.is_first_process() and (run_dir / "config.yaml").exists():
        raise ValueError(f"{run_dir} holds a run already: resume=auto continues it, run_dir=... starts another")
