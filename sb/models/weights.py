"""Weights in and out: safetensors, or PyTorch files read with ``weights_only``; by name, with nothing skipped."""

import errno
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sb.config import whole


class _Inert:
    """Stands in for a class that old Lightning checkpoints name beside their weights, and does nothing."""


# named in the pickles of published Stable Diffusion checkpoints
_STAND_INS = [
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.argparse.AttributeDict",
]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, still in the file where it can be mapped into memory.

    Raises ValueError that names it where it cannot be read, or only by running code that it brings.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in _STAND_INS]):
            mapped = zipfile.is_zipfile(path)  # torch.save's format since 1.6
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, ImportError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a readable weights file: {str(error).splitlines()[0]}") from None
    state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a readable weights file: it holds other things than tensors by name")
    return state


def read_header(path: str | Path) -> dict[str, str]:
    """The texts in a safetensors file's header; nothing for other files."""
    if Path(path).suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def check_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Raise ValueError where ``state`` does not fit: how many tensors are missing, unexpected or of another shape."""
    own = module.state_dict()
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(state)) if own[name].shape != state[name].shape
    ]
    parts = [
        f"{len(found)} {what}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)) if found
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


def digest(module: nn.Module) -> int:
    """A checksum of a module's weights, the same on any device and in any memory layout."""
    found = 0
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(plain.numpy(), zlib.crc32(name.encode(), found))
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
