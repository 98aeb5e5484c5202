"""Run files: YAML with ``base:`` parents, ``name:`` sections, dotted overrides and interpolation.

This module reads and merges; what a section means is decided where it is built (``assemble``).
"""

import difflib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def load(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The run file with its parents merged, ``key=value`` overrides applied and interpolation resolved.

    A later parent wins over an earlier one, the file over its parents, an override over all. A section whose
    ``name`` changes replaces the inherited one. An override may only set a key that exists; ``+key=value``
    adds one. Raises ValueError that names the file or key and the nearest right one.
    """
    config = _with_parents(Path(path), ())
    for override in overrides:
        _apply(config, override)
    import_plugins(config.get("plugins") or ())
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    return config


def import_plugins(plugins: Iterable[str]) -> None:
    """Import a team's own packages, so that their registered names exist; the working folder counts as a place."""
    for plugin in plugins:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            if error.name and plugin.startswith(error.name):
                raise ValueError(f"plugins: no module '{plugin}'; is it installed or on PYTHONPATH?") from None
            raise


def plain(config: Any) -> Any:
    """The config as ordinary dicts, lists and scalars."""
    return OmegaConf.to_container(config, resolve=True) if isinstance(config, (DictConfig, ListConfig)) else config


def save(config: Any, path: str | Path) -> None:
    """Write the config as YAML, whole or not at all."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.create(config), resolve=True).encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file beside its place and rename it there, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def check_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for the first key that is not known, naming the nearest."""
    known = list(known)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else "there are: " + ", ".join(known)
            raise ValueError(f"{where} has no key '{key}'; {hint}")


def _with_parents(path: Path, children: tuple[Path, ...]) -> DictConfig:
    path = path.resolve()
    if path in children:
        raise ValueError(f"base: {path} inherits from itself")
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(str(path), beside, n=1)
        raise ValueError(f"no run file {path}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        own = OmegaConf.load(path)
    except Exception as error:  # yaml's own errors carry line and column
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(own, DictConfig):
        raise ValueError(f"{path} must hold a mapping of sections")
    parents = own.pop("base", None) or []
    merged = OmegaConf.create({})
    for parent in [parents] if isinstance(parents, str) else parents:
        place = path.parent / parent
        merged = _merge(merged, _with_parents(place if place.is_file() else CONFIGS / parent, (*children, path)))
    return _merge(merged, own)


def _merge(base: DictConfig, child: DictConfig) -> DictConfig:
    old, new = OmegaConf.to_container(base), OmegaConf.to_container(child)
    assert isinstance(old, dict) and isinstance(new, dict)
    return OmegaConf.create({**old, **{key: _merge_section(old.get(key), value) for key, value in new.items()}})


def _merge_section(old: Any, new: Any) -> Any:
    """Mappings merge key by key, unless the child names another entry; everything else is replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)) or old.get("name") != new.get("name", old.get("name")):
        return new
    return {**old, **{key: _merge_section(old.get(key), value) for key, value in new.items()}}


def _apply(config: DictConfig, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"override '{override}' must read key=value")
    new = key.startswith("+")
    key = key.lstrip("+")
    if not new:
        node: Any = config
        for depth, part in enumerate(key.split(".")):
            known = [str(k) for k in node] if isinstance(node, DictConfig) else []
            if isinstance(node, ListConfig):
                known = [str(i) for i in range(len(node))]
            if part not in known:
                where = ".".join(key.split(".")[:depth]) or "the run file"
                close = difflib.get_close_matches(part, known, n=1, cutoff=0.5)
                hint = f"did you mean '{close[0]}'?" if close else f"it has: {', '.join(known) or 'no keys'}"
                raise ValueError(f"override '{override}': {where} has no '{part}'; {hint} (+key=value adds one)")
            node = node._get_node(int(part) if isinstance(node, ListConfig) else part)
    try:
        config.merge_with_dotlist([f"{key}={value}"])
    except OmegaConfBaseException as error:
        raise ValueError(f"override '{override}': {str(error).splitlines()[0]}") from None
