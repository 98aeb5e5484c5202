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
  python tools/benchmark.py cached configs/quickstart_cached.yaml --pictures runs/quickstart/shards/train
      images/s of training from cached latents and from pictures, beside what step, VAE and text tower allow
  python tools/benchmark.py overhead configs/quickstart.yaml --steps 500
      ms of each part of a training step; the share of all that is not networks, backward, optimizer or waiting
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
    loader.set_defaults(measure="loader")
    model = parts.add_parser("model", help="our networks beside diffusers' and transformers' with the same weights")
    model.add_argument("--size", choices=["sd1", "quickstart", "tiny"], default="quickstart", help="what is built")
    model.add_argument("--latent", type=int, help="latent cells per side (default 64 for sd1, 16 for quickstart)")
    model.add_argument("--batch", type=int, default=1, help="samples per call (default 1)")
    model.add_argument("--passes", type=int, default=5, help="alternated pairs, the median counts (default 5)")
    model.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default auto)")
    model.add_argument("--dtype", choices=["fp32", "bf16", "both"], default="both", help="(default both)")
    model.add_argument("--parts", default="unet,unet_step,vae,text", help="comma list of unet,unet_step,vae,text")
    model.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    model.set_defaults(measure="model")
    cached = parts.add_parser("cached", help="training from cached latents beside training from their pictures")
    cached.add_argument("run_file", metavar="RUN.yaml", help="a run file that reads latents")
    cached.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run file")
    cached.add_argument("--pictures", required=True, help="the shards that the latents were made of")
    cached.add_argument("--steps", type=int, default=20, help="steps of each kind in a pass (default 20)")
    cached.add_argument("--passes", type=int, default=7, help="alternated passes, the median counts (default 7)")
    cached.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default cpu)")
    cached.set_defaults(measure="cached")
    overhead = parts.add_parser("overhead", help="where a training step's time goes, in a run file's own run")
    overhead.add_argument("run_file", metavar="RUN.yaml", nargs="?", default="configs/quickstart.yaml",
                          help="(default configs/quickstart.yaml)")
    overhead.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run file")
    overhead.add_argument("--steps", type=int, default=500, help="optimizer steps, the median counts (default 500)")
    overhead.set_defaults(measure="overhead")
    load = parts.add_parser("load", help="loading a checkpoint beside copying its tensors; its peak memory")
    load.add_argument("file", nargs="?", help="a Stable Diffusion .safetensors (default: makes one like SD1.5, 4.3 GB)")
    load.add_argument("--passes", type=int, default=5, help="alternated passes, the median counts (default 5)")
    load.set_defaults(measure="load")
    return whole


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures, some in rows of their own, to four digits."""
    return {name: rounded(v) if isinstance(v, Mapping) else float(f"{v:.4g}") for name, v in figures.items()}


def main() -> int:
    """Measure, print the figures as JSON."""
    flags = parser().parse_args()
    try:
        from sb import benchmarks

        figures = getattr(benchmarks, f"measure_{flags.measure}")(flags)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(rounded(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
