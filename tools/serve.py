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
    parser.add_argument("--preview", action="append", default=[], dest="previews", metavar="[ID=]VAE",
                        help="a quick autoencoder of a model's latents, such as TAESD, for sharper previews")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="(default 7860)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32",
                        help="bf16 is quicker; fp32 (default) paints a request alike, alone and in a batch with others")
    parser.add_argument("--token-file", type=Path, help="a file whose first line clients must know")
    parser.add_argument("--no-provenance", action="store_true", help="write no note of origin into the pictures")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", dest="limits",
                        help="max_pixels, max_side, max_bytes, steps, variations, queue, batch, seconds, ...")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", dest="hosts",
                        help="a name that browsers call this server by, such as a proxy's; others are refused")
    args = parser.parse_args()
    try:
        serve(args)
    except (ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def serve(args: argparse.Namespace) -> None:
    try:
        from sb.app.api import create_app
        from sb.app.guard import LOCAL
        from sb.app.serving import Server, listen
    except ImportError as error:
        raise ValueError(f"the app needs {error.name}: pip install -e '.[app]'") from None
    from sb.inpaint import Inpainter

    limits, token = limits_of(args.limits), None
    if args.token_file:
        token = args.token_file.read_text().split("\n")[0].strip()
        if not token.isascii() or not token:
            raise ValueError(f"--token-file {args.token_file}: its first line must be the token, in plain letters")
    places = named(args.models)
    quick = previews_of(args.previews, list(places))
    bound, address = listen(args.host, args.port)
    models = {
        name: Inpainter.load(path, args.device, args.dtype, preview=quick.get(name)) for name, path in places.items()
    }
    for name, painter in models.items():
        if painter.options.steps > limits.steps:
            raise ValueError(f"--limit steps={limits.steps}: model '{name}' takes {painter.options.steps} by itself")
    hosts = {*LOCAL, *args.hosts} if args.host in LOCAL or args.hosts else None
    server = Server(create_app(models, limits, token, not args.no_provenance, hosts))
    if args.host not in LOCAL and token is None:
        print("everybody who can reach this machine can paint: --token-file keeps strangers out", file=sys.stderr)
    print(f"{', '.join(models)}: {address}", flush=True)
    server.run([bound])


def limits_of(texts: list[str]) -> Any:
    from sb.app.limits import Limits

    kinds = {field.name: field.type for field in fields(Limits)}
    chosen: dict[str, Any] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in kinds:
            raise ValueError(f"--limit {text}: there is no limit of this name; there are {', '.join(kinds)}")
        try:
            chosen[name] = float(number) if kinds[name] in ("float", float) else int(number)
        except ValueError:
            raise ValueError(f"--limit {text}: '{number}' is no number") from None
    return Limits(**chosen)


def previews_of(texts: list[str], models: list[str]) -> dict[str, str]:
    """The autoencoders' paths by model: ``ID=path``, or a path alone where there is one model."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, path = text.rpartition("=")
        name = name or models[0] if len(models) == 1 else name
        if name not in models:
            raise ValueError(f"--preview {text}: say for which model, ID=path; there are {', '.join(models)}")
        found[name] = path
    return found


def named(texts: list[str]) -> dict[str, str]:
    """The models' paths by id: ``ID=path``, or a path whose last part is the id."""
    models: dict[str, str] = {}
    for text in texts:
        name, _, path = ("", "", text) if "=" not in text or Path(text).exists() else text.partition("=")
        name = name or Path(path).resolve().name
        if name in models:
            raise ValueError(f"--model {text}: two models are called '{name}'; give one another name, ID={path}")
        models[name] = path
    return models


if __name__ == "__main__":
    sys.exit(main())
