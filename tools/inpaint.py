"""Paint what TEXT says, into the mask or box and nothing anywhere else: one request, or a file of many."""

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  python tools/inpaint.py --model runs/quickstart --image scene.png --mask mask.png --text "striped blue star"
  python tools/inpaint.py --model runs/quickstart --image scene.png --box 9,12,30,30 --text "red heart" --precision box
  python tools/inpaint.py --model runs/quickstart --requests requests.jsonl --out painted
writes result.png, predicted_mask.png, side_by_side.png and request.json into --out (of several variations result_1.png,
...); files that exist are never overwritten (the new ones are numbered) unless --overwrite is given.
A line of requests.jsonl is {"image": "a.jpg", "mask": "a.png", "text": "a red kite"}: the flags' names, and the keys of
a run file's inpaint:, with paths relative to the file. Each gets a folder ("id", or a name made for it), all of them
report.html and results.jsonl; a second call keeps what is painted and paints the rest"""
ASKED = ("image", "mask", "box", "text", "precision", "negative", "task", "seed", "variations")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a run or model folder, or a checkpoint (README)")
    parser.add_argument("--requests", type=Path, metavar="FILE.jsonl", help="many requests, one JSON object a line")
    parser.add_argument("--image", help="the picture to paint into")
    parser.add_argument("--mask", help="a picture of the image's size; white = paint here")
    parser.add_argument("--box", help="x,y,w,h in pixels, in the place of a mask")
    parser.add_argument("--text", help="the object to paint; '' paints by shape alone")
    parser.add_argument("--precision", help="1 or outline: follow the mask (default); 0 or box: be in it")
    parser.add_argument("--negative", help="what not to paint")
    parser.add_argument("--task", help="for a model that is told the task: its name (default: the first)")
    parser.add_argument("--seed", type=int, help="(default 0)")
    parser.add_argument("--variations", type=int, help="so many results, with the seeds seed, seed + 1, ...")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--batch", type=int, default=8, help="pictures painted together (default 8)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="to compute in (default: as the model was trained)")
    parser.add_argument("--out", type=Path, default=Path("painted"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    given = {name: value for name in ASKED if (value := getattr(args, name)) is not None}
    if args.requests and (given or args.overwrite):
        parser.error(f"--{next(iter(given), 'overwrite')} does not go with --requests, whose lines say what to paint")
    if args.batch < 1:
        parser.error(f"--batch must be 1 or more, not {args.batch}")
    if not args.requests and "image" not in given:
        parser.error("needs --image, or --requests with a file of them")
    try:
        return paint_file(args) if args.requests else paint(args, given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def options(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key in ("steps", "guidance") if (value := getattr(args, key)) is not None}


def paint_file(args: argparse.Namespace) -> int:
    from sb import bulk
    from sb.asked import REPORT
    from sb.inpaint import Inpainter

    if not args.requests.is_file():  # before a model is read
        raise ValueError(f"no file of requests at {args.requests}")
    painter = Inpainter.load(args.model, args.device, args.dtype)
    counts = bulk.paint_file(painter, args.requests, args.out, args.model, options(args), args.batch)
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())}: {args.out / REPORT}")
    return 1 if counts["failed"] else 0


def paint(args: argparse.Namespace, given: dict[str, Any]) -> int:
    from sb import bulk, pictures
    from sb.asked import read_order
    from sb.inpaint import Inpainter

    order = read_order(given, options(args))
    source, image, mask = order.open()
    painter = Inpainter.load(args.model, args.device, args.dtype)
    requests = order.requests(image, mask, painter)
    results = []
    for start in range(0, len(requests), args.batch):
        results += painter.paint(requests[start: start + args.batch], **order.options)
    number = pictures.free_number(args.out, bulk.names(len(requests)), args.overwrite)
    record = order.record(painter, args.model)
    about = bulk.write(args.out, source, requests, results, record, number)
    if about["loss"]:
        print(f"note: {args.image}: {about['loss']}; outside the mask the result equals it as read so")
    if "diversity" in about:
        print(f"diversity: results are {about['diversity']:g} of 255 levels apart inside the mask (mean RMS of pairs)")
    print(f"painted {args.out / about['files'][0]} in {sum(results[-1].seconds.values()):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
