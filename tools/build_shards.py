"""Write a data set as WebDataset shards, with masks, labels, captions, indexes and a manifest."""

import argparse
import sys

EXAMPLE = """\
examples:
  python tools/build_shards.py --source coco --out shards/coco \\
      images=coco/train2017 instances=coco/annotations/instances_train2017.json \\
      captions=coco/annotations/captions_train2017.json split=train
  python tools/build_shards.py --source openimages --out shards/oi images=oi/train \\
      classes=class-descriptions-boxable.csv masks=train-annotations-object-segmentation.csv mask_images=oi/masks \\
      boxes=oidv6-train-annotations-bbox.csv
  python tools/build_shards.py --source folder --out shards/mine root=photos licence="CC BY 4.0"
  python tools/build_shards.py --source shapes --out shards/shapes num_images=20000 size_px=64 seed=1
  python tools/build_shards.py --source composites --out shards/composites cutouts=cutouts photos=shards/coco \
      num_images=2000 size_px=128 classes=[apple,lemon]

A build that was stopped goes on when the same command is run again. The folder layout is in sb/data/folder.py.
Then look at it: python tools/check_shards.py shards/coco --sheet sheet.png
"""


def main() -> int:
    """Build the shards; 0 done, 2 an error on one line, 130 stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True,
                        help="coco, openimages, folder, shapes, composites, or a registered name")
    parser.add_argument("--out", required=True, help="folder for the shards")
    parser.add_argument("options", nargs="*", metavar="key=value", help="the source's own options")
    parser.add_argument("--num-workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--images-per-shard", type=int, default=1000, help="items of the source per tar (default 1000)")
    parser.add_argument("--captions", metavar="FILE.jsonl", help="captions of single objects (see tools/caption.py)")
    parser.add_argument("--licences", default="", help="keep only images with one of these, by name or number: 4,5,7,8")
    parser.add_argument("--exclude", action="append", default=[], metavar="SHARDS",
                        help="leave out every image of this shard set (the val set); may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="replace a build of something else")
    parser.add_argument("--plugins", default="", help="packages that register further sources: acme.sources,...")
    args = parser.parse_intermixed_args()

    import logging

    from sb.config import import_plugins, key_values
    from sb.data.write import build_shards

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        import_plugins(name for name in args.plugins.split(",") if name)
        build_shards(
            {"name": args.source, **key_values(args.options)}, args.out,
            images_per_shard=args.images_per_shard, workers=args.num_workers, captions=args.captions,
            licences=[name.strip() for name in args.licences.split(",") if name.strip()],
            exclude=args.exclude, overwrite=args.overwrite,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on, finished shards are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
