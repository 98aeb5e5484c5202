"""What a run file needs and reaches on 1 to many GPUs, as markdown tables: ``sb.estimate`` applied to its networks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sb import networks
from sb.estimate import (
    STRATEGIES, checkpoint_bytes, forward_flops, images_per_second, latent_bytes, memory, saved_bytes, traffic,
)
from sb.types import Condition

GB, GIB = 1e9, 2**30
NODE = 8  # GPUs
RECORD_BYTES = 2000  # a sample's JSON: masks as RLE, labels, captions


@dataclass
class Cluster:
    """What is assumed: a GPU's FLOP/s by itself; bytes/s from GPU to GPU in a node, out of a node, and to storage.

    A ring of all GPUs leaves each node once, so that its slowest link is the node's network, all cards together.
    """

    rate: float
    bandwidth: float
    node_bandwidth: float = 200e9
    disk_bandwidth: float = 2e9

    def __post_init__(self) -> None:
        if min(self.rate, self.bandwidth, self.node_bandwidth, self.disk_bandwidth) <= 0:
            raise ValueError("scale: FLOP/s and bandwidths must be above 0")

    def link(self, ranks: int) -> float:
        """Bytes/s of the slowest link of a ring of this many."""
        return self.node_bandwidth if ranks <= NODE else min(self.bandwidth, self.node_bandwidth)


class NoEstimate(ValueError):
    """A part that this module cannot count, such as a plugin's denoiser."""


@dataclass
class Counts:
    """Exact counts of a run's networks: parameters; for an image of each size FLOPs, bytes of activations that are kept
    for backward, as they are and where blocks are recomputed, and bytes of cached latents."""

    trained: int
    frozen: int
    unet: dict[int, int]
    encode: dict[int, int]
    text: int
    kept: dict[int, int]
    recomputed: dict[int, int]
    latent: dict[int, int]


def count(cfg: Mapping[str, Any], sizes: Sequence[int]) -> Counts:
    """Count the networks of a run file at image sizes in px. ValueError for a size that they cannot halve, or without a
    denoiser; NoEstimate for a denoiser that does not say its ``grid`` and ``conv_in``, or cannot ``recompute``."""
    if "denoiser" not in cfg:
        raise ValueError(f"scale: needs a run file with a denoiser, and '{cfg['name']}' has none")
    parts = networks.outlines(cfg)
    unet, vae, text = parts["unet"], parts["vae"], parts["text"]
    lacking = [name for name in ("grid", "conv_in", "recompute") if not hasattr(unet, name)]
    if lacking:
        raise NoEstimate(f"scale: no estimate for denoiser '{cfg['denoiser']['name']}', which has no {lacking[0]}")
    step = vae.factor * unet.grid
    for size in sizes:
        if size < step or size % step:
            raise ValueError(f"scale: image size {size} is no multiple of {step}, as this VAE and denoiser need")
    meta = torch.device("meta")

    def inputs(size: int) -> Callable[[int, torch.device], tuple[Any, ...]]:
        def of(images: int, device: torch.device) -> tuple[Any, ...]:
            cells = size // vae.factor
            pooled = torch.empty(images, text.pooled_width, device=device) if text.pooled_width else None
            tokens = torch.empty(images, text.context_length, text.width, device=device)
            task = torch.zeros(images, device=device, dtype=torch.int64)
            x = torch.empty(images, unet.conv_in.in_channels, cells, cells, device=device)
            return x, task, Condition(tokens, pooled, torch.zeros(images, device=device), task)

        return of

    kept = {size: saved_bytes(unet, inputs(size)) for size in sizes}
    unet.recompute()
    frozen = [vae] if cfg["system"].get("train_text") else [vae, text]
    total = sum(p.numel() for part in parts.values() for p in part.parameters())
    still = sum(p.numel() for part in frozen for p in part.parameters())
    return Counts(
        total - still, still,
        {size: forward_flops(unet, *inputs(size)(1, meta)) for size in sizes},
        {size: forward_flops(vae.encoder, torch.empty(1, 3, size, size, device=meta)) for size in sizes},
        forward_flops(text, torch.zeros(1, text.context_length, dtype=torch.int64, device=meta)),
        kept, {size: saved_bytes(unet, inputs(size)) for size in sizes},
        {size: latent_bytes(size, vae.factor, vae.latent_channels) + RECORD_BYTES for size in sizes},
    )


