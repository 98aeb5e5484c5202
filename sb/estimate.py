"""What a run will need and reach, counted or modelled before there is a machine: memory, FLOPs, traffic, images/s.

Numbers of parameters, FLOPs and saved bytes are exact counts; what a strategy keeps follows its implementation
(torch's DDP and FSDP2, DeepSpeed 0.19); ``images_per_second`` is a model on paper.

Legend: P trained parameters, n ranks. Weights, gradients and averages are fp32, products bf16 under autocast.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

FP32, BF16 = 4, 2
STRATEGIES = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
BUCKET = 200_000_000  # parameters in a DeepSpeed bucket, as Lightning sets it; two while communication overlaps
REUSE = 500_000_000  # parameters ZeRO-3 keeps gathered: half its reuse distance, the way to the last block and back
UNIT = 50_000_000  # parameters of the largest block that FSDP gathers (Stable Diffusion's 2560 -> 1280 block)


def memory(
    trained: int, frozen: int, *, strategy: str, ranks: int, averages: int = 1, optimizer_bytes: int = 8,
    activations: int = 0,
) -> dict[str, int]:
    """Bytes on each device by part, with ``total``; ``host`` is what each rank keeps in host memory besides.

    trained, frozen: numbers of parameters. averages: how many EMAs. optimizer_bytes: per parameter, 8 for AdamW's two
    fp32 moments, 2 for 8-bit ones. activations: bytes of a micro-batch (``saved_bytes`` per image times its size).

    half: autocast's bf16 copies, which autograd keeps until backward. master: the second fp32 copy of the weights that
    ZeRO-1 and 2 update. communication: buckets, and parameters gathered for use. validation: the raw weights, aside
    while the average is in their place; no activations lie beside them then, so that total counts the larger.
    Raises ValueError for an unknown strategy or less than one rank.
    """
    _check(strategy, ranks)
    offload, stage = strategy.endswith("_offload"), strategy.removesuffix("_offload")
    shared = math.ceil(trained / ranks)
    owned = trained if stage in ("single", "ddp") else shared  # whose fp32 values this rank updates
    sharded = stage in ("fsdp", "zero3")  # weights in pieces too
    averaged = FP32 * owned * averages
    moments = optimizer_bytes * owned
    master = FP32 * owned if stage in ("zero1", "zero2") or offload else 0
    gradients = FP32 * (trained if stage in ("single", "ddp", "zero1") else shared)
    weights = FP32 * (shared if sharded else trained)
    host = 0
    if offload:
        host = averaged + moments + master + gradients
        averaged = moments = master = gradients = 0
        if sharded:
            host, weights = host + weights, 0
    parts = {
        "weights": weights, "gradients": gradients, "optimizer": moments, "master": master, "averages": averaged,
        "frozen": FP32 * frozen, "half": 0 if stage == "zero3" else BF16 * trained,
        "communication": _buffers(stage, trained, ranks), "activations": activations,
        "validation": FP32 * owned if averages and not offload else 0,
    }
    standing = sum(parts.values()) - parts["activations"] - parts["validation"]
    return {**parts, "total": standing + max(parts["activations"], parts["validation"]), "host": host}


def _buffers(stage: str, trained: int, ranks: int) -> int:
    if stage in ("single", "ddp"):  # DDP's gradients are views of its buckets
        return 0
    if stage == "fsdp":  # a block in use, the next one, and the gradients of one
        return 0 if ranks == 1 else 3 * FP32 * min(UNIT, trained)
    buckets = 2 * BF16 * min(BUCKET, trained)
    return buckets + (BF16 * min(REUSE, trained) if stage == "zero3" else 0)


def traffic(trained: int, *, strategy: str, ranks: int, accumulate: int = 1) -> int:
    """Bytes that each rank sends in one optimizer step: rings of (n - 1) / n of what is reduced or gathered, each.

    A ring enters and leaves a node once, so that this is also what each node sends, its GPUs together.

    DDP reduces and gathers fp32 gradients. FSDP2 gathers fp32 weights forward and backward of every micro-batch and
    reduces its gradients. ZeRO reduces bf16 gradients (its autocast's communication type), 1 and 2 then gather fp32
    weights, 3 gathers bf16 ones twice a micro-batch. ZeRO-2 and 3 reduce at every micro-batch.
    """
    _check(strategy, ranks)
    stage = strategy.removesuffix("_offload")
    per_parameter = {
        "single": 0,
        "ddp": 2 * FP32,
        "fsdp": accumulate * 3 * FP32,
        "zero1": BF16 + FP32,
        "zero2": accumulate * BF16 + FP32,
        "zero3": accumulate * 3 * BF16,
    }[stage]
    return round(per_parameter * trained * (ranks - 1) / ranks)


def checkpoint_bytes(trained: int, *, averages: int = 1, optimizer_bytes: int = 8) -> int:
    """Of one checkpoint, over all ranks: fp32 weights, averages and optimizer state; no frozen parts."""
    return trained * (FP32 * (1 + averages) + optimizer_bytes)


def latent_bytes(size: int, factor: int = 8, channels: int = 4) -> int:
    """A picture of ``size`` px as cached moments: mean and spread of each latent number, in fp16."""
    return 2 * channels * (size // factor) ** 2 * 2


def images_per_second(
    flops: float, trained: int, *, strategy: str, ranks: int, batch: int, rate: float, bandwidth: float,
    accumulate: int = 1, latency: float = 2e-4, overlap: float = 2 / 3,
) -> float:
    """Images per second of all ranks: their images over ``compute + exposed communication + latency``.

    flops: of training on one image. batch: images of one rank in a micro-batch. rate: FLOP/s that a device reaches by
    itself. bandwidth: bytes/s of the ring's slowest link. overlap: the share of the last micro-batch's compute that
    communication can hide behind (the backward's 2/3); ZeRO-1 and 2 gather the new weights behind nothing. latency:
    seconds per doubling of the ranks, each step.
    """
    compute = flops * batch / rate
    stage = strategy.removesuffix("_offload")
    sent = traffic(trained, strategy=strategy, ranks=ranks, accumulate=accumulate) / bandwidth
    late = FP32 * trained * (ranks - 1) / ranks / bandwidth if stage in ("zero1", "zero2") else 0.0  # new weights
    hidden = overlap * compute * (1 if stage in ("ddp", "zero1") else accumulate)
    seconds = accumulate * compute + late + max(0.0, sent - late - hidden) + latency * math.log2(ranks)
    return ranks * batch * accumulate / seconds


def forward_flops(module: nn.Module, *inputs: Any) -> int:
    """FLOPs of one forward, two for each multiply-add, as FlopCounterMode counts them; training is three forwards.

    inputs: on the meta device. The module stays as and where it is: meta tensors take its weights' place, so that
    nothing is computed and no fused kernel hides its products.
    """
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        functional_call(module, _like(module, torch.device("meta")), inputs)
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of five readings: what a share of the peak is a share of."""
    on_gpu = device.type == "cuda"
    side, repeats = (8192, 10) if on_gpu else (1536, 1)
    a = torch.ones(side, side, device=device, dtype=dtype).normal_(generator=torch.Generator(device).manual_seed(0))
    seconds = []
    for _ in range(6):  # the first one warms up
        if on_gpu:
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            a @ a
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - began) / repeats)
    return 2 * side**3 / min(seconds[1:])


