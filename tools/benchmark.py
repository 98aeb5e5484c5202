"""Measure how fast parts of sb run on this machine."""

import argparse
import importlib
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
  python tools/benchmark.py cached configs/quickstart_cached.yaml --pictures runs/quickstart/shards/train
      images/s of training from cached latents and from pictures, beside what step, VAE and text tower allow
  python tools/benchmark.py overhead configs/quickstart.yaml
      what of a training step is not the networks, backward, the optimizer or waiting for data
  python tools/benchmark.py inpaint --model runs/quickstart --ways "50 steps: sampler=ddim steps=50" "default"
      a request painted in several ways; without --model beside diffusers' inpainting pipeline, same random weights
  python tools/benchmark.py app --model runs/quickstart
      seconds of the page's first load in Chromium; requests/s one at a time and 32 at once
  python tools/benchmark.py load
      seconds to load a whole Stable Diffusion file, beside copying its tensors; peak memory per byte
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand per thing that is measured."""
    whole = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = whole.add_subparsers(dest="part", required=True, metavar="PART")

    def add(name: str, function: str, about: str) -> argparse.ArgumentParser:
        part = parts.add_parser(name, help=about)
        part.set_defaults(function=function)
        return part

    loader = add("loader", "sb.data.loader_benchmark:benchmark_loader", "the loader beside a bare loop")
    loader.add_argument("shards", nargs="+", help="local shard folders, tars or patterns")
    loader.add_argument("--size", dest="size_px", type=int, default=128, help="side of a sample in px (default 128)")
    loader.add_argument("--batch-size", type=int, default=32, help="images per batch (default 32)")
    loader.add_argument("--workers", type=int, default=1, help="worker processes (default 1)")
    loader.add_argument("--images", type=int, default=1024, help="images per pass (default 1024)")
    model = add("model", "sb.models.model_benchmark:benchmark_model", "networks beside diffusers' and transformers'")
    model.add_argument("--batch", type=int, default=1, help="samples per call (default 1)")
    model.add_argument("--dtype", dest="dtypes", type=listed, default=["fp32", "bf16"], help="(default fp32,bf16)")
    model.add_argument("--parts", type=listed, default=["unet", "unet_step", "vae", "text"], help="(default all)")
    load = add("load", "sb.load_benchmark:benchmark_loading", "loading a checkpoint beside copying its tensors")
    load.add_argument("path", nargs="?", help="a Stable Diffusion .safetensors (default: makes one like SD1.5, 4.3 GB)")
    train = add("train", "sb.train_benchmark:benchmark_training", "our training loop beside a plain diffusers one")
    train.add_argument("--batch", type=int, default=8, help="images per step (default 8)")
    train.add_argument("--steps", type=int, default=10, help="steps of a turn (default 10)")
    train.add_argument("--tuned", action="store_true", help="the diffusers loop in channels last, with a quick EMA")
    cached = add("cached", "sb.cache_benchmark:benchmark_cached", "training from cached latents and from pictures")
    cached.add_argument("--pictures", required=True, help="the shards that the latents were made of")
    cached.add_argument("--steps", type=int, default=20, help="steps of each kind in a pass (default 20)")
    cached.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default cpu)")
    overhead = add("overhead", "sb.overhead_benchmark:benchmark_overhead", "where a training step's time goes")
    overhead.add_argument("--steps", type=int, default=500, help="optimizer steps measured (default 500)")
    overhead.add_argument("--warm", dest="warm_steps", type=int, default=10, help="steps before them (default 10)")
    inpaint = add("inpaint", "sb.inpaint_benchmark:benchmark_inpainting", "requests, beside diffusers' pipeline")
    inpaint.add_argument("--model", help="a run or model folder, to compare ways of painting with")
    inpaint.add_argument("--ways", nargs="+", metavar="WAY", default=[], help="`name: key=value`, as in tools/ways.py")
    inpaint.add_argument("--size", choices=["sd1", "small"], default="small", help="without --model: what is built")
    inpaint.add_argument("--px", dest="size_px", type=int, help="side of the picture (default: the model's own)")
    inpaint.add_argument("--batch", type=int, default=1, help="requests at once (default 1)")
    inpaint.add_argument("--steps", type=int, default=20, help="without --model: denoising steps (default 20)")
    inpaint.add_argument("--device", default="auto", help="(default auto)")
    app = add("app", "sb.app.benchmark:benchmark_app", "the browser app: first load, requests in batches")
    app.add_argument("--model", required=True, help="a run or model folder")
    app.add_argument("--requests", type=int, default=32, help="requests of a turn (default 32)")
    app.add_argument("--device", default="auto", help="(default auto)")
    for part in (cached, overhead):
        part.add_argument("run_file", metavar="RUN.yaml", help="a run file")
        part.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run file")
    for part in (model, train):
        part.add_argument("--size", choices=["sd1", "quickstart", "tiny"], default="quickstart", help="what is built")
        part.add_argument("--latent", type=int, help="latent cells per side (default 64 for sd1, 16 for quickstart)")
        part.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(default auto)")
        part.add_argument("--compile", dest="compiled", action="store_true", help="torch.compile on both sides")
    for part in (loader, model, load, train, cached, inpaint, app):
        part.add_argument("--passes", type=int, default=5, help="alternated passes, the median counts (default 5)")
    return whole


def listed(text: str) -> list[str]:
    """A comma list."""
    return text.split(",")


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures, some in rows of their own, to four digits."""
    return {
        name: rounded(value) if isinstance(value, Mapping) else float(f"{value:.4g}")
        for name, value in figures.items()
    }


def main() -> int:
    """Measure, print the figures as JSON."""
    flags = vars(parser().parse_args())
    module, name = flags.pop("function").split(":")
    del flags["part"]
    try:
        measure = getattr(importlib.import_module(module), name)
        figures = measure(**flags, report=lambda line: print(line, file=sys.stderr, flush=True))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(rounded(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
