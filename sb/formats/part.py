"""A network's tensors in a file, under the file's names, checked against a module and gathered under ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sb.formats.names import Layout
from sb.models.weights import raise_misfit


@dataclass
class Part:
    """tensors: the file's entries that belong to this network. where: what to call the file in an error.

    padded: the file's format has one width for all layers, so that a tensor of ours may stand in the corner of a
    larger one whose rest is zero.
    """

    tensors: Mapping[str, Tensor]
    layout: Layout
    where: str
    padded: bool = False

    def state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors for a module with the state dict ``own`` (on the meta device is enough), under our names.

        Values, dtypes and memory are the file's. Raises ValueError that lists, by the file's names, what is missing,
        unexpected or of another shape.
        """
        raise_for([self], [own])
        pieces = {name: self.layout(name) for name in own}
        found = {
            key: self._corner(key, part) for name, value in own.items() for key, part in pieces[name].cut(value).items()
        }
        return {name: piece.join([found[key] for key in piece.names]) for name, piece in pieces.items()}

    def faults(self, own: Mapping[str, Tensor]) -> dict[str, list[str]]:
        """What keeps the file from fitting a module with the state dict ``own``, by the file's names."""
        pieces = {name: self.layout(name) for name in own}
        wanted = {key: part for name, value in own.items() for key, part in pieces[name].cut(value).items()}
        homeless = [name for name in own if not pieces[name].names]
        return {
            "missing": [*sorted(wanted.keys() - self.tensors.keys()), *homeless],
            "unexpected": sorted(self.tensors.keys() - wanted.keys()),
            "of another shape": [
                f"{key} is {tuple(self.tensors[key].shape)}, not {tuple(value.shape)}"
                for key, value in wanted.items() if key in self.tensors and not self._fits(self.tensors[key], value)
            ],
        }

    def _fits(self, found: Tensor, wanted: Tensor) -> bool:
        if not self.padded:
            return found.shape == wanted.shape
        return found.ndim == wanted.ndim and all(a >= b for a, b in zip(found.shape, wanted.shape, strict=True))

    def _corner(self, key: str, wanted: Tensor) -> Tensor:
        found = self.tensors[key]
        if found.shape == wanted.shape:
            return found
        corner = tuple(slice(0, size) for size in wanted.shape)
        rest = found.clone()
        rest[corner] = 0
        if bool(rest.any()):
            raise ValueError(f"{self.where}: {key} is not zero outside {tuple(wanted.shape)}, so it was not ours")
        return found[corner]


def raise_for(parts: Sequence[Part], own: Sequence[Mapping[str, Tensor]]) -> None:
    """ValueError that lists all faults of all parts, where there is one."""
    faults: dict[str, list[str]] = {}
    wrong = []
    for part, state in zip(parts, own, strict=True):
        for what, found in part.faults(state).items():
            faults.setdefault(what, []).extend(found)
            wrong += [part.where] if found and part.where not in wrong else []
    raise_misfit(", ".join(wrong), faults)


def pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor in the corner of zeros of a larger shape."""
    if tuple(tensor.shape) == shape:
        return tensor
    larger = tensor.new_zeros(shape)
    larger[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return larger


def widen(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text-to-image or inpainting UNet's state for one with more channels in and out and a class embedding.

    ``own`` is the wider module's state dict. New input channels, mask head and rows of the class embedding start at
    zero, so that the first output is the narrow network's and gradients reach all three (SmartBrush starts from Stable
    Diffusion).
    Tensors that differ in any other way are left as they are, for the check that follows.
    """
    wider = dict(state)
    for name, axis in (("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)):
        if name in state and name in own and state[name].shape[axis] < own[name].shape[axis]:
            shape = list(state[name].shape)
            shape[axis] = own[name].shape[axis]
            wider[name] = pad(state[name], tuple(shape))
    for name, value in own.items():
        if name.startswith("class_embedding."):
            narrow = state.get(name, torch.zeros((0,) * value.ndim))
            if all(a <= b for a, b in zip(narrow.shape, value.shape, strict=True)):
                wider[name] = pad(narrow, tuple(value.shape))
    return wider
