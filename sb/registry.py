"""Names in run files bound to callables: the one place where configuration meets code.

An entry is anything callable (class or function) registered under a kind and a name. Built-in entries are
imported on first use from the modules in ``HOMES``; everything else arrives through ``plugins:`` in a run
file, or by writing a dotted path (``acme.brushes.Spray``) as the name.
"""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

HOMES: dict[str, tuple[str, ...]] = {
    "source": ("sb.data.coco", "sb.data.openimages", "sb.data.folder", "sb.data.shapes"),
    "task": ("sb.data.tasks",),
    "degradation": ("sb.masks",),
    "conditioning": ("sb.conditioning",),
    "schedule": ("sb.schedule",),
    "vae": ("sb.models.vae", "sb.models.tiny_vae"),
    "text": ("sb.models.text",),
    "denoiser": ("sb.models.unet",),
    "objective": ("sb.losses", "sb.models.vae_system"),
    "optimizer": ("sb.models.optim",),
    "system": ("sb.models.smartbrush", "sb.models.vae_system"),
    "sampler": ("sb.samplers",),
    "callback": (
        "sb.callbacks.ema",
        "sb.callbacks.mask_log",
        "sb.callbacks.sample_log",
        "sb.callbacks.speed",
        "sb.callbacks.guard",
        "sb.callbacks.save",
        "sb.evaluate.shapes_callback",
    ),
}
_TABLE: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in HOMES}
_BASIC = (bool, int, float, str)
Entry = TypeVar("Entry", bound=Callable[..., Any])


def register(kind: str, name: str) -> Callable[[Entry], Entry]:
    """Decorator that binds ``name`` under ``kind``; raises ValueError where the name is taken by other code."""
    if kind not in _TABLE:
        raise ValueError(f"no kind '{kind}' to register '{name}' under; {_nearest(kind, _TABLE)}")

    def bind(entry: Entry) -> Entry:
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
    """The entry a name stands for; ValueError with the nearest names where there is none."""
    if name in _TABLE[kind]:
        return _TABLE[kind][name]
    known = names(kind)
    if name in known:
        return _TABLE[kind][name]
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{kind} '{name}' cannot be imported: {error}") from None
    raise ValueError(f"no {kind} named '{name}'; {_nearest(name, known)}")


def build(kind: str, spec: Mapping[str, Any], **runtime: Any) -> Any:
    """Call the entry ``spec['name']`` with the other keys of ``spec`` plus objects that only code can give.

    Raises ValueError for an unknown name, an unknown or missing key, or a value of the wrong basic type.
    """
    if "name" not in spec:
        raise ValueError(f"a {kind} section needs a 'name:'; {_nearest('', names(kind))}")
    name, given = str(spec["name"]), {str(k): v for k, v in spec.items() if k != "name"}
    entry = lookup(kind, name)
    signature = inspect.signature(entry)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for key in given:
            if key not in signature.parameters:
                keys = [k for k in signature.parameters if k not in runtime]
                raise ValueError(f"{kind} '{name}' has no key '{key}'; {_nearest(key, keys)}")
    try:
        signature.bind(**given, **runtime)
    except TypeError as error:
        raise ValueError(f"{kind} '{name}': {error}; it takes {signature}") from None
    for key, value in given.items():
        _check_type(f"{kind} '{name}': {key}", value, _annotation(entry, key))
    return entry(**given, **runtime)


def build_fitted(kind: str, spec: Mapping[str, Any], offered: Mapping[str, Any]) -> Any:
    """Like ``build``, handing over those of the offered objects that the entry has a parameter for."""
    takes = inspect.signature(lookup(kind, str(spec["name"]))).parameters if "name" in spec else {}
    return build(kind, spec, **{name: value for name, value in offered.items() if name in takes})


def _annotation(entry: Callable[..., Any], key: str) -> Any:
    target = entry.__init__ if inspect.isclass(entry) else entry  # type: ignore[misc]
    try:
        return typing.get_type_hints(target).get(key)
    except (NameError, TypeError):
        return None


def _check_type(where: str, value: Any, annotation: Any) -> None:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    allowed = typing.get_args(annotation) if union else (annotation,)
    if not all(a in _BASIC or a is type(None) for a in allowed):
        return
    fits = (type(value) in allowed) or (type(value) is int and float in allowed)
    if not fits:
        wanted = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
        raise ValueError(f"{where} must be {wanted}, not {value!r}")


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    return "there are: " + ", ".join(known)


def _where(entry: Callable[..., Any]) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
