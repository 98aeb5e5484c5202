"""Our whole training loop beside a plain diffusers one, on latents and text features that lie in memory.

Ours is what a run does: Lightning's Trainer, ladder, masks, objective, clipping, logs, EMA. Theirs follows diffusers'
train_text_to_image example with the latents given: the UNet of the same widths, EMAModel, fused AdamW, autocast, its
loss read at every step. Turns of some steps alternate within one fit, so that what else a machine does hits both.

Legend: B batch, C latent channels, k mask channels, h w latent cells.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, IterableDataset

from sb.estimate import forward_flops, matmul_rate
from sb.launch import Placement
from sb.masks import Ladder
from sb.models.latents import Autoencoder
from sb.models.model_benchmark import GIB
from sb.models.model_pairs import SIZES, library
from sb.models.smartbrush import SmartBrush
from sb.models.unet import UNet
from sb.registry import build
from sb.types import Batch, Condition, TextFeatures

FACTOR = 8  # pixels per latent cell of Stable Diffusion, whose loop theirs is
LEVELS: list[dict[str, Any]] = [
    {"name": "outline"}, *({"name": "blur", "sigma": sigma} for sigma in (0.04, 0.08, 0.14, 0.22)), {"name": "box"},
]
SHOWN = 15  # rows of the profile


@dataclass
class Setup:
    """What is trained, where and how: cells per side (0: the size's own), images and steps of a turn, turns of each
    side; compiled, and theirs tuned, or not. Raises ValueError for what is unknown or does not fit."""

    size: str = "quickstart"
    latent: int = 0
    batch: int = 8
    steps: int = 10
    turns: int = 5
    device: str = "auto"
    compiled: bool = False
    tuned: bool = False
    about: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"benchmark: size '{self.size}' is none of {', '.join(SIZES)}")
        chosen = SIZES[self.size]
        self.about = dict(chosen.unet)
        if not self.about["mask_head"]:  # Stable Diffusion's sizes: the mask goes in and out, as in its run file
            self.about.update(mask_head=1, level_rows=len(LEVELS), in_channels=self.about["in_channels"] + 1)
        self.latent = self.latent or chosen.latent
        grid = 2 ** (len(self.about["widths"]) - 1)
        if self.latent % grid or min(self.latent, self.batch, self.steps, self.turns) < 1:
            raise ValueError(f"benchmark: latent must be a multiple of {grid}; batch, steps and passes at least 1")
        self.tokens, self.width = chosen.text["context_length"], self.about["text_width"]
        self.channels = self.about["out_channels"]
        self.factor = round(self.about["mask_head"] ** 0.5) if self.about["mask_head"] > 1 else FACTOR
        cuda = torch.cuda.is_available()
        self.where = torch.device(("cuda" if cuda else "cpu") if self.device == "auto" else self.device)
        if self.where.type == "cuda" and not cuda:
            raise ValueError("benchmark: no CUDA device here")


class _Grid(Autoencoder):
    """Says how many cells and channels the latents have; with moments in the batch nothing is encoded."""

    def __init__(self, factor: int, latent_channels: int):
        super().__init__(1.0, 0.0)
        self.factor, self.latent_channels = factor, latent_channels


class _Told(nn.Module):
    """Gives text features that were made before."""

    def __init__(self, features: TextFeatures):
        super().__init__()
        self.features = features

    def encode(self, texts: list[str]) -> TextFeatures:
        return self.features


class _Endless(IterableDataset):
    """One batch, again and again."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


class _Turns(L.Callback):
    """After each turn of ours, a turn of theirs; seconds and peak memory of both. Then a turn of ours is profiled."""

    def __init__(self, plan: Setup, theirs: Callable[[], None], report: Callable[[str], None]):
        self.plan, self.theirs, self.report = plan, theirs, report
        self.cuda = plan.where.type == "cuda"
        self.their_bytes = torch.cuda.memory_allocated() if self.cuda else 0
        self.seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        self.peaks: dict[str, list[float]] = {"ours": [], "theirs": []}
        self.profile: Any = None
        self._done = self._turn = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._done += 1
        if self._done % self.plan.steps:
            return
        self._end("ours", self.their_bytes)
        if self._turn > self.plan.turns:
            self.profile.__exit__(None, None, None)
            trainer.should_stop = True
            return
        ours = (torch.cuda.memory_allocated() - self.their_bytes) if self.cuda else 0
        self._start()
        for _ in range(self.plan.steps):
            self.theirs()
        self._end("theirs", ours)
        if self._turn:
            both = " and ".join(f"{name} {kept[-1] * 1e3:.1f}" for name, kept in self.seconds.items())
            self.report(f"turn {self._turn}: ms per step {both}")
        self._turn += 1
        if self._turn > self.plan.turns:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
            self.profile = profile(activities=kinds)
            self.profile.__enter__()
        self._start()

    def _start(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def _end(self, name: str, others: int) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        if 0 < self._turn <= self.plan.turns:  # turn 0 warms up and compiles
            self.seconds[name].append((time.perf_counter() - self._began) / self.plan.steps)
            if self.cuda:
                self.peaks[name].append((torch.cuda.max_memory_allocated() - others) / GIB)
        elif self._turn:
            self.profiled_s = time.perf_counter() - self._began


def benchmark_training(
    *, size: str = "quickstart", latent: int | None = None, batch: int = 8, steps: int = 10, passes: int = 5,
    device: str = "auto", compiled: bool = False, tuned: bool = False, report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """``ratio``, of images/s of ours over theirs, the median over pairs of turns; for each side ``images_per_s``,
    ``ms``, ``peak_gib`` (CUDA: all that the side holds), ``share_of_peak`` of the matrix-product rate ``matmul_gflops``
    by ``gflop`` = 3 x forward of the batch; ``profile``: share of ours' time by operation, most first.
    """
    setup = Setup(size, latent or 0, batch, steps, passes, device, compiled, tuned)
    diffusers = library("diffusers")
    report(f"{setup.where.type}, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers "
           f"{diffusers.__version__}, {'compiled' if setup.compiled else 'not compiled'}")
    torch.manual_seed(0)
    peak = matmul_rate(setup.where, torch.bfloat16) / 1e9
    with setup.where:
        latents = torch.randn(setup.batch, setup.channels, setup.latent, setup.latent)
        hidden = torch.randn(setup.batch, setup.tokens, setup.width)
    theirs, their_unet = _their_step(setup, diffusers, latents, hidden)
    theirs()  # its state is there before ours comes
    system = _system(setup, hidden)
    turns = _Turns(setup, theirs, report)
    with tempfile.TemporaryDirectory() as folder:
        _fit(setup, system, latents, Path(folder), turns)
    meta = torch.device("meta")
    cond = Condition(
        torch.empty(setup.batch, setup.tokens, setup.width, device=meta),
        torch.empty(setup.batch, setup.about["pooled_width"], device=meta) if "pooled_width" in setup.about else None,
        torch.zeros(setup.batch, device=meta),
    )
    cells, t = (setup.latent, setup.latent), torch.zeros(setup.batch, device=meta)
    x = torch.empty(setup.batch, setup.about["in_channels"], *cells, device=meta)
    flops = {
        "ours": forward_flops(system.denoiser, x, t, cond),
        "theirs": forward_flops(their_unet, x[:, : setup.channels], t, cond.tokens),
    }
    found: dict[str, Any] = {"matmul_gflops": peak, "ratio": statistics.median(
        b / a for a, b in zip(turns.seconds["ours"], turns.seconds["theirs"], strict=True)
    )}
    for name, seconds in turns.seconds.items():
        step = statistics.median(seconds)
        row = {"images_per_s": setup.batch / step, "ms": step * 1e3, "gflop": 3 * flops[name] / 1e9}
        row["share_of_peak"] = row["gflop"] / step / peak
        if turns.peaks[name]:
            row["peak_gib"] = max(turns.peaks[name])
        found[name] = row
    return {**found, "profile": _profile(turns)}


def _system(setup: Setup, hidden: Tensor) -> SmartBrush:
    pooled = hidden.mean(1) if "pooled_width" in setup.about else None
    denoiser = UNet(**setup.about)
    if setup.compiled:
        denoiser.compile()
    return SmartBrush(
        denoiser, _Grid(setup.factor, setup.channels), _Told(TextFeatures(hidden, pooled)),
        build("schedule", {"name": "scaled_linear"}), Ladder(LEVELS),
        build("conditioning", {"name": "smartbrush", "mask_channels": setup.about["mask_head"], "encode": "full"}),
        build("objective", {"name": "denoising"}), build("optimizer", {"name": "adamw"}), tasks=["object"],
        has_object=[True], object_share=1.0, total_images=10**9, batch_size=setup.batch, seed=0,
    )


def _fit(setup: Setup, system: SmartBrush, latents: Tensor, folder: Path, turns: _Turns) -> None:
    """A run's callbacks, but for those that only work in validation and at checkpoints."""
    images = (setup.turns + 2) * setup.steps * setup.batch
    placement = Placement(
        batch_size=setup.batch, images=images, val_every_images=images, precision="bf16-mixed", clip=1.0,
        accelerator="gpu" if setup.where.type == "cuda" else "cpu", devices=1, log_every_images=setup.batch * 50,
        progress_bar=False, channels_last=True,
    )
    system.to(memory_format=torch.channels_last)
    averages = {"main": {"half_life_images": 500_000}}
    callbacks = [build("callback", spec) for spec in (
        {"name": "ema", "averages": averages, "primary": "main"},
        {"name": "speed", "every_images": setup.batch * 50}, {"name": "guard"},
    )]
    side = setup.latent * setup.factor
    with setup.where:
        outline = torch.zeros(setup.batch, 1, side, side, dtype=torch.uint8)
        outline[..., side // 4: side // 2, side // 4: side // 2] = 1
        zeros, level = torch.zeros(setup.batch, dtype=torch.int64), torch.arange(setup.batch) % len(LEVELS)
    names = [""] * setup.batch
    batch = Batch(
        None, outline, level, zeros, names, names, moments=latents.half().view(torch.int16)
    ).check()
    loader: Any = DataLoader(_Endless(batch), batch_size=None)
    placement.trainer(folder, [*callbacks, turns]).fit(system, loader)


def _their_step(setup: Setup, diffusers: Any, latents: Tensor, hidden: Tensor) -> tuple[Callable[[], None], nn.Module]:
    """One step of the example's loop; tuned: channels last, EMA in one kernel, and the loss is not read."""
    from diffusers.training_utils import EMAModel

    about, names = setup.about, ["CrossAttn" if attends else "" for attends in setup.about["attention"]]
    unet = diffusers.UNet2DConditionModel(
        sample_size=setup.latent, in_channels=setup.channels, out_channels=setup.channels,
        block_out_channels=about["widths"], layers_per_block=about["blocks"], norm_num_groups=about["groups"],
        attention_head_dim=about["heads"], cross_attention_dim=about["text_width"],
        down_block_types=tuple(f"{name}DownBlock2D" for name in names),
        up_block_types=tuple(f"{name}UpBlock2D" for name in reversed(names)),
    ).to(setup.where).train()
    if setup.tuned:
        unet.to(memory_format=torch.channels_last)
    ema = EMAModel(unet.parameters(), foreach=setup.tuned)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    scheduler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    if setup.compiled:
        unet.compile()

    def step() -> None:
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (setup.batch,), device=setup.where)
        noisy = scheduler.add_noise(latents, noise, t)
        with torch.autocast(setup.where.type, torch.bfloat16):
            out = unet(noisy, t, hidden, return_dict=False)[0]
            loss = F.mse_loss(out.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        if not setup.tuned:
            loss.item()

    return step, unet


def _profile(turns: _Turns) -> dict[str, float]:
    """Share of the profiled turn by operation, device time on CUDA; what is left is waiting, on CUDA, or the rest."""
    seconds = {
        event.key: (event.self_device_time_total if turns.cuda else event.self_cpu_time_total) / 1e6
        for event in turns.profile.key_averages()
        if not turns.cuda or event.device_type.name == "CUDA"
    }
    most = dict(sorted(seconds.items(), key=lambda item: -item[1])[:SHOWN])
    shares = {key[:60]: value / turns.profiled_s for key, value in most.items()}
    other = (sum(seconds.values()) - sum(most.values())) / turns.profiled_s
    return {**shares, "all other operations": other, "idle": max(0.0, 1 - sum(shares.values()) - other)}
