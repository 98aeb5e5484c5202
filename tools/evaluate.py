"""Measure a system: on a request list of any pictures, or a model on scenes of the shapes world it has never seen."""

import argparse
import json
import sys
from pathlib import Path

EXAMPLE = """examples:
  python tools/evaluate.py runs/quickstart --requests 256 --out runs/quickstart/evaluation
writes metrics.json, per_request.json, report.md and contact_sheet.png there: the shapes world
  python tools/evaluate.py runs/coco --protocol box --data shards/coco/val --count 1000 \\
      --features "inception: weights=inception.pth" --processes 2 --out runs/coco/box
  python tools/evaluate.py sd-inpainting --adapter diffusers --list runs/coco/box/list.jsonl \\
      --data shards/coco/val --set steps=25 --out runs/sd/box
write report.html, report.json, per_request.json and TensorBoard's events there; the same command goes on with
an evaluation that was stopped, and --part 1/4 does a quarter of one on a machine of its own"""

NETWORKS = {
    "reader": "what names objects: 'oracle: weights=FILE', classifier, torchvision, detector",
    "features": "what Frechet distances are of: 'inception: weights=FILE', torchvision, autoencoder, oracle",
    "clip": "for clip_score: 'clip: model=ViT-B-32 weights=FILE'",
    "lpips": "for background_lpips: 'lpips: weights=FILE net=alex'",
}
DEFAULTS = {"seed": 0, "requests": 256, "count": 1000, "adapter": "own", "data": (), "set": (), "metrics": (),
            "variations": 1, "processes": 1, "threads": 1, "plugins": ()}
SHAPES = ("requests", "oracle", "seconds")
LISTS = (*NETWORKS, *"data adapter metrics reference variations processes threads part plugins".split())


def main() -> int:
    """Run the evaluation; 2 for whatever the user can put right."""
    args = parser().parse_args()
    try:
        settle(args)
        return on_list(args) if args.list or args.protocol else on_shapes(args)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """What may be asked for."""
    made = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("system", metavar="SYSTEM", help="a run or model folder, a checkpoint, or what --adapter takes")
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    made.add_argument("--batch", type=int, help="requests painted at once (default 64, of a list 16)")
    made.add_argument("--seed", type=int, help="of what is drawn: scenes, list, noise (default 0; none with --list)")
    made.add_argument("--size", type=int, metavar="PX", help="side of scenes, or of --protocol's pictures")
    made.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="options of painting, or the adapter's: steps=20")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    shapes = made.add_argument_group("on the shapes world")
    shapes.add_argument("--requests", type=int, help="number of unseen scenes (default 256)")
    shapes.add_argument("--oracle", metavar="FILE", help="an oracle.safetensors of an earlier evaluation, to reuse it")
    shapes.add_argument("--seconds", metavar="FILE", help="json of earlier stages' seconds, listed in the report")
    lists = made.add_argument_group("on a request list")
    which = lists.add_mutually_exclusive_group()
    which.add_argument("--list", metavar="FILE", help="of tools/make_list.py")
    which.add_argument("--protocol", metavar="SPEC", help="make the list first: box, outline, ladder, hull, shapes")
    lists.add_argument("--data", nargs="+", metavar="SHARDS", help="the list's pictures")
    lists.add_argument("--count", type=int, help="objects of --protocol's list (default 1000)")
    lists.add_argument("--adapter", help="own, diffusers, blended or pictures (default own)")
    lists.add_argument("--metrics", nargs="+", metavar="SPEC", help="'NAME: key=value' (default: all there can be)")
    for role, what in NETWORKS.items():
        lists.add_argument(f"--{role}", metavar="SPEC", help=what)
    lists.add_argument("--reference", metavar="DIR", help="the folder reference/ of an evaluation, to measure against")
    lists.add_argument("--variations", type=int, help="of each request, for its diversity (default 1)")
    lists.add_argument("--processes", type=int, help="of this machine (default 1)")
    lists.add_argument("--threads", type=int, help="of each process (default 1)")
    lists.add_argument("--part", metavar="P/N", help="do one part of N alone, 1/N to N/N")
    lists.add_argument("--plugins", nargs="+", metavar="MODULE", help="packages that register more")
    return made


def settle(args: argparse.Namespace) -> None:
    """Fill in defaults; ValueError for options that the way of evaluating has no use for."""
    useless = ("seed", "size", "count", *SHAPES) if args.list else SHAPES if args.protocol else ("count", *LISTS)
    if given := [f"--{name}" for name in useless if getattr(args, name) is not None]:
        way = "with --list" if args.list else "with --protocol" if args.protocol else "without --list or --protocol"
        raise ValueError(f"{', '.join(given)}: of no use {way}")
    vars(args).update({name: value for name, value in DEFAULTS.items() if getattr(args, name) is None})


def on_shapes(args: argparse.Namespace) -> int:
    """Scenes of the shapes world."""
    seconds = json.loads(Path(args.seconds).read_text()) if args.seconds else None
    from sb.config import key_values
    from sb.evaluate.shapes import evaluate_model
    evaluate_model(
        args.system, args.out, num_requests=args.requests, batch=args.batch or 64, seed=args.seed, size_px=args.size,
        device=args.device, oracle_file=args.oracle, seconds=seconds, options=key_values(args.set),
    )
    print(f"open {args.out}/contact_sheet.png and {args.out}/report.md")
    return 0


def on_list(args: argparse.Namespace) -> int:
    """A request list."""
    from sb.config import import_plugins, key_values, spec_of
    from sb.evaluate import evaluation
    from sb.evaluate.runner import Job

    import_plugins(args.plugins)
    part = evaluation.part_of(args.part)
    networks = {role: spec_of(text) for role in NETWORKS if (text := getattr(args, role))}
    job = Job(
        args.out, tuple(args.data), {"name": args.adapter, "system": args.system, "options": key_values(args.set)},
        evaluation.metric_specs(args.metrics, networks, args.variations, args.reference), networks, args.variations,
        args.batch or 16, args.threads, args.device, tuple(args.plugins),
    )
    evaluation.place_list(args.out, args.list, protocol=spec_of(args.protocol) if args.protocol else None,
                          count=args.count, data=args.data, seed=args.seed, size_px=args.size)
    report = evaluation.evaluate_list(job, args.processes, part)
    print("done; other parts are not" if report is None else f"{evaluation.table(report)}\nopen {args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