def strategy_of(cfg: Mapping[str, Any], ranks: int) -> str:
    """What the estimates call a run file's strategy; one they do not know by the name it is registered under."""
    spec: Any = cfg["trainer"].get("strategy", "auto")
    spec = spec if isinstance(spec, Mapping) else {"name": spec}
    if spec["name"] == "deepspeed":
        return f"zero{spec.get('stage', 2)}{'_offload' if spec.get('offload') else ''}"
    return spec["name"] if spec["name"] != "auto" else "ddp" if ranks > 1 else "single"


def optimizer_bytes_of(cfg: Mapping[str, Any]) -> int:
    """Bytes of a run file's optimizer per parameter."""
    return 2 if cfg["optimizer"]["name"] == "adamw8bit" else 8


def memory_of(
    cfg: Mapping[str, Any], trained: int, frozen: int, *, ranks: int, ema: Mapping[str, Any]
) -> tuple[int, int]:
    """Bytes that a run file takes on each rank's device, and those it keeps in host memory besides.

    ema: the callback's section, empty for none. Without a denoiser no activations are counted. NoEstimate as ``count``.
    """
    activations, trainer = 0, cfg["trainer"]
    if "denoiser" in cfg:
        size = int(cfg["image_size"])
        counts = count(cfg, [size])
        each = (counts.recomputed if trainer.get("recompute") else counts.kept)[size]
        activations = each * int(cfg["data"]["batch_size"]) * (2 if str(trainer.get("precision")) == "32-true" else 1)
    about: dict[str, Any] = {
        "strategy": strategy_of(cfg, ranks), "ranks": ranks, "activations": activations,
        "optimizer_bytes": optimizer_bytes_of(cfg),
    }
    found = memory(trained, frozen, averages=len(ema.get("averages", ())), **about)
    if ema.get("device") != "cpu":
        return found["total"], found["host"]
    return memory(trained, frozen, averages=0, **about)["total"], found["host"] + found["averages"]


def count_table(counts: Counts) -> str:
    """Parameters, FLOPs and activations, per image size."""
    rows = [
        [f"{size}", f"{unet / 1e9:,.0f}", f"{3 * unet / 1e12:.2f}", f"{counts.encode[size] / 1e9:,.0f}",
         f"{counts.text / 1e9:.0f}", f"{counts.kept[size] / GIB:.2f}", f"{counts.recomputed[size] / GIB:.2f}",
         f"{counts.latent[size] / 1e3:.0f}"]
        for size, unet in counts.unet.items()
    ]
    return f"trained {counts.trained / 1e6:,.1f} M, frozen {counts.frozen / 1e6:,.1f} M parameters\n\n" + table(
        ["image px", "UNet forward, GFLOP", "training, TFLOP", "VAE encode, GFLOP", "text, GFLOP",
         "kept activations, GiB", "recomputed, GiB", "cached, kB"], rows)


def memory_table(
    counts: Counts, gpus: Sequence[int], size: int, batch: int, averages: int, recompute: bool,
    optimizer_bytes: int = 8,
) -> str:
    """GiB per GPU (and per GPU in host memory) by strategy and number of GPUs."""
    rows, kept = [], counts.recomputed if recompute else counts.kept
    for strategy in STRATEGIES:
        cells = []
        for ranks in gpus:
            if strategy == "single" and ranks > 1:
                cells.append("")
                continue
            found = memory(counts.trained, counts.frozen, strategy=strategy, ranks=ranks, averages=averages,
                           optimizer_bytes=optimizer_bytes, activations=kept[size] * batch)
            host = f" + {found['host'] / GIB:.1f} host" if found["host"] else ""
            cells.append(f"{found['total'] / GIB:.1f}{host}")
        rows.append([strategy, *cells])
    return table([f"GiB per GPU, {batch} images of {size} px", *(f"{n} GPUs" for n in gpus)], rows)


def network_table(counts: Counts, gpus: Sequence[int], cluster: Cluster) -> str:
    """GB that a GPU, and a node of them, sends per micro-batch, and the seconds that have to hide behind compute."""
    rows = []
    for strategy in ("ddp", "fsdp", "zero1", "zero2", "zero3"):
        sent = {n: traffic(counts.trained, strategy=strategy, ranks=n) for n in gpus if n > 1}
        rows.append([strategy, *(f"{size / GB:.1f}, {size / cluster.link(n):.2f} s" for n, size in sent.items())])
    return table(["sent by each GPU and node", *(f"{n} GPUs" for n in gpus if n > 1)], rows)


