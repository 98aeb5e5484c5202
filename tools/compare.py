"""Compare evaluations of the same requests: the paired difference of every metric and its 95 % interval."""

import argparse
import sys

EXAMPLE = """examples:
  python tools/evaluate.py runs/a --requests 1024 --out results/a
  python tools/evaluate.py runs/b --requests 1024 --oracle results/a/oracle.safetensors --out results/b
  python tools/compare.py results/a results/b
  python tools/compare.py --a results/a-0 results/a-1 --b results/b-0 results/b-1 --markdown
  python tools/compare.py --grid full=results/a-0,results/a-1 other=results/b-0 --metrics text_outline,text_box
  python tools/compare.py --sheet painted.png --grid full=results/a other=results/b --count 8 --data shards/coco/val"""


def main() -> int:
    """Print the table; 2 where the folders cannot be compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", metavar="DIR", help="the --out folders of two evaluations, A and B")
    for side in ("a", "b"):
        parser.add_argument(f"--{side}", nargs="+", default=[], metavar="DIR", help="instead: one or more of this side")
    parser.add_argument("--grid", nargs="+", metavar="NAME=DIRS", help="instead: systems against the first, Markdown")
    parser.add_argument("--metrics", metavar="NAME,NAME", help="these metrics alone, in this order")
    parser.add_argument("--sheet", metavar="FILE", help="with --grid: a PNG of first runs' results, no table")
    parser.add_argument("--count", type=int, default=8, help="requests on the sheet, a list's first (default 8)")
    parser.add_argument("--data", nargs="+", default=[], metavar="SHARDS", help="for the sheet: the list's pictures")
    parser.add_argument("--markdown", action="store_true", help="two sides as a Markdown table")
    args = parser.parse_args()
    try:
        metrics = args.metrics.split(",") if args.metrics else []
        from sb.evaluate.compare import compare, grid, parse_systems, table

        if [len(args.folders) == 2, bool(args.a and args.b), bool(args.grid)].count(True) != 1:
            raise ValueError("give two folders, or --a and --b with folders, or --grid")
        if args.sheet:
            from sb.evaluate.sheet import sheet
            from sb.pictures import save_png

            if not args.grid:
                raise ValueError("--sheet needs --grid NAME=DIR")
            first = {name: folders[0] for name, folders in parse_systems(args.grid).items()}
            save_png(sheet(first, args.count, args.data), args.sheet)
        elif args.grid:
            print(grid(parse_systems(args.grid), metrics))
        else:
            a, b = (args.a, args.b) if args.a else args.folders
            print(table(compare(a, b, metrics), args.markdown))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
