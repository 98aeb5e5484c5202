"""Config in, objects out: with ``networks`` the only module that reads a run file's sections.

``assemble`` makes a training run, ``load_inpainter`` makes a painter of what a run left in ``run_dir/model``.
"""

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
from sb.formats.source import open_source
from sb.inpaint import Inpainter
from sb.masks import Ladder
from sb.models.latents import facts_of, tower_facts
from sb.models.lora import add_lora
from sb.models.weights import cast_products, no_init
from sb.networks import build_denoiser, build_parts, build_quick, build_teacher, build_text, build_vae, task_objects
from sb.registry import build, build_fitted, call, lookup, takes
from sb.types import Request, Result

SECTIONS = {  # sections of a run file that name an entry, and the kind they name
    "system": "system", "vae": "vae", "text": "text", "denoiser": "denoiser", "schedule": "schedule",
    "conditioning": "conditioning", "objective": "objective", "optimizer": "optimizer", "sampler": "sampler",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OTHER_KEYS = (
    "name", "seed", "run_dir", "resume", "plugins", "image_size", "licence", "ladder", "inpaint", "data", "callbacks",
    "trainer", "start", "lora", "teacher",
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
    runtime.update(precision=str(placement.precision), export=exporter(cfg, system, data.sources(), adapter))
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
    learns = takes("system", cfg["system"]["name"], "teacher")
    if learns and not cfg.get("teacher"):
        raise ValueError(f"teacher: system '{cfg['system']['name']}' learns from one; set teacher: to a trained model")
    if cfg.get("teacher") and not learns:
        raise ValueError(f"teacher: system '{cfg['system']['name']}' has none; leave it out, or set system.name")


def build_data(cfg: Mapping[str, Any], ladder: Ladder) -> ShardData:
    """The data of a run file."""
    facts = {"seed": cfg["seed"], "image_size": cfg["image_size"], "level_weights": ladder.level_weights}
    return call("data", ShardData, cfg["data"], **facts)


def load_inpainter(
    path: str | Path, device: str = "auto", dtype: str | None = None, compiled: bool = False, preview: str | None = None
) -> Inpainter:
    """The Inpainter of a MODEL: a run folder, its ``model`` folder, or a file in it (which may be the raw weights).

    dtype: ``fp32`` or ``bf16``, what the networks compute in; None, as they were trained. compiled: ``torch.compile``
    for the denoiser, which makes the first request of each size slow and the others quicker. A published checkpoint
    paints as well: a nine-channel one as Stable Diffusion's inpainting does, a text-to-image one with the background
    put back at every step. preview: a checkpoint with a quick autoencoder of the same latents, such as TAESD's folder,
    for pictures on the way; without one they are blurry.
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
    for module in parts.values():  # in the layout in which convolutions are quickest
        module.eval().requires_grad_(False).to(chosen, memory_format=torch.channels_last)
    painter = _inpainter(parts["unet"], parts["vae"], parts["text"], cfg, ladder, source.about)
    painter.device, painter.dtype = chosen, painter.dtype if dtype is None else _dtype(dtype)
    cast_products(painter.denoiser, painter.dtype)
    if compiled:
        painter.denoiser = torch.compile(painter.denoiser)  # type: ignore[assignment]
    if preview is not None:
        quick = build_quick(preview, painter.vae).eval().requires_grad_(False).to(chosen)
        painter.preview = quick.picture
    return painter


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype '{name}' is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def _smartbrush_parts(cfg: dict[str, Any], ladder: Ladder) -> dict[str, Any]:
    vae, text = build_vae(cfg), build_text(cfg)
    tasks, objects = cfg["data"]["tasks"], task_objects(cfg)
    has_object = [objects[task["name"]] for task in tasks]
    weights = [float(task.get("weight", 1.0)) for task in tasks]
    share = sum(w for w, has in zip(weights, has_object, strict=True) if has) / sum(weights)
    teacher = {"teacher": build_teacher(cfg, ladder, vae.latent_channels, text)} if cfg.get("teacher") else {}
    return {
        "denoiser": build_denoiser(cfg, ladder, vae.latent_channels, text), "vae": vae, "text": text,
        "schedule": build("schedule", cfg["schedule"]), "ladder": ladder,
        "conditioning": build("conditioning", cfg["conditioning"]),
        "tasks": [task["name"] for task in tasks], "has_object": has_object, "object_share": share or 1.0,
        **teacher,
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
        tasks=task_objects(cfg) if getattr(denoiser, "task_rows", 0) else None,
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
