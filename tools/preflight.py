"""Look whether a run can start, go on and end here: data, weights, disk, memory, one training step, the ranks."""

import argparse
import os
import sys

EPILOG = """example:
  python tools/preflight.py configs/quickstart.yaml
  python tools/preflight.py configs/smartbrush_sd1.yaml configs/trainer/zero2.yaml trainer.devices=8
  torchrun --nproc-per-node 8 tools/preflight.py configs/smartbrush_sd1.yaml trainer.devices=8
exit code: 0 go, 1 no go, 2 the run file cannot be read
nothing is written to run_dir; tars of others get an index beside them, remote shards that are read fill cache_dir"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_file", metavar="RUN.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for tools/train.py")
    flags = parser.parse_args()
    try:
        from sb import preflight

        lines = preflight.preflight(flags.run_file, flags.overrides)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    go = preflight.go(lines)
    if int(os.environ.get("RANK", 0)) == 0:
        print(preflight.table(lines))
        print("go" if go else "no go")
    return 0 if go else 1


if __name__ == "__main__":
    sys.exit(main())
