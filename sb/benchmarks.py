"""The parts of tools/benchmark.py: from its flags to the benchmark meant, which is imported as it is asked for."""

import argparse
import sys
from typing import Any


def say(line: str) -> None:
    """Progress, on standard error: the figures alone are the output."""
    print(line, file=sys.stderr, flush=True)


def measure_loader(flags: argparse.Namespace) -> dict[str, float]:
    """Run the ``loader`` part."""
    from sb.data.loader_benchmark import benchmark_loader

    return benchmark_loader(
        flags.shards, size_px=flags.size, batch_size=flags.batch_size, workers=flags.workers, images=flags.images,
        passes=flags.passes, report=say,
    )


def measure_model(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the ``model`` part."""
    from sb.models.model_benchmark import benchmark_model

    return benchmark_model(
        flags.size, latent=flags.latent, batch=flags.batch, passes=flags.passes, device=flags.device,
        dtypes=["fp32", "bf16"] if flags.dtype == "both" else [flags.dtype], parts=flags.parts.split(","),
        compiled=flags.compile, report=say,
    )


def measure_cached(flags: argparse.Namespace) -> dict[str, float]:
    """Run the ``cached`` part."""
    from sb.cache_benchmark import benchmark_cached

    given = {name: value for name, value in vars(flags).items() if name not in ("part", "measure")}
    return benchmark_cached(**given, report=say)


def measure_load(flags: argparse.Namespace) -> dict[str, float]:
    """Run the ``load`` part."""
    from sb.load_benchmark import benchmark_loading

    return benchmark_loading(flags.file, flags.passes, say)


def measure_overhead(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the ``overhead`` part."""
    from sb.overhead_benchmark import benchmark_overhead

    return benchmark_overhead(flags.run_file, flags.overrides, flags.steps, say)
