"""Paint the same requests in several ways, and print what each is worth and costs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  python tools/ways.py runs/quickstart --oracle runs/quickstart/oracle.safetensors --requests 256 \\
      --ways "default" "no predicted mask: use_predicted=false" "50 steps: sampler=ddim steps=50"
  python tools/ways.py runs/tiny_photos --photos shards/coco/val --ways "default" "no match: colour_match=none"
  python tools/ways.py runs/quickstart --oracle runs/quickstart/oracle.safetensors --remove
a way is `name: key=value key=value`, keys of inpaint: in a run file, or model=, sampler=, encode=,
compiled=, large=; the first is the one
that the others' losses are counted from"""


def main() -> int:
    """Print a table; 2 for whatever the user can put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a run or model folder, or a checkpoint (README)")
    parser.add_argument("--ways", nargs="+", metavar="WAY", default=["default"], help="(default: the model's own)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--oracle", metavar="FILE", help="scenes of the shapes world, read by this oracle.safetensors")
    what.add_argument("--photos", metavar="SHARDS", help="objects of these shards, replaced inside their boxes")
    parser.add_argument("--remove", action="store_true", help="with --oracle: erase the scenes' objects")
    parser.add_argument("--box", type=int, metavar="PX", help="with --oracle: masks are boxes of this side")
    parser.add_argument("--requests", type=int, default=256, help="(default 256)")
    parser.add_argument("--batch", type=int, default=64, help="requests painted at once (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and noise (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as JSON")
    args = parser.parse_args()
    try:
        rows = measure(args)
        if args.out:
            from sb.config import write_whole

            write_whole(args.out, (json.dumps(rows, indent=1) + "\n").encode())
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table(rows))
    return 0


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    from functools import partial

    from sb.evaluate import ways
    from sb.evaluate.oracle import Oracle, vae_round_trip
    from sb.evaluate.requests import make_cases
    from sb.inpaint import Inpainter

    chosen = [ways.Way.parse(text) for text in args.ways]
    load = partial(Inpainter.load, device=args.device)
    painter = load(args.model)
    if args.photos:
        requests = ways.photo_requests(args.photos, painter, args.requests, args.seed)
        return ways.compare_on_photos(painter, load, chosen, requests, args.batch)
    oracle = Oracle.load(args.oracle)
    cases = make_cases(args.requests, args.seed, int(painter.about.get("image_size", 64)))
    if args.remove:
        reconstruct = vae_round_trip(painter.vae)
        levels = {"outline": 0, "box": painter.ladder.num_levels}
        return [
            {"way": f"{way.name}, {mask}", **ways.measure_removal(own, cases, oracle, reconstruct, level, args.batch)}
            for way in chosen for own in [way.painter(painter, load)] for mask, level in levels.items()
        ]
    return ways.compare_ways(painter, load, chosen, cases, oracle, args.batch, args.box)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in names)
              for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
