"""Encode a run's images, and if asked its texts, once, so that training reads latents instead of pictures."""

import argparse
import sys

EXAMPLE = """\
examples:
  python tools/cache_latents.py configs/quickstart_cached.yaml --text --out runs/quickstart/latents \\
      data.train.0.shards=runs/quickstart/shards/train
  python tools/cache_latents.py configs/coco.yaml --split both --out shards/coco_latents data.crop.variants=4

The run file says which shards, which VAE, and with data.crop.variants how many fixed frames each image gets. A run
that reads the result (data.train=[{shards: OUT}]) has the same VAE, text tower (with --text), image_size, data.crop,
data.flip, data.min_area, data.max_area and trainer.precision, and a conditioning that encodes nothing but the picture:
conditioning.encode=full. With --split both the sets are OUT/train and OUT/val. A build that was stopped goes on when
the same command is run again.
"""


def main() -> int:
    """Build the cache; 0 done, 2 an error on one line, 130 stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_file", metavar="RUN.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run file; +key=value adds one")
    parser.add_argument("--out", required=True, help="folder for the shards")
    parser.add_argument("--split", choices=["train", "val", "both"], default="train",
                        help="of data.train, data.val, or both in folders of that name (default train)")
    parser.add_argument("--text", action="store_true", help="also the text tower's features of every text")
    parser.add_argument("--batch", type=int, default=16, help="images encoded at once (default 16)")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that read and crop (default 1)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overwrite", action="store_true", help="replace a build of something else")
    args = parser.parse_intermixed_args()

    import logging

    from sb import config

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        loaded = config.load(args.run_file, args.overrides)
        from sb.cache import cache_latents

        made = cache_latents(
            loaded, args.out, split=args.split, with_text=args.text, workers=args.num_workers, batch=args.batch,
            device=args.device, overwrite=args.overwrite,
        )
        for folder, manifest in made.items():
            variants = manifest["latents"]["frames"]["crop"]["variants"]
            size = sum(shard["bytes"] for shard in manifest["shards"]) / 2**20
            print(f"{folder}: {manifest['images']:,} images x {variants} frames, {size:,.1f} MiB")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from sb.faults import explain

        line = explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on, finished shards are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
