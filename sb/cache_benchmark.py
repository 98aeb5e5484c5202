"""How much faster a run trains from cached latents than from its pictures, and how much its parts allow.

Both train the same steps from the same weights in one process, in alternation, each with its own loader; beside them
the parts are timed apart: a step on latents and features that are there, encoding a batch of pictures and its texts.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from sb import config
from sb.assemble import assemble
from sb.data.pipeline import ShardLoader, TrainStream
from sb.launch import find_device
from sb.types import Batch

WARM_STEPS = 3


class _Arm:
    """A run whose steps are taken by hand: its system, its optimizer and its batches."""

    def __init__(self, run_file: str, overrides: Sequence[str], device: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cfg = config.load(run_file, [*overrides, f"run_dir={folder}/run"])
            run = assemble(cfg)
        self.system: Any = run.system.to(device).train()
        self.optimizer: Any = self.system.configure_optimizers()
        self.clip, precision = cfg.trainer.clip, str(cfg.trainer.precision)
        kind = torch.float16 if precision.startswith("16") else torch.bfloat16
        self.autocast = torch.autocast(device, kind, enabled=not precision.startswith("32"))
        self.samples, self.device = run.data.samples("train"), device
        stream = TrainStream(self.samples, run.data.batch_size)
        self.held = next(iter(ShardLoader(stream, lambda: 0))).to(device)  # first: the last loader made has the samples
        loader = ShardLoader(
            stream, lambda: 0, workers=run.data.workers, prefetch=run.data.prefetch, pin_memory=device == "cuda"
        )
        self.batches: Iterator[Batch] = (batch.to(device, non_blocking=True) for batch in loader)

    def step(self, batch: Batch) -> torch.Tensor:
        """One training step as in a run; its loss."""
        system = self.system
        factor = system._factor(system.images_seen, len(batch))
        for group, options in zip(self.optimizer.param_groups, system._options, strict=True):
            group["lr"] = options["lr"] * factor
        generator = system.generator(system.seed, system.images_seen, 0)
        with self.autocast:
            loss = system.step(batch, system.draw(batch.outline, generator, system.text_dropout))["loss"]
        loss.backward()
        if self.clip:
            clip_grad_norm_(system.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        system.images_seen += len(batch)
        return loss.detach()

    def train(self, steps: int) -> tuple[float, list[float]]:
        """Seconds that so many steps took, waiting for data included, and their losses."""
        losses: list[torch.Tensor] = []
        seconds = self.timed(lambda: losses.append(self.step(next(self.batches))), steps) * steps
        return seconds, [float(loss) for loss in losses]

    def timed(self, call: Callable[[], Any], times: int) -> float:
        """Seconds per call."""
        self._wait()
        began = time.perf_counter()
        for _ in range(times):
            call()
        self._wait()
        return (time.perf_counter() - began) / times

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def benchmark_cached(
    run_file: str, overrides: Sequence[str], pictures: str, *, steps: int = 20, passes: int = 7, device: str = "cpu",
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Images per second ``online`` and ``cached`` and, as medians over passes, their ``ratio``, what the parts
    ``allow`` ((step + encode + text) / step, without text where its features are not cached) and the ``share`` of it
    that is reached; ``loss_difference`` is the largest between both at the same step.

    run_file: reads latents; pictures: the shards that they were made of. ``steps`` of each kind make a pass.
    """
    find_device(device)
    if min(steps, passes) < 1:
        raise ValueError(f"benchmark: needs steps and passes of at least 1, not {steps} and {passes}")
    arms = {
        "online": _Arm(run_file, [*overrides, f"data.train=[{{shards: {pictures}}}]"], device),
        "cached": _Arm(run_file, overrides, device), "parts": _Arm(run_file, overrides, device),
    }
    if arms["cached"].samples.latents is None or arms["online"].samples.latents is not None:
        raise ValueError(f"benchmark: data.train of {run_file} must hold latents, and --pictures what they are made of")
    seen, held, frozen = arms["online"].held, arms["parts"].held, arms["online"].system
    difference, figures = 0.0, []
    for number in range(passes + 1):  # the first one warms up
        count = steps if number else WARM_STEPS
        order = ("online", "cached") if number % 2 else ("cached", "online")
        took = {name: arms[name].train(count) for name in order}
        (online, first), (cached, second) = took["online"], took["cached"]
        difference = max([difference, *(abs(a - b) for a, b in zip(first, second, strict=True))])
        parts = arms["parts"]
        with torch.no_grad(), parts.autocast:
            assert seen.image is not None
            images = seen.image.float() / 127.5 - 1
            encode = parts.timed(lambda: frozen.vae.encode(images), count)
            text = parts.timed(lambda: frozen.text.encode(seen.text), count)
        step = parts.timed(lambda: parts.step(held), count)
        allowed = (step + encode + (text if held.features is not None else 0)) / step
        if number:
            images_done = count * len(held)
            figures.append({
                "online": images_done / online, "cached": images_done / cached, "step_ms": step * 1e3,
                "encode_ms": encode * 1e3, "text_ms": text * 1e3, "ratio": online / cached, "allowed": allowed,
                "share": online / cached / allowed,
            })
            report(f"pass {number}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures[-1].items()))
    medians = {name: statistics.median(row[name] for row in figures) for name in figures[0]}
    return {**medians, "loss_difference": difference, "steps_compared": WARM_STEPS + passes * steps}
