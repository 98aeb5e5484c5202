"""How large the weights are and how far a step moves them, under any strategy."""

from collections.abc import Sequence

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from sb.sharding import Part, trained_parts


class Norms:
    """Weight and update norm of single optimizer steps, in fp32; a copy of the weights is held during such a step only.

    Of all ranks: where each holds a part of the weights, their squares are added up. All ranks call both methods.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] | None = None
        self._parts: list[Part] = []
        self._device = torch.device("cpu")

    @torch.no_grad()
    def before(self, module: L.LightningModule) -> None:
        """Keep the weights, in front of the step."""
        self._parts, self._device = list(trained_parts(module).values()), module.device
        self._before = [part.values().float().clone() for part in self._parts]

    @torch.no_grad()
    def after(self) -> dict[str, float]:
        """``weight_norm`` and ``update_norm``, behind the step; nothing where no copy was taken."""
        if self._before is None:
            return {}
        now = [part.values().float() for part in self._parts]
        shared = any(type(part) is not Part for part in self._parts)
        torch._foreach_sub_(self._before, now)
        weight, update = _norms([now, self._before], self._device, shared)
        self._before, self._parts = None, []
        return {"weight_norm": weight, "update_norm": update}


def _norms(groups: Sequence[Sequence[Tensor]], device: torch.device, shared: bool) -> list[float]:
    squares = torch.stack([torch.nn.utils.get_total_norm(list(tensors)).square() for tensors in groups]).to(device)
    if shared:
        dist.all_reduce(squares)
    return squares.sqrt().tolist()
