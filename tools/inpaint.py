"""Paint one request: what TEXT says, into the mask or box, and nothing anywhere else."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

EXAMPLE = """example:
  python tools/inpaint.py --model runs/quickstart --image scene.png --mask mask.png --text "striped blue star"
  python tools/inpaint.py --model runs/quickstart --image scene.png --box 10,12,30,30 --text "red heart" --precision box
writes result.png, predicted_mask.png, side_by_side.png and request.json into --out; files that exist are never
overwritten (the new ones are numbered) unless --overwrite is given"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a run or model folder, or a checkpoint (README)")
    parser.add_argument("--image", required=True, type=Path)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=Path, help="a picture of the image's size; white = paint here")
    where.add_argument("--box", help="x,y,w,h in pixels")
    parser.add_argument("--text", required=True, help="the object to paint")
    parser.add_argument("--precision", default="outline", help="1 or outline: follow the mask; 0 or box: be in it")
    parser.add_argument("--negative", default="", help="what not to paint")
    parser.add_argument("--task", default="", help="for a model that is told the task: its name (default: the first)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("painted"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    try:
        paint(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def paint(args: argparse.Namespace) -> None:
    from sb import pictures
    from sb.inpaint import Inpainter
    from sb.masks import level_of
    from sb.types import Request

    source = pictures.open_image(args.image)
    image = pictures.image_tensor(source)
    if args.box:
        mask = pictures.box_mask(pictures.parse_box(args.box), *image.shape[1:])
    else:
        mask = pictures.mask_tensor(args.mask)
    painter = Inpainter.load(args.model, args.device)
    level = level_of(args.precision, painter.ladder.num_levels)
    request = Request(image, mask, args.text, level, args.seed, args.negative, args.task)
    chosen = {"steps": args.steps, "guidance": args.guidance}
    options = {key: value for key, value in chosen.items() if value is not None}
    result = painter.paint([request], **options)[0]

    names = ("result.png", "predicted_mask.png", "side_by_side.png", "request.json")
    number = pictures.free_number(args.out, names, args.overwrite)
    files = {"result.png": pictures.like_source(result.image, source)}
    if result.predicted_mask is not None:
        files["predicted_mask.png"] = result.predicted_mask
    files["side_by_side.png"] = pictures.side_by_side(request, result)
    for name, picture in files.items():
        pictures.save_png(picture, args.out / pictures.numbered(name, number))
    about = {
        "image": str(args.image), "mask": str(args.mask or args.box), "text": args.text, "negative": args.negative,
        "task": args.task, "precision": args.precision, "level": level, "seed": args.seed, "model": str(args.model),
        **asdict(replace(painter.options, **options)), "seconds": result.seconds,
    }
    from sb.config import write_whole

    write_whole(args.out / pictures.numbered("request.json", number), json.dumps(about, indent=1).encode())
    print(f"painted {args.out / pictures.numbered('result.png', number)} in {sum(result.seconds.values()):.1f} s")


if __name__ == "__main__":
    sys.exit(main())
