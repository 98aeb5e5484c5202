"""Weights in and out: safetensors, or PyTorch files read with ``weights_only``; by name, with nothing skipped."""

import errno
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sb.config import whole
from sb.sharding import shape_of


class _Inert:
    """Stands in for what old Lightning checkpoints name beside their weights, and does nothing."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS: list[Any] = [  # named in the pickles of published Stable Diffusion checkpoints
    (_Inert, name) for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
    )
] + [(dict, "pytorch_lightning.utilities.parsing.AttributeDict")]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, still in the file where it can be mapped into memory.

    Raises ValueError that names it where it cannot be read, or only by running code that it brings.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        if path.suffix.lower() in (".safetensors", ".sft"):
            return load_file(path)
        with torch.serialization.safe_globals(_STAND_INS):
            mapped = zipfile.is_zipfile(path)  # torch.save's format since 1.6
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken or foreign pickle fails in any way there is
        why = (str(error).splitlines() or ["cut off"])[0]
        if why.startswith("Weights only load failed"):  # torch goes on to say how to run the code
            why = "no tensors by name, or nothing that can be read without running code of its own"
        raise ValueError(f"{path} is not a readable weights file: {why}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a readable weights file: it holds other things than tensors by name")
    return state


def read_header(path: str | Path) -> dict[str, str]:
    """The texts in a safetensors file's header; nothing for other files."""
    if Path(path).suffix.lower() not in (".safetensors", ".sft"):
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def check_state(
    module: nn.Module, state: Mapping[str, Tensor], where: str, without: Iterable[str] = (), shown: int = 20
) -> None:
    """Raise ValueError where ``state`` does not fit: how many tensors are missing, unexpected or of another shape.

    without: names of the module's that the state is not to hold. Sharded tensors count with their whole shape.
    """
    own = {name: shape_of(value) for name, value in module.state_dict(keep_vars=True).items()}
    own = {name: shape for name, shape in own.items() if name not in set(without)}
    raise_misfit(where, {
        "missing": sorted(set(own) - set(state)), "unexpected": sorted(set(state) - set(own)),
        "of another shape": [
            f"{name} is {tuple(state[name].shape)}, not {own[name]}"
            for name in sorted(set(own) & set(state)) if own[name] != tuple(state[name].shape)
        ],
    }, shown)


def raise_misfit(where: str, faults: Mapping[str, list[str]], shown: int = 20) -> None:
    """ValueError that lists tensors by what is wrong with them, where there is one."""
    parts = [
        f"{len(found)} {what}: {', '.join(found[:shown])}{', ...' if len(found) > shown else ''}"
        for what, found in faults.items() if found
    ]
    if parts:
        raise ValueError(f"{where} does not fit this model; {'; '.join(parts)}")


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load by name; ValueError as ``check_state`` has it."""
    check_state(module, state, where)
    module.load_state_dict(state)


class no_init(TorchFunctionMode):
    """While it is on, random initial weights are not drawn: for modules whose weights are loaded over at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of linear layers and convolutions in the dtype that autocast would cast them to at every call:
    the same answers, without the casts."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(dtype)


def digest(state: Mapping[str, Tensor]) -> int:
    """A checksum of a module's weights by name, the same on any device and in any memory layout."""
    found = 0
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(plain.numpy().data, zlib.crc32(name.encode(), found))
    return found


def write_state(state: Mapping[str, Tensor], path: str | Path, header: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all; ``header`` holds texts that go with them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole(path) as aside:
        try:
            save_file(tensors, aside, dict(header or {}))
        except SafetensorError as error:  # what a full disk looks like from there
            found = re.search(r"os error (\d+)", str(error))
            raise OSError(int(found[1]) if found else errno.EIO, str(error), str(path)) from None