def speed_table(
    counts: Counts, gpus: Sequence[int], cluster: Cluster, *, strategy: str, batch: int, global_batch: int,
) -> str:
    """Images/s, efficiency against one GPU, at a fixed global batch: fewer images per GPU where there are more GPUs."""
    rows = []
    for size in counts.unet:
        for ranks in gpus:
            each, accumulate = _plan(ranks, batch, global_batch)
            speed = _speed(counts, size, ranks, cluster, strategy, each, accumulate)
            alone = cluster.rate / (3 * counts.unet[size])
            step = ranks * each * accumulate / speed
            rows.append([f"{size}", f"{ranks}", f"{each} x {accumulate}", f"{speed:,.0f}",
                         f"{speed / alone / ranks:.0%}", f"{step:.2f}"])
    return table(["image px", "GPUs", "images per GPU x accumulated", "images/s", "efficiency", "s per step"], rows)


def storage_table(
    counts: Counts, gpus: Sequence[int], cluster: Cluster, *, strategy: str, batch: int, global_batch: int,
    image_bytes: float,
) -> str:
    """MB/s of shards: what a node reads of files it can seek in, and what it fetches of remote ones (every shard)."""
    rows = []
    for size in counts.unet:
        for ranks in gpus:
            each, accumulate = _plan(ranks, batch, global_batch)
            speed = _speed(counts, size, ranks, cluster, strategy, each, accumulate)
            here = speed * min(ranks, NODE) / ranks
            kinds = (image_bytes + RECORD_BYTES, counts.latent[size])
            rows.append([f"{size}", f"{ranks}", f"{here:,.0f}", *(
                f"{images * kind / 1e6:,.0f}" for images in (here, speed) for kind in kinds)])
    return table(["image px", "GPUs", "images/s per node", "pixels read, MB/s", "cached read, MB/s",
                  "pixels fetched, MB/s", "cached fetched, MB/s"], rows)


def shard_table(counts: Counts, images: int, shard_images: int, block: int, image_bytes: float) -> str:
    """Number and size of shards, and of the block of them that is shuffled together, for pixels and latents."""
    if min(images, shard_images, block) < 1:
        raise ValueError(f"scale: images, shard images and shuffled shards must be at least 1, not {images}, "
                         f"{shard_images} and {block}")
    kinds = {"pixels": image_bytes + RECORD_BYTES,
             **{f"cached, {size} px": float(each) for size, each in counts.latent.items()}}
    rows = []
    for kind, each in kinds.items():
        shard = shard_images * each
        rows.append([kind, f"{images * each / GB:,.0f}", f"{math.ceil(images / shard_images):,}", f"{shard / 1e6:,.0f}",
                     f"{block * shard_images:,}", f"{block * shard / GB:.1f}"])
    return table(["shards of", "whole set, GB", "shards", "MB each", "images in a block", "block, GB"], rows)


def checkpoint_table(counts: Counts, cluster: Cluster, averages: int) -> str:
    """Size of a checkpoint and the seconds that writing it takes."""
    rows = []
    for name, bytes_each in (("adamw", 8), ("adamw8bit", 2)):
        size = checkpoint_bytes(counts.trained, averages=averages, optimizer_bytes=bytes_each)
        rows.append([name, f"{size / GB:.1f}", f"{size / cluster.disk_bandwidth:.0f}"])
    return table(["optimizer", "checkpoint, GB", f"s at {cluster.disk_bandwidth / GB:g} GB/s"], rows)


def _plan(ranks: int, batch: int, global_batch: int) -> tuple[int, int]:
    """Images of a micro-batch and how many of them make a step, so that all ranks' steps make the global batch."""
    each = min(batch, global_batch // ranks)
    if each < 1:
        raise ValueError(f"scale: a global batch of {global_batch} leaves nothing for each of {ranks} GPUs")
    return each, max(1, round(global_batch / (ranks * each)))


def _speed(
    counts: Counts, size: int, ranks: int, cluster: Cluster, strategy: str, each: int, accumulate: int,
) -> float:
    return images_per_second(
        3 * counts.unet[size], counts.trained, strategy="single" if ranks == 1 else strategy, ranks=ranks, batch=each,
        rate=cluster.rate, bandwidth=cluster.link(ranks), accumulate=accumulate,
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column to the left, numbers to the right."""
    lines = [list(head), ["---", *("---:" for _ in head[1:])], *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
