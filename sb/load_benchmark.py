"""How long it takes to load a whole checkpoint, beside copying its tensors out of the file, and in how much memory."""

import ctypes
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from sb import assemble, networks
from sb.formats.write import write_single_file
from sb.masks import Ladder
from sb.models.weights import no_init, read_state

# Stable Diffusion 1.5's sections: 4.3 GB in fp32
SD1 = {
    "vae": {"name": "kl", "scale": 0.18215},
    "text": {"name": "clip", "width": 768, "layers": 12, "heads": 12, "quick_gelu": True, "pad": "eos"},
    "denoiser": {"name": "unet", "widths": [320, 640, 1280, 1280], "blocks": 2, "heads": 8,
                 "attention": [True, True, True, False], "with_level": False, "with_mask_head": False},
    "conditioning": {"name": "plain"},
}
_EVERY_S = 0.005


def benchmark_loading(path: str | Path | None, passes: int, report: Callable[[str], None]) -> dict[str, float]:
    """Median seconds of ``passes`` alternated loads and copies, their ratio, and the peak of anonymous memory per byte.

    path: a Stable Diffusion .safetensors file; None makes one of random numbers in SD1.5's layout, in the system's
    temporary folder. The first, unmeasured pass warms the file cache. Linux only: memory is read from /proc.
    """
    libc = ctypes.CDLL(None)
    if passes < 1 or not hasattr(libc, "malloc_trim") or not Path("/proc/self/status").is_file():
        raise ValueError(f"benchmark: load needs Linux with glibc, and passes of at least 1, not {passes}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(path) if path else _made(Path(folder) / "sd15.safetensors", report)
        size = sum(tensor.nbytes for tensor in read_state(place).values())
        seconds: dict[str, list[float]] = {"copy": [], "load": []}
        peaks: list[float] = []
        for turn in range(passes + 1):
            for name, work in (("copy", _copy), ("load", _load)):
                gc.collect()
                libc.malloc_trim(0)  # what the turn before left in the heap would be got for nothing
                with _peak() as peak:
                    start = time.perf_counter()
                    kept = work(place)
                    took = time.perf_counter() - start
                del kept
                if turn:
                    seconds[name].append(took)
                    peaks += [peak[0] / size] if name == "load" else []
            if turn:
                report(f"pass {turn}: copy {seconds['copy'][-1]:.2f} s, load {seconds['load'][-1]:.2f} s")
    return {
        "gib": size / 2**30, "copy_s": median(seconds["copy"]), "load_s": median(seconds["load"]),
        "ratio": median(a / b for a, b in zip(seconds["load"], seconds["copy"], strict=True)),
        "peak_anonymous_per_byte": max(peaks),
    }


def _copy(path: Path) -> object:
    return [tensor.clone() for tensor in read_state(path).values()]


def _load(path: Path) -> object:
    return assemble.load_inpainter(path, "cpu")


def _made(path: Path, report: Callable[[str], None]) -> Path:
    report("making a file of random numbers in the layout of SD1.5")
    with no_init():
        parts = networks.build_parts(SD1, Ladder([{"name": "outline"}, {"name": "box"}], [1, 1]))
    for module in parts.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter.data, std=0.02)
    states = {name: module.state_dict() for name, module in parts.items()}
    write_single_file(path, states, {**SD1, "schedule": {"name": "scaled_linear", "prediction": "eps"}}, {})
    return path


@contextmanager
def _peak() -> Iterator[list[float]]:
    """The most anonymous memory above the start's, in bytes, seen every few milliseconds."""
    start, peak, done = _anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY_S):
            peak[0] = max(peak[0], _anonymous() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak[0] = max(peak[0], _anonymous() - start)
        done.set()
        thread.join()


def _anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1]) * 1024
    raise ValueError("this kernel does not say how much anonymous memory a process has")
