"""Compare two evaluations of the same requests: the paired difference of every metric and its 95 % interval."""

import argparse
import sys

EXAMPLE = """example:
  python tools/evaluate.py runs/a --requests 1024 --out results/a
  python tools/evaluate.py runs/b --requests 1024 --oracle results/a/oracle.safetensors --out results/b
  python tools/compare.py results/a results/b"""


def main() -> int:
    """Print the table; 2 where the folders cannot be compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="DIR_A", help="the --out folder of an evaluation")
    parser.add_argument("b", metavar="DIR_B", help="the other one; differences are B - A")
    args = parser.parse_args()
    try:
        from sb.evaluate.compare import compare, table

        print(table(compare(args.a, args.b)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
