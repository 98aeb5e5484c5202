"""Weights in and out: safetensors, or PyTorch files read with ``weights_only``; by name, with nothing skipped."""

import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sb.config import write_whole


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; ValueError that names it where it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, ImportError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a readable weights file: {str(error).splitlines()[0]}") from None
    return state.get("state_dict", state)


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


def digest(module: nn.Module) -> int:
    """A checksum of a module's weights, the same on any device and in any memory layout."""
    found = 0
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found = zlib.crc32(plain.numpy(), zlib.crc32(name.encode(), found))
    return found


def write_state(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors as safetensors, whole or not at all."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    write_whole(path, content)
