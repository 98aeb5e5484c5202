"""Print a run file as it will be used: parents merged, overrides applied, and what every name resolves to."""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

MANY = {"ladder.levels": "degradation", "data.tasks": "task", "callbacks.*": "callback"}  # sections that hold several
EXAMPLE = """example:
  python tools/explain_config.py configs/quickstart.yaml inpaint.steps=20 'trainer.images=1000'
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_file", metavar="RUN.yaml", help="the run file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides; +key=value adds a key")
    args = parser.parse_args()

    from omegaconf import OmegaConf

    from sb import config, registry

    try:
        merged = config.plain(config.load(args.run_file, args.overrides))
        from sb import assemble  # after the cheap checks: it brings torch

        lines = [
            line
            for section, kind in {**assemble.SECTIONS, **MANY}.items()
            for place, spec in specs(merged, section.split("."))
            for line in explain(place, kind, spec["name"], registry.lookup(kind, spec["name"]))
        ]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(OmegaConf.to_yaml(OmegaConf.create(merged)))
    print("# what the names resolve to")
    print("\n".join(lines))
    return 0


def specs(node: Any, path: list[str], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each named section under a dotted path; ``*`` and the items of a list stand for all of them."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from specs(item, path, f"{place}.{index}")
    elif isinstance(node, dict) and path:
        for key in node if path[0] == "*" else [path[0]]:
            yield from specs(node.get(key), path[1:], f"{place}.{key}".lstrip("."))
    elif isinstance(node, dict) and node.get("name"):
        yield place, node


def explain(place: str, kind: str, name: str, entry: Callable[..., Any]) -> list[str]:
    """The lines about one name: where it comes from, what it takes, what it is."""
    about = (inspect.getdoc(entry) or "no description").splitlines()[0]
    where = f"{entry.__module__}.{entry.__qualname__}"
    return [f"{place}: {kind} '{name}'", f"    {where}{inspect.signature(entry)}", f"    {about}"]


if __name__ == "__main__":
    sys.exit(main())
