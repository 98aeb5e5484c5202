"""Run files: YAML with ``base:`` parents, ``name:`` sections, dotted overrides and interpolation.

This module reads and merges; what a section means is decided where it is built (``assemble``).
"""

import difflib
import fcntl
import importlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def load(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The run file with its parents merged, ``key=value`` overrides applied and interpolation resolved.

    A later parent wins over an earlier one, the file over its parents, an override over all. A section whose
    ``name`` changes replaces the inherited one, by an override too (``vae.name=tiny`` leaves only the name). An
    override may only set a key that exists; ``+key=value`` adds one. An override that is a YAML file is merged over
    the run file like a child of it (``trainer/zero2.yaml``; a path, or one in ``configs/``). Raises ValueError that
    names the file or key and the nearest right one.
    """
    merged = _with_parents(Path(path), ())
    files = [override for override in overrides if override.endswith(".yaml") and "=" not in override]
    for file in files:
        place = Path(file) if Path(file).is_file() or not (CONFIGS / file).is_file() else CONFIGS / file
        merged = _merge(merged, _with_parents(place, (Path(path),)))
    tree: Any = OmegaConf.to_container(merged)
    for override in overrides:
        if override not in files:
            _apply(tree, override)
    config = OmegaConf.create(tree)
    import_plugins(config.get("plugins") or ())
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None
    return config


def import_plugins(plugins: str | Iterable[str]) -> None:
    """Import a team's own packages, so that their registered names exist; the working folder counts as a place."""
    for plugin in [plugins] if isinstance(plugins, str) else plugins:
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


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, renamed there at the end, so that a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(aside)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep other processes that lock the same file waiting; the file is made, and stays, empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole(path) as aside:
        aside.write_bytes(content)


def check_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for the first key that is not known, naming the nearest."""
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{where} has no key '{key}'; {nearest(key, known)}")


def difference(there: Any, here: Any, where: str = "") -> str:
    """The first place where two nested settings that are not equal differ, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        key = next(key for key in [*here, *there] if there.get(key) != here.get(key))
        return difference(there.get(key), here.get(key), f"{where}.{key}" if where else key)
    shown = [text if len(text) <= 40 else text[:37] + "..." for text in (json.dumps(there), json.dumps(here))]
    return f"{where} ({shown[0]} there, {shown[1]} now)"


def nearest(name: str, known: Iterable[str]) -> str:
    """The second half of an error about a wrong name: the nearest right one, or what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known) or 'none'}"


def _with_parents(path: Path, children: tuple[Path, ...]) -> DictConfig:
    path = path.resolve()
    if path in children:
        raise ValueError(f"base: {path} inherits from itself")
    if not path.is_file():
        beside = sorted(place.name for place in path.parent.glob("*.yaml"))
        raise ValueError(f"no run file {path}; {nearest(path.name, beside)}")
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


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key in place, by the merge rule: a changed ``name`` replaces the section that it names."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override '{override}' must read key=value")
    adds, parts = key.startswith("+"), key.lstrip("+").split(".")
    trail: list[tuple[Any, Any]] = []  # (holder, key in it) of each part
    node: Any = tree
    for depth, part in enumerate(parts):
        places = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
        known = {str(place): place for place in places}
        if part not in known:
            if not adds or not isinstance(node, dict):
                where = ".".join(parts[:depth]) or "the run file"
                hint = nearest(part, known)
                raise ValueError(f"override '{override}': {where} has no '{part}'; {hint} (+key=value adds one)")
            node[part] = None
        at = known.get(part, part)
        if adds and node[at] is None:
            node[at] = {}
        trail.append((node, at))
        node = node[at]
    value = _parsed(override, text)
    holder, at = trail[-1]
    if at == "name" and len(trail) > 1 and isinstance(node, str) and node != value:
        holder.clear()
    holder[at] = _merge_section(node, value)


def key_values(options: Iterable[str]) -> dict[str, Any]:
    """``key=value`` options as a dictionary, the values read as YAML; ValueError for one that is not of this form
    or comes twice."""
    found = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not key or not equals:
            raise ValueError(f"option '{option}' must read key=value")
        if key in found:
            raise ValueError(f"option '{key}' is given twice; several values are a list: '{key}=[A,B]'")
        found[key] = _parsed(option, text)
    return found


def spec_of(text: str) -> dict[str, Any]:
    """``name`` or ``name: key=value key=value`` as a section, a value with spaces in quotes; ValueError otherwise."""
    name, _, rest = text.partition(":")
    try:
        options = key_values(shlex.split(rest))
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from None
    if not name.strip() or "=" in name or "name" in options:
        raise ValueError(f"'{text}' needs a name in front: 'NAME: key=value'")
    return {"name": name.strip(), **options}


def _parsed(override: str, text: str) -> Any:
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"'{override}' is not valid YAML: {' '.join(str(error).split())}") from None
    assert isinstance(value, dict)
    return value["value"]
