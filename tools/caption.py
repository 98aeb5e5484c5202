"""Describe every object of a shard set with a captioning model, for build_shards --captions."""

import argparse
import sys

EXAMPLE = """\
examples:
  python tools/caption.py shards/coco --captioner models/blip-base --out captions.jsonl --device cuda
  python tools/caption.py shards/coco --captioner acme.words:describe --out captions.jsonl

The captioner is a folder with a Hugging Face image-to-text model (pip install -e '.[caption]'), or a function that
takes a list of PIL images and returns as many strings. A run that was stopped goes on where it was. Then:
  python tools/build_shards.py --source coco --out shards/coco-captions --captions captions.jsonl ...
"""


def main() -> int:
    """Write the captions; 0 done, 2 an error on one line, 130 stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="a folder of shards, one tar, or a pattern")
    parser.add_argument("--captioner", required=True, help="model folder or module:function")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="file the captions are appended to")
    parser.add_argument("--batch-size", type=int, default=16, help="crops per call (default 16)")
    parser.add_argument("--margin", type=float, default=0.15, help="crop this share of the box wider (default 0.15)")
    parser.add_argument("--min-area", type=float, default=0.005,
                        help="leave out objects under this share of the image (default 0.005)")
    parser.add_argument("--device", default="cpu", help="for a model folder: cpu, cuda, cuda:1 (default cpu)")
    args = parser.parse_args()

    import os

    from sb.data.captions import caption_shards, load_captioner

    sys.path.insert(0, os.getcwd())  # a team's module beside its data
    try:
        captioner = load_captioner(args.captioner, args.device)
        written = caption_shards(
            args.shards, captioner, args.out, batch_size=args.batch_size, margin=args.margin, min_area=args.min_area
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print(f"{args.out}: {written} captions written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
