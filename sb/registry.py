"""Names in run files bound to callables: the one place where configuration meets code.

An entry is anything callable (class or function) registered under a kind and a name. Built-in entries are
imported on first use from the modules in ``HOMES``; everything else arrives through ``plugins:`` in a run file.
A name is never a path to code: a run file or model from elsewhere reaches only what was registered.
"""

import importlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sb.config import check_keys, nearest

HOMES: dict[str, tuple[str, ...]] = {
    "source": ("sb.data.coco", "sb.data.openimages", "sb.data.folder", "sb.data.shapes", "sb.data.composites"),
    "task": ("sb.data.tasks",),
    "degradation": ("sb.masks",),
    "conditioning": ("sb.conditioning",),
    "schedule": ("sb.schedule",),
    "vae": ("sb.models.vae", "sb.models.tiny_vae"),
    "text": ("sb.models.text",),
    "denoiser": ("sb.models.unet",),
    "objective": ("sb.losses", "sb.models.vae_system"),
    "optimizer": ("sb.models.optim",),
    "system": ("sb.models.smartbrush", "sb.models.distilled", "sb.models.vae_system"),
    "sampler": ("sb.samplers",),
    "colour_match": ("sb.colour",),
    "fill": ("sb.fill",),
    "strategy": ("sb.strategies",),
    "adapter": ("sb.evaluate.adapters",),
    "metric": ("sb.evaluate.metrics", "sb.evaluate.frechet_metrics"),
    "feature network": ("sb.evaluate.features",),
    "reader": ("sb.evaluate.readers",),
    "protocol": ("sb.evaluate.protocols",),
    "callback": (
        "sb.callbacks.ema",
        "sb.callbacks.mask_log",
        "sb.callbacks.sample_log",
        "sb.callbacks.speed",
        "sb.callbacks.profile",
        "sb.callbacks.guard",
        "sb.callbacks.save",
        "sb.callbacks.preempt",
        "sb.callbacks.watch",
        "sb.evaluate.shapes_callback",
    ),
}
_TABLE: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in HOMES}
Entry = TypeVar("Entry", bound=Callable[..., Any])


def register(kind: str, name: str) -> Callable[[Entry], Entry]:
    """Decorator that binds ``name`` under ``kind``; raises ValueError where the name is taken by other code."""
    if kind not in _TABLE:
        raise ValueError(f"no kind '{kind}' to register '{name}' under; {nearest(kind, _TABLE)}")

    def bind(entry: Entry) -> Entry:
        if not _where(entry).startswith("sb."):
            names(kind)  # the built-in entries come first, so that a plugin that takes one's name hears of it here
        taken = _TABLE[kind].get(name)
        if taken is not None and _where(taken) != _where(entry):
            raise ValueError(f"{kind} '{name}' is already {_where(taken)}; register {_where(entry)} under another name")
        _TABLE[kind][name] = entry
        return entry

    return bind


def names(kind: str) -> list[str]:
    """Every name registered under ``kind``, built-in ones included."""
    for home in HOMES[kind]:
        importlib.import_module(home)
    return sorted(_TABLE[kind])


def lookup(kind: str, name: str) -> Callable[..., Any]:
    """The entry a name stands for; ValueError with the nearest name where there is none."""
    if name not in _TABLE[kind]:
        known = names(kind)
        if name not in known:
            raise ValueError(f"no {kind} named '{name}'; {nearest(name, known)}")
    return _TABLE[kind][name]


def build(kind: str, spec: Mapping[str, Any], **runtime: Any) -> Any:
    """Call the entry ``spec['name']`` with the other keys of ``spec`` plus objects that only code can give.

    Raises ValueError for an unknown name and for whatever ``call`` refuses.
    """
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ValueError(f"a {kind} section needs a 'name:', not {spec!r}; {nearest('', names(kind))}")
    name = str(spec["name"])
    return call(f"{kind} '{name}'", lookup(kind, name), {k: v for k, v in spec.items() if k != "name"}, **runtime)


def takes(kind: str, name: str, key: str) -> bool:
    """Whether the entry has a parameter of that name."""
    return key in _parameters(lookup(kind, name))


