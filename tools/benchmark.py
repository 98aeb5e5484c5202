"""Measure how fast parts of sb run on this machine."""

import argparse
import json
import sys

EPILOG = """example:
  python tools/benchmark.py loader runs/coco-shards --size 128 --workers 1
      images/s of the loader, of a bare loop over the same samples and of decoding alone, and their ratios
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
    return whole


def measure_loader(flags: argparse.Namespace) -> dict[str, float]:
    """Run the ``loader`` part."""
    from sb.data.loader_benchmark import benchmark_loader

    return benchmark_loader(
        flags.shards, size_px=flags.size, batch_size=flags.batch_size, workers=flags.workers, images=flags.images,
        passes=flags.passes, report=lambda line: print(line, file=sys.stderr),
    )


def main() -> int:
    """Measure, print the figures as JSON."""
    flags = parser().parse_args()
    try:
        figures = flags.measure(flags)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
