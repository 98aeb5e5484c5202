"""A preference study: make a page that shows pairs of two systems' results, and count the votes it saved."""

import argparse
import sys

EXAMPLE = """example:
  python tools/study.py make --a results/a --b results/b --out study --pairs 100
  open study/index.html, vote, save; give a copy without key.json to other raters
  python tools/study.py count --study study results-ann.json results-bob.json"""


def main() -> int:
    """Make or count; 2 for whatever the user can put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("make", help="write the folder with the page")
    for side in ("a", "b"):
        make.add_argument(f"--{side}", required=True, metavar="DIR", help="an evaluation folder, or one of PNGs")
    make.add_argument("--out", required=True, metavar="DIR", help="the new folder")
    make.add_argument("--pairs", type=int, default=100, help="number of pairs (default 100)")
    make.add_argument("--seed", type=int, default=0, help="of the choice, order and sides (default 0)")
    make.add_argument("--question", help="what is asked of each pair")
    make.add_argument("--list", metavar="FILE", help="the list that plain folders' pictures are numbered by")
    make.add_argument("--data", nargs="+", default=[], metavar="SHARDS", help="the photos of the list")
    count = verbs.add_parser("count", help="win rates of results files")
    count.add_argument("results", nargs="+", metavar="RESULTS.json", help="files that the page saved, one a rater")
    count.add_argument("--study", default="study", metavar="DIR", help="the folder made before (default study)")
    args = parser.parse_args()
    try:
        if args.verb == "count":
            from sb.evaluate.study_count import count_votes, lines_of

            print(lines_of(count_votes(args.study, args.results)))
        else:
            from sb.evaluate.study import QUESTION, make_study

            make_study(
                args.a, args.b, args.out, args.pairs, args.seed, args.question or QUESTION, args.list, args.data
            )
            print(f"open {args.out}/index.html; {args.out}/key.json tells the sides")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
