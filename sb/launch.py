"""Devices, precision, strategy and seeds: how a run is placed on hardware."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sb.registry import build_fitted
from sb.strategies import FSDP2, WholeFile


class EndOfImages(L.Callback):
    """Ends a run, with a validation, when the module's ``images_seen`` has reached ``total_images``.

    Lightning counts steps, whose size may have been another in the part of the run before the last checkpoint.
    """

    def __init__(self, total_images: int):
        self.total_images = total_images
        self._step = 0

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A run that is complete is left as it is, but for a validation that is still to come."""
        if not checkpoint["callbacks"].get("save", {}).get("due"):
            self._look(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing but that validation."""
        self._step = trainer.global_step
        self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop behind the validation that follows, and never amid an optimizer step."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if int(pl_module.images_seen) >= self.total_images:  # type: ignore[arg-type]
            trainer.should_stop = True


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class Placement:
    """The ``trainer:`` section: how many images a run sees, on what hardware, every interval in images over all ranks.

    val_every_images is rounded so that validations are evenly spaced and the last step ends on one, images up by less
    than a step for each of them. channels_last: the memory layout of
    convolutions, faster in bf16 on CPUs and GPUs alike; under fsdp and deepspeed of the VAE's alone. Raises ValueError
    for a precision that is none of ``PRECISIONS`` (noise and losses are fp32) or that the device cannot train in, and
    for GPUs that are not there.
    """

    batch_size: int
    images: int
    val_every_images: int
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str | Mapping[str, Any] = "auto"
    precision: str = "32-true"
    accumulate: int = 1
    clip: float | None = None
    log_every_images: int = 1000
    progress_bar: bool = True
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        if min(self.images, self.val_every_images, self.accumulate, self.log_every_images) < 1:
            raise ValueError("trainer: images, val_every_images, log_every_images and accumulate must be at least 1")
        if str(self.precision) not in PRECISIONS:
            raise ValueError(f"trainer: precision {self.precision} is none of {', '.join(PRECISIONS)}")
        on_gpu = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        if self.accelerator in ("gpu", "cuda") and not (on_gpu or self.accelerator == "gpu" and _on_mac()):
            raise ValueError(f"trainer: no GPU here for accelerator {self.accelerator}; set trainer.accelerator=cpu")
        if str(self.precision).startswith("16") and not on_gpu:
            raise ValueError(f"trainer: precision {self.precision} is unusably slow without a GPU; use bf16-mixed")
        devices = self.devices
        if devices in ("auto", -1):
            devices = torch.cuda.device_count() if on_gpu else 1
        if not str(devices).isdecimal() or min(int(devices), self.num_nodes) < 1:
            raise ValueError(
                f"trainer: devices is a number of devices on each node, 1 or more, or auto, not {self.devices!r} on "
                f"{self.num_nodes} nodes; which ones, CUDA_VISIBLE_DEVICES says"
            )
        there = torch.cuda.device_count()
        if on_gpu and int(devices) > there and not TorchElasticEnvironment.detect():
            raise ValueError(f"trainer: {devices} devices asked for, {there} here; set trainer.devices={there}")
        self.ranks = int(devices) * self.num_nodes
        self.images_per_step = self.batch_size * self.ranks * self.accumulate
        spec = {"name": self.strategy} if isinstance(self.strategy, str) else self.strategy
        self._strategy = build_fitted("strategy", spec, {"ranks": self.ranks, "precision": str(self.precision)})
        steps = math.ceil(self.images / self.images_per_step)
        validations = max(1, round(steps * self.images_per_step / self.val_every_images))
        self.steps_per_val = math.ceil(steps / validations)
        self.steps = math.ceil(steps / self.steps_per_val) * self.steps_per_val

    @property
    def in_parts(self) -> bool:
        """Whether the strategy flattens weights or shares out their rows, for which they must lie in order."""
        return isinstance(self._strategy, WholeFile)

    def check_optimizer(self, optimizer: Any) -> None:
        """Raise ValueError for an optimizer whose state the strategy cannot hold in parts."""
        if self.in_parts and not getattr(optimizer, "in_parts", True):
            raise ValueError("trainer: optimizer 'adamw8bit' works on one device and with ddp; use adamw")

    @property
    def total_images(self) -> int:
        """Images of the whole run, over all ranks."""
        return self.steps * self.images_per_step

    def check_system(self, system: Any) -> None:
        """Raise ValueError for a system that lacks what this run asks for."""
        if isinstance(self._strategy, FSDP2) and type(system).configure_model is L.LightningModule.configure_model:
            raise ValueError("strategy 'fsdp': this system does not say what is shared out; use trainer.strategy=ddp")
        if self.recompute and not hasattr(getattr(system, "denoiser", None), "recompute"):
            raise ValueError("trainer: recompute needs a denoiser with a method of that name; this run has none")

    def quicken(self, system: Any) -> None:
        """Recomputation and compilation of a system's networks."""
        denoiser = getattr(system, "denoiser", None)
        if self.recompute:
            denoiser.recompute()  # type: ignore[union-attr]
        if self.compile and self.recompute:  # torch cannot split such a graph along DDP's buckets everywhere
            torch._dynamo.config.optimize_ddp = False
        if self.compile:
            for module in (denoiser, getattr(system.vae, "encoder", None)):
                if module is not None:
                    module.compile()

    def trainer(self, run_dir: Path, callbacks: Sequence[L.Callback]) -> L.Trainer:
        """The Lightning Trainer; Lightning's own checkpoints never join in."""
        casts_itself = isinstance(self._strategy, DeepSpeedStrategy)
        bar: list[L.Callback] = [TQDMProgressBar(refresh_rate=20)] if self.progress_bar else []
        return L.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self._strategy,
            plugins=_slurm(),
            precision="32-true" if casts_itself else self.precision,  # type: ignore[arg-type]
            max_steps=sys.maxsize,  # EndOfImages ends the run
            val_check_interval=self.steps_per_val * self.accumulate,
            check_val_every_n_epoch=None,
            accumulate_grad_batches=self.accumulate,
            gradient_clip_val=self.clip,
            log_every_n_steps=max(1, self.log_every_images // self.images_per_step),
            logger=TensorBoardLogger(run_dir, name="tensorboard", version=""),
            callbacks=[*callbacks, EndOfImages(self.total_images), *bar],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=self.progress_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=run_dir,
        )


def _on_mac() -> bool:
    return torch.backends.mps.is_available()


def _slurm() -> list[Any]:
    """SLURM's ranks without Lightning's requeueing; torchrun's go first, as in Lightning itself."""
    under_srun = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if under_srun else []


def check_started(ranks: int) -> None:
    """Raise ValueError where torchrun or srun started other processes than these ranks: each would run by itself."""
    if TorchElasticEnvironment.detect():
        started = int(os.environ["WORLD_SIZE"])
    else:
        started = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if SLURMEnvironment.detect() else 1
        started = ranks if started == 1 else started  # Lightning starts the others, or waits for srun's
    if started != ranks:
        raise ValueError(
            f"trainer: the launcher started {started} processes and the run file says {ranks} (trainer.devices x "
            f"trainer.num_nodes): make them the same"
        )


def find_device(name: str) -> torch.device:
    """The device of this name; ValueError where it is not here."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a build without that kind of device
        raise ValueError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from None


def is_first_process() -> bool:
    """Whether this process is rank 0 of the job, as far as its launcher has said; known before a Trainer exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def seed_everything(seed: int) -> None:
    """Seed the global generators: they only matter for initial weights, everything else draws from its own."""
    L.seed_everything(seed, verbose=False)
