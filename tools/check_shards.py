"""Check every sample of a shard set, print what it holds, and draw a sheet of its pictures with their objects."""

import argparse
import sys

EXAMPLE = """\
example:
  python tools/check_shards.py shards/coco --sheet sheet.png

Exit code 0: everything is sound; 1: what is broken has been named; 2: the shards could not be read at all.
"""
NUM_SHOWN = 50


def main() -> int:
    """Check, print and draw; the exit code says what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="a folder of shards, one tar, or a pattern; local or remote")
    parser.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet here")
    parser.add_argument("--sheet-images", type=int, default=24, help="pictures on the sheet (default 24)")
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args()

    from sb.data.sheet import contact_sheet
    from sb.data.verify import check_shards

    try:
        report = check_shards(args.shards, args.num_workers)
        print(report.table())
        for line in report.problems[:NUM_SHOWN]:
            print(f"broken: {line}")
        if len(report.problems) > NUM_SHOWN:
            print(f"broken: and {len(report.problems) - NUM_SHOWN} more")
        if args.sheet:
            num = contact_sheet(args.shards, args.sheet, args.sheet_images)
            print(f"{args.sheet}: {num} pictures")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
