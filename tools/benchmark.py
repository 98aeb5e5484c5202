"""Measure how fast parts of sb run on this machine."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

EPILOG = """example:
  python tools/benchmark.py loader runs/coco-shards --size 128 --workers 1
      images/s of the loader, of a bare loop over the same samples and of decoding alone, and their ratios
  python tools/benchmark.py model --size quickstart --device cpu
      UNet, VAE and text tower beside diffusers and transformers with the same weights: ms, ratio, memory, FLOPs
  python tools/benchmark.py train --size sd1 --batch 32 --compile
      our whole training loop beside a plain diffusers one: images/s, memory, share of the peak, a profile
  python tools/benchmark.py load
      seconds to load a whole Stable Diffusion file, beside copying its tensors; peak memory per byte
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand per thing that is measured."""
    whole = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = whole.add_subparsers(dest="part", required=True, metavar="PART")
    loader = parts.add_parser("loader", help="the data loader beside a bare loop over the same samples")
    loader.add_argument("shards", nargs="+", help="local shard folders, tars or patterns")
    loader.add_argument("--size", type=int, default=128, help="side of a sample in px (default 128)")
    loader.add_argument("--batch-size", type=int, default=32, help="images per batch (default 32)")
    loader.add_argument("--workers", type=int, default=1, help="worker processes (default 1)")
    loader.add_argument("--images", type=int, default=1024, help="images per pass (default 1024)")
    loader.add_argument("--passes", type=int, default=5, help="alternated passes, the median counts (default 5)")
    loader.set_defaults(measure=measure_loader)
    model = parts.add_parser("model", help="our networks beside diffusers' and transformers' with the same weights")
    model.add_argument("--batch", type=int, default=1, help="samples per call (default 1)")
    model.add_argument("--dtype", choices=["fp32", "bf16", "both"], default="both", help="(default both)")
    model.add_argument("--parts", default="unet,unet_step,vae,text", help="comma list of unet,unet_step,vae,text")
    model.set_defaults(measure=measure_model)
    train = parts.add_parser("train", help="our whole training loop beside a plain diffusers one, latents in memory")
    train.add_argument("--batch", type=int, default=8, help="images per step (default 8)")
    train.add_argument("--steps", type=int, default=10, help="steps of a turn (default 10)")
    train.add_argument("--tuned", action="store_true", help="the diffusers loop in channels last, with a quick EMA")
    train.set_defaults(measure=measure_train)
    for part in (model, train):
        part.add_argument("--size", choices=["sd1", "quickstart", "tiny"], default="quickstart", help="what is built")
        part.add_argument("--latent", type=int, help="latent cells per side (default 64 for sd1, 16 for quickstart)")
        part.add_argument("--passes", type=int, default=5, help="alternated pairs, the median counts (default 5)")
        part.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default auto)")
        part.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    load = parts.add_parser("load", help="loading a checkpoint beside copying its tensors; its peak memory")
    load.add_argument("file", nargs="?", help="a Stable Diffusion .safetensors (default: makes one like SD1.5, 4.3 GB)")
    load.add_argument("--passes", type=int, default=5, help="alternated passes, the median counts (default 5)")
    load.set_defaults(measure=measure_load)
    return whole


def measure_loader(flags: argparse.Namespace) -> dict[str, float]:
    """Run the ``loader`` part."""
    from sb.data.loader_benchmark import benchmark_loader

    return benchmark_loader(
        flags.shards, size_px=flags.size, batch_size=flags.batch_size, workers=flags.workers, images=flags.images,
        passes=flags.passes, report=lambda line: print(line, file=sys.stderr),
    )


def measure_model(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the ``model`` part."""
    from sb.models.model_benchmark import benchmark_model

    return benchmark_model(
        flags.size, latent=flags.latent, batch=flags.batch, passes=flags.passes, device=flags.device,
        dtypes=["fp32", "bf16"] if flags.dtype == "both" else [flags.dtype], parts=flags.parts.split(","),
        compiled=flags.compile, report=lambda line: print(line, file=sys.stderr, flush=True),
    )


def measure_train(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the ``train`` part."""
    from sb.train_benchmark import Setup, benchmark_training

    setup = Setup(
        flags.size, flags.latent or 0, flags.batch, flags.steps, flags.passes, flags.device, flags.compile, flags.tuned
    )
    return benchmark_training(setup, lambda line: print(line, file=sys.stderr, flush=True))


def measure_load(flags: argparse.Namespace) -> dict[str, float]:
    """Run the ``load`` part."""
    from sb.load_benchmark import benchmark_loading

    return benchmark_loading(flags.file, flags.passes, lambda line: print(line, file=sys.stderr, flush=True))


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures, some in rows of their own, to four digits."""
    return {
        name: rounded(value) if isinstance(value, Mapping) else float(f"{value:.4g}")
        for name, value in figures.items()
    }


def main() -> int:
    """Measure, print the figures as JSON."""
    flags = parser().parse_args()
    try:
        figures = flags.measure(flags)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(rounded(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
