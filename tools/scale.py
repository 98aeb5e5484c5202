"""What a run file needs and reaches on 1 to many GPUs, counted and modelled on paper: markdown tables."""

import argparse
import sys

EPILOG = """example:
  python tools/scale.py configs/smartbrush_sd1.yaml --tflops 87 --bandwidth 25
  python tools/scale.py configs/smartbrush_sd2.yaml --gpus 8 64 --image-size 768 --batch 4 --strategy zero2
parameters, FLOPs, kept activations and bytes are exact counts; images/s is a model (docs/scale.md)"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("run_file", metavar="RUN.yaml")
    whole.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run file")
    whole.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512], metavar="N", help="(default 1 8 64 512)")
    whole.add_argument("--image-size", type=int, nargs="+", default=[256, 512, 768], metavar="PX",
                       help="(default 256 512 768)")
    whole.add_argument("--batch", type=int, default=16, help="images of one GPU in a micro-batch, at most (default 16)")
    whole.add_argument("--recompute", action="store_true", help="memory as with trainer.recompute=true")
    whole.add_argument("--global-batch", type=int, default=2048, help="images of a step, all GPUs (default 2048)")
    whole.add_argument("--strategy", default="ddp", help="for images/s and storage (default ddp)")
    whole.add_argument("--tflops", type=float, default=87.0,
                       help="TFLOP/s that one GPU reaches by itself (default 87: an A100, from published images/s)")
    whole.add_argument("--bandwidth", type=float, default=25.0, help="GB/s out of a node, all its cards (default 25)")
    whole.add_argument("--node-bandwidth", type=float, default=200.0, help="GB/s from GPU to GPU (default 200)")
    whole.add_argument("--disk", type=float, default=2.0, help="GB/s of writing checkpoints (default 2)")
    whole.add_argument("--image-kb", type=float, default=150.0, help="of a stored picture (default 150)")
    whole.add_argument("--images", type=int, default=10_000_000, help="of the data set (default 10,000,000)")
    whole.add_argument("--shard-images", type=int, default=1000, help="images of a shard (default 1000)")
    return whole


def main() -> int:
    flags = parser().parse_intermixed_args()
    try:
        from sb import config, scale

        cfg = config.plain(config.load(flags.run_file, flags.overrides))
        cluster = scale.Cluster(
            flags.tflops * 1e12, flags.bandwidth * 1e9, flags.node_bandwidth * 1e9, flags.disk * 1e9
        )
        counts = scale.count(cfg, flags.image_size)
        averages = len(((cfg["callbacks"] or {}).get("ema") or {}).get("averages", ()))
        about = {"strategy": flags.strategy, "batch": flags.batch, "global_batch": flags.global_batch}
        image, block = flags.image_kb * 1e3, cfg["data"]["shuffle_shards"]
        tables = {
            "Counted": scale.count_table(counts),
            "Memory": "\n\n".join(
                scale.memory_table(counts, flags.gpus, size, flags.batch, averages, flags.recompute)
                for size in flags.image_size
            ),
            "Network": scale.network_table(counts, flags.gpus, cluster),
            f"Images/s, {flags.strategy}": scale.speed_table(counts, flags.gpus, cluster, **about),
            "Storage": scale.storage_table(counts, flags.gpus, cluster, image_bytes=image, **about),
            "Shards": scale.shard_table(counts, flags.images, flags.shard_images, block, image),
            "Checkpoints": scale.checkpoint_table(counts, cluster, averages),
        }
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for title, lines in tables.items():
        print(f"## {title}\n\n{lines}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
