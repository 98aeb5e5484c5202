"""Turn a checkpoint into another format, losing nothing."""

import argparse
import sys

EXAMPLE = """examples:
  python tools/convert_weights.py v1-5-pruned.ckpt models/sd15 --to sb
  python tools/convert_weights.py runs/quickstart exported --to diffusers
  python tools/convert_weights.py runs/quickstart exported.safetensors --to single-file
  python tools/convert_weights.py runs/shapes/checkpoints/images-000100000.ckpt earlier --to sb
  python tools/convert_weights.py v2-1_768.safetensors models/sd21 --to diffusers --prediction v

SRC: a run or model folder of ours, a run's checkpoint, a diffusers folder, a Stable Diffusion 1 or 2 file
(.safetensors, .ckpt), a VAE, or a folder with a tiny autoencoder's encoder and decoder. What no network needs is named,
and what the target has no place for."""


def main() -> int:
    """Convert and print the report; 2 for whatever the user can put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SRC", help="the checkpoint")
    parser.add_argument("target", metavar="DST", help="folder or .safetensors file to write; must not exist")
    parser.add_argument("--to", required=True, help="sb, diffusers, single-file or onnx")
    parser.add_argument("--weights", default="ema", help="ema or raw, where the source holds both (default ema)")
    parser.add_argument("--prediction", help="eps or v: what an SD2 single file predicts")
    args = parser.parse_args()
    try:
        from sb.convert import convert

        lines = convert(args.source, args.target, args.to, args.weights, args.prediction)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
