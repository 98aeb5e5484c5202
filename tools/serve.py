"""Serve models: a page to paint in, and a REST interface beside it."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  python tools/serve.py --model runs/quickstart
  python tools/serve.py --model shapes=runs/shapes --model photos=runs/coco --port 8000
then open http://127.0.0.1:7860; /docs lists the interface. Only this machine can reach it unless --host says otherwise;
with --token-file clients must send the file's first line as a bearer token"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", required=True, dest="models", metavar="[ID=]MODEL",
                        help="a run or model folder, or a checkpoint; may be given several times")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="(default 7860)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--token-file", type=Path, help="a file whose first line clients must know")
    parser.add_argument("--no-provenance", action="store_true", help="write no note of origin into the pictures")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", dest="limits",
                        help="max_pixels, max_side, max_bytes, steps, variations, queue, batch, seconds, ...")
    args = parser.parse_args()
    try:
        serve(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def serve(args: argparse.Namespace) -> None:
    try:
        import uvicorn

        from sb.app.api import create_app
    except ImportError as error:
        raise ValueError(f"the app needs {error.name}: pip install -e '.[app]'") from None
    from sb.app.limits import Limits
    from sb.inpaint import Inpainter

    kinds = {field.name: field.type for field in fields(Limits)}
    chosen: dict[str, Any] = {}
    for text in args.limits:
        name, _, number = text.partition("=")
        if name not in kinds:
            raise ValueError(f"--limit {text}: there is no limit of this name; there are {', '.join(kinds)}")
        try:
            chosen[name] = float(number) if kinds[name] in ("float", float) else int(number)
        except ValueError:
            raise ValueError(f"--limit {text}: '{number}' is no number") from None
    token = args.token_file.read_text().split("\n")[0].strip() if args.token_file else None
    if token == "":
        raise ValueError(f"--token-file {args.token_file}: its first line is empty")
    models = {}
    for text in args.models:
        name, _, path = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        name = name or Path(path).resolve().name
        if name in models:
            raise ValueError(f"--model {text}: two models are called '{name}'; give one another name, ID={path}")
        models[name] = Inpainter.load(path, args.device)
    app = create_app(models, Limits(**chosen), token, not args.no_provenance)
    print(f"{', '.join(models)}: http://{args.host}:{args.port}", flush=True)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    sys.exit(main())
