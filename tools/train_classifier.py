"""Train a small classifier on composites, for evaluations that ask whether the object named in the text was painted."""

import argparse
import sys

EXAMPLE = """example:
  python tools/train_classifier.py shards/composites/train shards/composites/val --out fruits.safetensors
The classes are the labels of the training shards, and "none". What it reads rightly of unseen cut-outs on unseen photos
is printed and kept in the file. The shards are those of tools/build_shards.py --source composites."""


def main() -> int:
    """Train, measure and write; 2 for whatever the user can put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", metavar="TRAIN", help="shards of composites to learn from")
    parser.add_argument("val", metavar="VAL", help="shards of composites to measure on, of another split")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="the classifier's file")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of 64 pictures (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default 0)")
    args = parser.parse_args()
    try:
        from sb.evaluate.classifier import train_classifier

        classifier = train_classifier(args.train, args.val, seed=args.seed, steps=args.steps)
        classifier.save(args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, share in classifier.accuracy.items():
        print(f"{name:20} {share:.3f}" if name != "n" else f"{name:20} {share:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
