"""Measure a model on scenes of the shapes world it has never seen."""

import argparse
import json
import sys
from pathlib import Path

EXAMPLE = """example:
  python tools/evaluate.py runs/quickstart --requests 256 --out runs/quickstart/evaluation
writes metrics.json, per_request.json, report.md and contact_sheet.png there"""


def main() -> int:
    """Run the evaluation; 2 for whatever the user can put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a run or model folder, or a checkpoint (README)")
    parser.add_argument("--requests", type=int, default=256, help="number of unseen scenes (default 256)")
    parser.add_argument("--batch", type=int, default=64, help="requests painted at once (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes and noise (default 0)")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the scenes (default: the model's own)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--oracle", metavar="FILE", help="an oracle.safetensors of an earlier evaluation, to reuse it")
    parser.add_argument("--seconds", metavar="FILE", help="json of earlier stages' seconds, listed in the report")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    args = parser.parse_args()
    try:
        seconds = json.loads(Path(args.seconds).read_text()) if args.seconds else None
        from sb.evaluate.shapes import evaluate_model

        evaluate_model(
            args.model, args.out, num_requests=args.requests, batch=args.batch, seed=args.seed, size_px=args.size,
            device=args.device, oracle_file=args.oracle, seconds=seconds,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"open {args.out}/contact_sheet.png and {args.out}/report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
