"""What one rank holds of the trained weights, under any strategy, and how the whole comes of it.

A part is the whole tensor (one device, DDP), a block of rows (FSDP2), or a run of the flattened fp32 master copy
(DeepSpeed ZeRO). Parts of one kind add up to the whole and are cut from it again, so that averages, checkpoints and
exported weights are the same files under every strategy, for any number of ranks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Part:
    """All of a parameter: what is trained is what the network works with."""

    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter

    @property
    def own_copy(self) -> bool:
        """Whether the optimizer steps a copy, from which the working weights can be made again."""
        return False

    def values(self) -> Tensor:
        """This rank's trained numbers, not a copy."""
        return self.parameter.detach()

    def state(self, optimizer: Any) -> dict[str, Any]:
        """What an optimizer keeps of them: tensors of the same length, or one number each; not copies."""
        return dict(optimizer.state.get(self.parameter, {}))

    def whole(self, part: Tensor) -> Tensor:
        """Every rank's part as one tensor of the parameter's shape; all ranks call it."""
        return part

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's part of a tensor of the parameter's shape."""
        return whole

    def show(self, part: Tensor) -> None:
        """Let the network work with these numbers; all ranks call it. The optimizer's own copy stays."""
        self.parameter.data.copy_(part)

    def load(self, whole: Tensor) -> None:
        """Take over numbers for network and optimizer alike; all ranks call it."""
        self.values().copy_(self.cut(whole))
        self.show(self.values())

    def load_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Take over an optimizer's state of the whole parameter."""
        optimizer.state[self.parameter] = {
            name: self._like(value) if self._is_long(value) else _number(value, optimizer, self.values())
            for name, value in state.items()
        }

    def _is_long(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.numel() == self.parameter.numel() and value.ndim > 0

    def _like(self, value: Tensor) -> Tensor:
        return torch.empty_like(self.parameter, dtype=value.dtype).copy_(value)


class _Rows(Part):
    """FSDP2's: a block of rows of a DTensor."""

    def values(self) -> Tensor:
        return self.parameter.detach().to_local()  # type: ignore[attr-defined]

    def state(self, optimizer: Any) -> dict[str, Any]:
        kept = optimizer.state.get(self.parameter, {})
        return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in kept.items()}

    def whole(self, part: Tensor) -> Tensor:
        return self._sharded(part).full_tensor()

    def cut(self, whole: Tensor) -> Tensor:
        rows, width = self.values().shape[:1], -(-self.parameter.shape[0] // self._mesh().size())
        start = min(self._mesh().get_local_rank() * width, self.parameter.shape[0])
        return whole[start : start + rows[0]]

    def show(self, part: Tensor) -> None:
        self.values().copy_(part)

    def _like(self, value: Tensor) -> Tensor:
        return self._sharded(torch.empty_like(self.values(), dtype=value.dtype).copy_(self.cut(value)))

    def _mesh(self) -> Any:
        return self.parameter.device_mesh  # type: ignore[attr-defined]

    def _sharded(self, part: Tensor) -> DTensor:
        like: Any = self.parameter
        return DTensor.from_local(
            part.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride(),
            run_check=False,
        )


class _Run(Part):
    """DeepSpeed's: ``count`` numbers from ``start`` on of the flattened parameter, in an fp32 copy of its own."""

    @property
    def own_copy(self) -> bool:
        """As long as DeepSpeed does not let the two share their memory."""
        working = getattr(self.parameter, "ds_tensor", self.parameter)
        return self.values().untyped_storage().data_ptr() != working.untyped_storage().data_ptr()

    def _place(self) -> tuple[int, int]:
        """(start, count)."""
        raise AssertionError("a run knows its place")

    def _numbers(self) -> torch.Size:
        """The parameter's own shape."""
        return self.parameter.shape

    def _flats(self, optimizer: Any) -> Mapping[Any, dict[str, Any]]:
        """The inner optimizer's state by flat fp32 tensor."""
        return optimizer.optimizer.state

    def whole(self, part: Tensor) -> Tensor:
        start, count = self._place()
        shape, device = self._numbers(), self.parameter.device
        full = torch.zeros(shape.numel(), dtype=part.dtype, device=device)
        full[start : start + count] = part[:count].to(device)
        dist.all_reduce(full)
        return full.view(shape)

    def cut(self, whole: Tensor) -> Tensor:
        start, count = self._place()
        part = torch.zeros_like(self.values(), dtype=whole.dtype)
        part[:count] = whole.flatten()[start : start + count]
        return part

    def _is_long(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.numel() == self._numbers().numel() and value.ndim > 0


class _Zero12(_Run):
    """A run of the rank's flat partition (ZeRO-1 and 2); the working weights are whole on every rank."""

    def _place(self) -> tuple[int, int]:
        mapping: Any = self.parameter._hp_mapping  # type: ignore[attr-defined]
        return (0, 0) if mapping is None else (mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel)

    def values(self) -> Tensor:
        mapping: Any = self.parameter._hp_mapping  # type: ignore[attr-defined]
        return self.parameter.new_zeros(0, dtype=torch.float32) if mapping is None else mapping.hp_fragment.detach()

    def state(self, optimizer: Any) -> dict[str, Any]:
        mapping: Any = self.parameter._hp_mapping  # type: ignore[attr-defined]
        group = 0 if mapping is None else mapping.param_group_index
        flat = optimizer.single_partition_of_fp32_groups[group]
        address = None if mapping is None else mapping.hp_fragment_address
        start, count = (0, 0) if address is None else (address.start, address.numel)
        return {
            name: value.narrow(0, start, count) if _lies_along(value, flat) else value
            for name, value in self._flats(optimizer).get(flat, {}).items()
        }

    def show(self, part: Tensor) -> None:
        self.parameter.data.copy_(self.whole(part))

    def load_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        for flat in optimizer.single_partition_of_fp32_groups:
            _make_room(self, optimizer, flat, state)
        _copy_state(self, optimizer, state)


class _Zero3(_Run):
    """The rank's share of every parameter (ZeRO-3); the working weights are gathered as the network needs them."""

    def _place(self) -> tuple[int, int]:
        share, rank = self.parameter.ds_tensor.numel(), dist.get_rank()  # type: ignore[attr-defined]
        start = min(rank * share, self._numbers().numel())
        return start, min(share, self._numbers().numel() - start)

    def _numbers(self) -> torch.Size:
        return torch.Size(self.parameter.ds_shape)  # type: ignore[attr-defined]

    def _flat(self) -> tuple[Tensor, int, int]:
        engine: Any = self.parameter._z3_optimizer  # type: ignore[attr-defined]
        group, start, count = engine.grad_position[engine.get_param_id(self.parameter)]
        return engine.fp32_partitioned_groups_flat[group], start, count

    def values(self) -> Tensor:
        flat, start, count = self._flat()
        return flat.detach().narrow(0, start, count)

    def state(self, optimizer: Any) -> dict[str, Any]:
        flat, start, count = self._flat()
        return {
            name: value.narrow(0, start, count) if _lies_along(value, flat) else value
            for name, value in self._flats(optimizer).get(flat, {}).items()
        }

    def show(self, part: Tensor) -> None:
        share: Any = self.parameter.ds_tensor  # type: ignore[attr-defined]
        share.data.copy_(part[: share.numel()].view_as(share))
        if self.parameter.data.numel():  # a small one, which every rank keeps whole
            self.parameter.data.copy_(self.whole(part))

    def load_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        flat = self._flat()[0]
        _make_room(self, optimizer, flat, state)
        _copy_state(self, optimizer, state)


def part_of(parameter: nn.Parameter) -> Part:
    """The part of a parameter that this rank holds, once the strategy has set it up."""
    if hasattr(parameter, "ds_id"):
        return _Zero3(parameter)
    if hasattr(parameter, "_hp_mapping"):
        return _Zero12(parameter)
    return _Rows(parameter) if isinstance(parameter, DTensor) else Part(parameter)


def trained_parts(module: nn.Module) -> dict[str, Part]:
    """The parts of every trained parameter by name."""
    return {name: part_of(p) for name, p in module.named_parameters() if p.requires_grad}


def is_sharded(module: nn.Module) -> bool:
    """Whether the network's working weights lie in parts, so that a call of it needs every rank."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in module.parameters())


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The whole's shape of a parameter or buffer that may lie in parts."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def whole_state(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The module's state dict with every trained tensor whole and in the precision it is trained in.

    Collective: all ranks call it; ranks that do not ``keep`` the result get an empty one. Parts of frozen parameters
    are gathered as well.
    """
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    parts, found = trained_parts(module), {}
    for name, value in module.state_dict(keep_vars=True).items():
        if name in parts:
            tensor = _onto_host(parts[name], parts[name].values(), keep)
        elif name in frozen and hasattr(value, "ds_id"):
            tensor = _onto_host(part_of(value), value.ds_tensor.detach().flatten(), keep)
        else:
            tensor = value.detach()
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = tensor
    return found


def whole_values(parts: Mapping[str, Part], values: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Numbers that lie like the parts, put together: by name. Collective; what was whole all along every rank keeps."""
    found = {name: _onto_host(part, values[name], keep) for name, part in parts.items()}
    return {name: value for name, value in found.items() if keep or type(parts[name]) is Part}


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take over a state dict of whole tensors; what the module has of it, by name."""
    parts, buffers = trained_parts(module), dict(module.named_buffers())
    with torch.no_grad():
        for name, value in state.items():
            if name in parts:
                parts[name].load(value)
            elif name in buffers:
                buffers[name].copy_(value)


def optimizer_state(module: nn.Module, optimizer: Any, keep: bool = True) -> dict[str, Any]:
    """An optimizer's state as torch writes it on one device, with one group of all trained parameters.

    Collective, like ``whole_state``. Raises ValueError for state that does not lie along its parameter.
    """
    found: dict[int, dict[str, Any]] = {}
    for number, (name, part) in enumerate(trained_parts(module).items()):
        found[number] = {}
        for key, value in part.state(optimizer).items():
            if isinstance(value, Tensor) and value.shape == part.values().shape:
                value = _onto_host(part, value, keep)
            elif isinstance(value, Tensor) and value.numel() > 1:
                raise ValueError(
                    f"the optimizer's {key} of {name} does not lie along its weights: it cannot be put together "
                    "for a checkpoint; use trainer.strategy=ddp, or another optimizer"
                )
            found[number][key] = value
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return {"state": found, "param_groups": [{**options, "params": list(found)}]} if keep else {}


def load_optimizer_state(module: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Take over what ``optimizer_state``, or torch on one device, wrote; rates and options stay as they are."""
    order = [number for group in state["param_groups"] for number in group["params"]]
    with torch.no_grad():
        for number, part in zip(order, trained_parts(module).values(), strict=True):
            if kept := state["state"].get(number):
                part.load_state(optimizer, kept)


def lay_out(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Bring an optimizer's stored state into its weights' memory layout: torch's fused steps read both in that order,
    whatever the shapes say. Only of weights that are whole."""
    order = [number for group in state["param_groups"] for number in group["params"]]
    for number, part in zip(order, trained_parts(module).values(), strict=True):
        kept = state["state"].get(number, {})
        if type(part) is Part:
            kept.update({name: part._like(value) for name, value in kept.items() if part._is_long(value)})


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of gradients, whole or in FSDP2's parts, over all ranks' parts."""
    apart: tuple[list[Tensor], list[Tensor]] = [], []
    for tensor in tensors:  # a host reads hundreds of biases as fast as one
        apart[tensor.ndim == 1 and tensor.device.type == "cpu" and not isinstance(tensor, DTensor)].append(tensor)
    norm = torch.nn.utils.get_total_norm([*apart[0], *([torch.cat(apart[1])] if apart[1] else [])])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _onto_host(part: Part, values: Tensor, keep: bool) -> Tensor:
    """A whole tensor; in parts, they meet on the device and only one whole is there at a time."""
    whole = part.whole(values)
    return whole.cpu() if keep and type(part) is not Part else whole


def _lies_along(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape


def _number(value: Any, optimizer: Any, beside: Tensor) -> Tensor:
    """A count of steps, where this optimizer's kernels look for it."""
    options = optimizer.param_groups[0]
    on_device = options.get("fused") or options.get("capturable")
    return torch.as_tensor(value).clone().to(beside.device if on_device else "cpu")


def _make_room(part: _Run, optimizer: Any, flat: Tensor, state: Mapping[str, Any]) -> None:
    """State as the optimizer's first step would make it, in its order."""
    kept = part._flats(optimizer)[flat]
    for name, value in state.items():
        if name not in kept:
            kept[name] = torch.zeros_like(flat) if part._is_long(value) else _number(value, optimizer, flat)


def _copy_state(part: _Run, optimizer: Any, state: Mapping[str, Any]) -> None:
    for name, value in part.state(optimizer).items():
        if isinstance(value, Tensor) and value.ndim:
            value.copy_(part.cut(state[name]))
