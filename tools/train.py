"""Train what a run file describes: a VAE, or SmartBrush on top of one."""

import argparse
import sys

EXAMPLE = """example:
  python tools/train.py configs/quickstart_vae.yaml
  python tools/train.py configs/shapes.yaml trainer.images=500000 run_dir=runs/shapes_long
  python tools/train.py configs/shapes.yaml resume=auto        continue runs/shapes, or start it
  python tools/train.py configs/smartbrush_sd1.yaml configs/trainer/zero2.yaml trainer.devices=8
everything lands in run_dir: config.yaml, versions.json, tensorboard/, checkpoints/, model/"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_file", metavar="RUN.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="keys of the run file; +key=value adds one; FILE.yaml is merged over it")
    args = parser.parse_args()
    try:
        from sb import config

        loaded = config.load(args.run_file, args.overrides)
        from sb.assemble import assemble

        run = assemble(loaded)
        run.fit()
        if run.trainer.is_global_zero:
            print(f"done: {run.run_dir}/model, after {run.system.images_seen:,} images; "
                  f"curves: tensorboard --logdir {run.run_dir}")
    except (ValueError, OSError) as error:
        return _fail(error)
    except Exception as error:
        from sb.faults import explain

        line = explain(error)
        if line is None:
            raise
        return _fail(line)
    return 0


def _fail(why: object) -> int:
    """Say why; one rank among several ends here: the farewell of torch.distributed may wait for ranks that are gone."""
    from torch import distributed

    print(f"error: {why}", file=sys.stderr)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        from sb.callbacks.preempt import end_at_once

        sys.stdout.flush()
        sys.stderr.flush()
        end_at_once(2)
    return 2


if __name__ == "__main__":
    sys.exit(main())