def build_fitted(kind: str, spec: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    """Like ``build``, handing over those of the offered objects that the entry has a parameter for."""
    named = isinstance(spec, Mapping) and "name" in spec
    takes = _parameters(lookup(kind, str(spec["name"]))) if named else {}
    return build(kind, spec, **{name: value for name, value in offered.items() if name in takes})


def call(where: str, entry: Callable[..., Any], given: Mapping[str, Any] | None, **runtime: Any) -> Any:
    """Call a class, dataclass or function with the keys of a section of a run file, checked against its signature.

    where: what the section is called in errors. given: the section; None is an empty one. runtime: arguments that
    only code can give; the section may not set them. Raises ValueError, on one line, for a section that is no
    mapping, an unknown key (with the nearest), a missing key, or a value of the wrong basic type (bool, int, float,
    str, null, a Literal, a list or a mapping; an int passes for a float). Errors of the entry itself pass through.
    """
    if not (given is None or isinstance(given, Mapping)):
        raise ValueError(f"{where} must be a mapping of keys, not {given!r}")
    given = {str(key): value for key, value in (given or {}).items()}
    parameters = _parameters(entry).values()
    keys = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for key in given:
        if key in runtime:
            raise ValueError(f"{where}: '{key}' follows from the rest of the run file; leave it out")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_keys(where, given, [key for key in keys if key not in runtime])
    missing = [k for k, p in keys.items() if p.default is p.empty and k not in given and k not in runtime]
    if missing:
        raise ValueError(f"{where} needs {', '.join(repr(key) for key in missing)}; it takes {_one_line(entry)}")
    hints = _hints(entry)
    for key, value in given.items():
        _check_type(f"{where}: {key}", value, hints.get(key))
    return entry(**given, **runtime)


def filled(kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A section with what it leaves to its entry's defaults written out."""
    parameters = _parameters(lookup(kind, spec["name"])).values()
    return {**{p.name: p.default for p in parameters if p.default is not p.empty}, **spec}


def settings(kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a section says of a frozen network beside its tensors and what comes after it, as JSON holds it."""
    shown = ("weights", "pretrained", "seed", "scale", "shift")
    return dict(json.loads(json.dumps({k: v for k, v in filled(kind, spec).items() if k not in shown})))


def _parameters(entry: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What an entry takes; a class that hands ``**rest`` on to its parent takes what that takes too."""
    found: dict[str, inspect.Parameter] = {}
    for make in _makers(entry):
        own = inspect.signature(make).parameters
        found = {**{name: p for name, p in own.items() if name != "self"}, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            return {name: p for name, p in found.items() if p.kind is not p.VAR_KEYWORD}
    return found


def _makers(entry: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The entry itself, and for a class what its parents are made with."""
    if not inspect.isclass(entry):
        return [entry]
    return [entry, *(vars(base)["__init__"] for base in entry.__mro__[1:-1] if "__init__" in vars(base))]


def _hints(entry: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        for make in _makers(entry):
            there = make.__init__ if inspect.isclass(make) else make  # type: ignore[misc]
            found = {**typing.get_type_hints(there), **found}
        return found
    except (NameError, TypeError):  # written for type checkers only, or no function at all
        return {}


def _check_type(where: str, value: Any, annotation: Any) -> None:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    allowed = [_Basic.of(a) for a in (typing.get_args(annotation) if union else (annotation,))]
    if all(allowed) and not any(basic.fits(value) for basic in allowed if basic):
        raise ValueError(f"{where} must be {' or '.join(basic.name for basic in allowed if basic)}, not {value!r}")


class _Basic(typing.NamedTuple):
    """A type that YAML can write: what it is called, and whether a value has it."""

    name: str
    fits: Callable[[Any], bool]

    @classmethod
    def of(cls, annotation: Any) -> "_Basic | None":
        """None for a type that only the entry itself can judge."""
        base = typing.get_origin(annotation) or annotation
        if annotation is type(None):
            return cls("null", lambda value: value is None)
        if base is typing.Literal:
            choices = typing.get_args(annotation)
            return cls(" or ".join(map(repr, choices)), lambda value: value in choices)
        if base is float:
            return cls("float", lambda value: type(value) in (int, float))
        if base in (bool, int, str):
            return cls(base.__name__, lambda value: type(value) is base)
        if base in (Sequence, list, tuple):
            return cls("a list", lambda value: isinstance(value, Sequence) and not isinstance(value, str))
        if base in (Mapping, dict):
            return cls("a mapping", lambda value: isinstance(value, Mapping))
        return None


def _one_line(entry: Callable[..., Any]) -> str:
    return " ".join(str(inspect.signature(entry)).split())


def _where(entry: Callable[..., Any]) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
