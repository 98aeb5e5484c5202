"""Write a request list: which objects a system is asked to paint, under which masks, in which words."""

import argparse
import sys

EXAMPLE = """\
examples:
  python tools/make_list.py --protocol box --data shards/coco/val --count 1000 --size 512 --seed 0 --out box.jsonl
  python tools/make_list.py --protocol hull --annotations coco/annotations/instances_val2017.json --count 10000 \\
      --out hull.jsonl
  python tools/make_list.py --protocol outline --data shards/openimages/val --count 1000 --out outline.jsonl \\
      text=caption min_area=0.05
  python tools/make_list.py --protocol shapes --count 256 --out shapes.jsonl

The same arguments and data give the same bytes. The list's first line says its rules (docs/evaluation.md).
"""


def main() -> int:
    """Make the list; 2 for whatever the user can put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", required=True, help="box, outline, ladder, hull, shapes, or a registered name")
    parser.add_argument("--data", action="append", default=[], metavar="SHARDS",
                        help="where the objects come from: shards with masks; may be repeated")
    parser.add_argument("--annotations", metavar="FILE", help="or a COCO annotation file, without any picture")
    parser.add_argument("--split", default="val", help="the annotation file's, a part of keys (default val)")
    parser.add_argument("--count", type=int, required=True, help="objects (ladder: a case per level; shapes: two each)")
    parser.add_argument("--size", type=int, metavar="PX", help="side, of hull the longer one (default 512; shapes 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw and of the noise (default 0)")
    parser.add_argument("--plugins", default="", help="packages that register further protocols: acme.lists,...")
    parser.add_argument("--out", required=True, metavar="FILE", help="the list; never overwritten")
    parser.add_argument("options", nargs="*", metavar="key=value",
                        help="the protocol's own: text=label|caption, min_area, max_area; hull: level")
    args = parser.parse_intermixed_args()
    try:
        from sb.config import import_plugins, key_values
        from sb.evaluate.protocols import make_list

        import_plugins(name for name in args.plugins.split(",") if name)
        made = make_list(
            args.out, {"name": args.protocol, **key_values(args.options)}, args.count, data=args.data,
            annotations=args.annotations, split=args.split, seed=args.seed, size_px=args.size,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(made.cases)} cases, digest {made.digest[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