def saved_bytes(module: nn.Module, inputs_of: Callable[[int, torch.device], tuple[Any, ...]]) -> int:
    """Bytes that autograd keeps of one more image for backward, under bf16 autocast on a CUDA device, without one.

    inputs_of: the module's inputs for a number of images on a device. Two images less one: what is kept of the weights
    alone (``memory``'s half) falls out. The momentary buffers of single layers come on top.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    device, kept = torch.device("cuda"), []
    on, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    for images in (1, 2):
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor, found: dict[int, Tensor] = found) -> Tensor:
            found[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with FakeTensorMode(allow_non_fake_inputs=True), torch.compiler.set_stance("force_eager"):
            weights, inputs = _like(module, device), inputs_of(images, device)
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            try:
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Flash():
                    functional_call(module, weights, inputs)
            finally:
                torch.set_autocast_enabled("cuda", on)
                torch.set_autocast_dtype("cuda", dtype)
                torch.clear_autocast_cache()
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))
    return kept[1] - kept[0]


class _Flash(TorchFunctionMode):
    """Attention as its fused kernel, whatever this machine has: its matrix of weights is not kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and not kwargs:
            low = [part.to(torch.bfloat16) for part in args]
            return torch.ops.aten._scaled_dot_product_flash_attention(*low)[0]
        return func(*args, **(kwargs or {}))


def _like(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Tensors in the place of a module's weights and buffers, of the same shapes, on another device."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: torch.empty(t.shape, dtype=t.dtype, device=device, requires_grad=t.requires_grad) for name, t in named
    }


def _check(strategy: str, ranks: int) -> None:
    if strategy not in STRATEGIES or ranks < 1 or (strategy == "single" and ranks > 1):
        raise ValueError(
            f"estimate: strategy '{strategy}' on {ranks} ranks; it is one of {', '.join(STRATEGIES)}, single on one"
        )
