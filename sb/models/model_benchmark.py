"""How fast our models are beside diffusers' and transformers' with the same weights, in one process.

Each reading of ours has one of theirs right beside it, in an order that alternates; the ratio is the median over such
pairs, because what else a machine does hits both alike.
"""

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sb.estimate import matmul_rate
from sb.models.model_pairs import SIZES, Call, Pair, library, text_pair, unet_pair, vae_pair

SEED = 0
WARM_CALLS = 2
READING_S = 0.2  # a reading repeats a quick call until about this long
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("unet", "unet_step", "vae", "text")
GIB = 2**30


def benchmark_model(
    size: str = "quickstart", *, latent: int | None = None, batch: int = 1, passes: int = 5, device: str = "auto",
    dtypes: Sequence[str] = tuple(DTYPES), parts: Sequence[str] = PARTS, compiled: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rows ``model/what/dtype`` as ``_row`` has them, with ``gflop`` of one call and ``share_of_peak``, what ours
    reaches of ``matmul_gflops/dtype``, the rate of a large matrix product here.

    latent: cells per side, the size's own if None. passes: alternated pairs of readings per row. compiled:
    ``torch.compile`` on both sides. Raises ValueError for unknown names, for a latent that the UNet cannot halve,
    and where diffusers or transformers is missing.
    """
    for kind, given, known in (("size", [size], SIZES), ("dtype", dtypes, DTYPES), ("part", parts, PARTS)):
        for name in given:
            if name not in known:
                raise ValueError(f"benchmark: {kind} '{name}' is none of {', '.join(known)}")
    chosen = SIZES[size]
    found: dict[str, Any] = {}
    cells, grid = chosen.latent if latent is None else latent, 2 ** (len(chosen.unet["widths"]) - 1)
    if cells % grid or min(cells, batch, passes) < 1:
        raise ValueError(f"benchmark: latent must be a multiple of {grid}, batch and passes at least 1")
    versions = ", ".join(f"{name} {library(name).__version__}" for name in ("torch", "diffusers", "transformers"))
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("benchmark: no CUDA device here")
    report(f"{where.type}, {torch.get_num_threads()} threads, {versions}")
    with _plain_fp32():
        for dtype in dtypes:
            found[f"matmul_gflops/{dtype}"] = matmul_rate(where, DTYPES[dtype]) / 1e9
        for model, pair_of in (("unet", unet_pair), ("vae", vae_pair), ("text", text_pair)):
            whats = [what for part, what in ((model, "forward"), (f"{model}_step", "step")) if part in parts]
            if not whats:
                continue
            torch.manual_seed(SEED)
            pair = pair_of(chosen, cells, batch, where)
            counted = pair_of(chosen, cells, batch, torch.device("meta"))
            for what, dtype in ((what, dtype) for what in whats for dtype in dtypes):
                row = _row(pair, what, dtype, passes, where, compiled)
                row["gflop"] = _gflop(counted, what)
                row["share_of_peak"] = row["gflop"] / row["ours_ms"] * 1e3 / found[f"matmul_gflops/{dtype}"]
                found[f"{model}/{what}/{dtype}"] = row
                figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
                report(f"{model}/{what}/{dtype}: {figures}")
            del pair, counted
    return found


@contextlib.contextmanager
def _plain_fp32() -> Iterator[None]:
    """cuDNN rounds fp32 convolutions to TF32 unless told not to, and the matrix product would not be its measure."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _row(pair: Pair, what: str, dtype: str, passes: int, device: torch.device, compiled: bool) -> dict[str, float]:
    """ours_ms and theirs_ms: medians over the readings; ratio: the median over pairs of ours / theirs.

    difference: largest distance between the two outputs over the standard deviation of theirs. peak_gib_ours,
    peak_gib_theirs: what one call takes beyond what was held before it (weights, optimizer state), absent where the
    system does not tell.
    """
    ours, theirs = (
        _in_dtype(torch.compile(call) if compiled else call, device, DTYPES[dtype]) for call in (pair.ours, pair.theirs)
    )
    with torch.no_grad():
        mine, other = (torch.cat(call(), dim=1).float() for call in (ours, theirs))
    row = {"difference": float((mine - other).abs().max() / other.std())}
    if what == "step":
        optimizer = torch.optim.AdamW(pair.parameters, lr=1e-6, fused=True)
        works = [_step(call, optimizer) for call in (ours, theirs)]
    else:
        works = [_forward(call) for call in (ours, theirs)]
    for work in works * WARM_CALLS:
        work()
    repeats = max(1, round(READING_S / max(_seconds(works[0], 1, device), 1e-6)))
    readings: list[list[float]] = [[], []]
    for number in range(passes):
        for side in ((0, 1), (1, 0))[number % 2]:
            readings[side].append(_seconds(works[side], repeats, device))
    row["ratio"] = statistics.median(a / b for a, b in zip(*readings, strict=True))
    for side, name in enumerate(("ours", "theirs")):
        row[f"{name}_ms"] = statistics.median(readings[side]) * 1e3
        peak = _peak_gib(works[side], device)
        if peak is not None:
            row[f"peak_gib_{name}"] = peak
    return row


def _in_dtype(call: Call, device: torch.device, dtype: torch.dtype) -> Call:
    """The call under autocast, as both sides' trainers run bf16; as it is in fp32."""
    def run() -> tuple[Tensor, ...]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return call()

    return run


def _forward(call: Call) -> Callable[[], None]:
    """No inference mode: what it made of the shared weights could not be trained on afterwards."""
    def run() -> None:
        with torch.no_grad():
            call()

    return run


def _step(call: Call, optimizer: torch.optim.Optimizer | None) -> Callable[[], None]:
    """Forward, backward from the sum of squares, optimizer step; the gradients are gone afterwards."""
    def run() -> None:
        loss = torch.stack([part.float().square().sum() for part in call()]).sum()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def _seconds(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Mean seconds of one call, the device's queue empty before and after."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return (time.perf_counter() - began) / repeats


def _peak_gib(work: Callable[[], None], device: torch.device) -> float | None:
    """GiB that one call takes beyond what is held before it; on a CPU the growth of resident memory, where Linux says.

    Freed memory that the allocator kept would hide growth, so it goes back to the system first.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / GIB
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except (OSError, AttributeError):
        return None
    resident = _status_gib("VmRSS")
    work()
    return max(_status_gib("VmHWM") - resident, 0.0)


def _status_gib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / GIB


def _gflop(counted: Pair, what: str) -> float:
    """Of one call of ours, counted on the meta device: no fused kernel hides its products there, and nothing is run."""
    work = _step(counted.ours, None) if what == "step" else _forward(counted.ours)
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9
