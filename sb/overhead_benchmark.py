"""What a training step is spent on: the networks, backward, the optimizer, waiting for data, and everything else.

A run file's own run is trained, with its callbacks, and every call is timed apart: a part's seconds are those in which
no other part runs inside it. What is left between the parts is Lightning's loop.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sb import config
from sb.assemble import Run, assemble

WORK = ("denoiser", "vae", "text", "backward", "optimizer")  # what any training of these networks has to do
WAIT = "data wait"
REST = "lightning"  # the loop, its closures and its bookkeeping
FAR = 10**12  # images


class Stopwatch:
    """Seconds by part, each without the parts inside it; ``lap`` closes a step. synchronize: called at every border."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None):
        self.synchronize = synchronize
        self.laps: list[dict[str, float]] = []
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._stack = [REST]
        self._since = time.perf_counter()  # the clock that costs least to read

    def _pass(self) -> None:
        self.synchronize()
        now = time.perf_counter()
        self._spent[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside belongs to ``name``."""
        self._pass()
        self._stack.append(name)
        try:
            yield
        finally:
            self._pass()
            self._stack.pop()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, counted under ``name``."""
        def run(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return work(*args, **options)

        return run

    def lap(self) -> None:
        """The step ends here, and the next begins."""
        self._pass()
        self.laps.append(dict(self._spent))
        self._spent.clear()


class _Timed:
    """An object whose call is counted; everything else is its own."""

    def __init__(self, watch: Stopwatch, name: str, inner: Any):
        self._inner, self._call = inner, watch.timed(name, inner)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._call(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Batches:
    """A loader whose every batch is waited for on the watch, and opens a step."""

    def __init__(self, watch: Stopwatch, loader: Any):
        self.watch, self.loader = watch, loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            self.watch.lap()
            with self.watch.part(WAIT):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def benchmark_overhead(
    run_file: str | Path, overrides: Sequence[str], steps: int, warm_steps: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Medians over ``steps`` optimizer steps of a run file: ``step_ms``, ``overhead`` and ``data_wait`` as shares of a
    step, ``ms`` of each part; ``overhead_mean`` also counts what is done at some steps only. Trained in a temporary
    folder, without validation and checkpoints; ``warm_steps`` come before and do not count.

    A step is all that happens between two optimizer steps' first batches; clearing the gradients belongs to the
    optimizer. On a GPU the queue is emptied at every border,
    so that the parts add up: the sum is then more than an undisturbed step.
    """
    if steps < 1 or warm_steps < 0:
        raise ValueError(f"benchmark: needs 1 step or more and 0 warm ones or more, not {steps} and {warm_steps}")
    with tempfile.TemporaryDirectory() as folder:
        cfg = config.plain(config.load(run_file, overrides))
        cfg.update(run_dir=f"{folder}/run", resume="never")
        callbacks = cfg.get("callbacks") or {}
        for spec in callbacks.values():
            if spec and spec["name"] == "save":
                spec.update(every_images=FAR, keep_images=None, monitor=None)
        ranks_images = int(cfg["data"]["batch_size"]) * int(cfg["trainer"].get("accumulate", 1))
        images = (steps + warm_steps + 1) * ranks_images  # the last step is never closed
        cfg["trainer"].update(images=images, val_every_images=images, devices=1, num_nodes=1)
        run = assemble(cfg)
        device = run.trainer.strategy.root_device
        watch = Stopwatch((lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None)
        wire(run, watch)
        report(f"{steps} steps of {ranks_images} images on {device.type}, {torch.get_num_threads()} threads")
        run.trainer.limit_val_batches = 0
        run.fit()
        accumulated = run.trainer.accumulate_grad_batches
    laps = watch.laps[1 + warm_steps * accumulated :][: steps * accumulated]
    return summary([_sum(laps[n : n + accumulated]) for n in range(0, len(laps), accumulated)])


def wire(run: Run, watch: Stopwatch) -> None:
    """Put the watch around what a run's training step calls."""
    system: Any = run.system
    networks = {name: getattr(system, name) for name in ("denoiser", "vae", "text") if hasattr(system, name)}
    for name, network in networks.items():
        for method in {"denoiser": ["forward"], "vae": ["encode", "decode"], "text": ["encode"]}[name]:
            object.__setattr__(network, method, watch.timed(name, getattr(network, method)))
    for name in ("ladder", "objective"):
        if isinstance(getattr(system, name, None), torch.nn.Module):
            object.__setattr__(getattr(system, name), "forward", watch.timed(name, getattr(system, name).forward))
        elif hasattr(system, name):
            setattr(system, name, _Timed(watch, name, getattr(system, name)))
    if hasattr(system, "conditioning"):
        for method in ("canvas", "noised", "network_input", "head_target"):
            setattr(system.conditioning, method, watch.timed("conditioning", getattr(system.conditioning, method)))
    for name, method in (
        ("noise", "draw"), ("noise", "generator"), ("logging", "log"), ("logging", "log_dict"),
        ("clock", "on_before_optimizer_step"), ("clip", "configure_gradient_clipping"), ("backward", "backward"),
        ("step", "training_step"),
    ):
        if hasattr(system, method):
            object.__setattr__(system, method, watch.timed(name, getattr(system, method)))
    for callback in run.trainer.callbacks:  # type: ignore[attr-defined]
        label = getattr(callback, "state_key", type(callback).__name__)
        label = label if label.isidentifier() and label.islower() else type(callback).__name__
        for hook in dir(callback):
            own = getattr(type(callback), hook, None) is not getattr(L.Callback, hook, None)
            if own and hook.startswith(("on_train_batch", "on_before", "on_after")):
                setattr(callback, hook, watch.timed(f"callback {label}", getattr(callback, hook)))
    data: Any = run.data
    loader = data.train_dataloader
    data.train_dataloader = lambda: _Batches(watch, loader())
    configure = system.configure_optimizers

    def configured() -> Any:
        optimizer = configure()
        step = optimizer.step

        def apart(closure: Callable[[], Any]) -> Any:
            with watch.part("optimizer"):
                return step(watch.timed(REST, closure))

        optimizer.step, optimizer.zero_grad = apart, watch.timed("optimizer", optimizer.zero_grad)
        return optimizer

    system.configure_optimizers = configured


def summary(laps: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians over steps: of the step, of the shares of overhead and waiting, and of every part; overhead in all."""
    parts = sorted({name for lap in laps for name in lap})
    totals = [sum(lap.values()) for lap in laps]
    ms = {part: statistics.median(lap.get(part, 0.0) for lap in laps) * 1e3 for part in parts}
    needed = [sum(lap.get(part, 0.0) for part in (*WORK, WAIT)) for lap in laps]
    return {
        "steps": float(len(laps)),
        "step_ms": statistics.median(totals) * 1e3,
        "overhead": statistics.median(1 - n / total for n, total in zip(needed, totals, strict=True)),
        "overhead_mean": 1 - sum(needed) / sum(totals),
        "data_wait": statistics.median(lap.get(WAIT, 0.0) / total for lap, total in zip(laps, totals, strict=True)),
        "ms": dict(sorted(ms.items(), key=lambda pair: -pair[1])),
    }


def _sum(laps: Sequence[dict[str, float]]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for lap in laps:
        for name, seconds in lap.items():
            total[name] += seconds
    return dict(total)
