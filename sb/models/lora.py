"""LoRA (arXiv 2106.09685): a trained denoiser learns something new in few weights, by peft.

A layer's W x becomes W x + alpha / rank * B A x with A of ``rank`` rows; W is frozen and B starts at zero. What leaves
here has no trace of peft: merged weights under the denoiser's own names, and A and B in the file that diffusers loads.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sb.config import nearest

ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
ADAPTER_HEADER = "lora_adapter_metadata"  # where diffusers looks for rank and alpha in it
_NAME = "default"  # of the adapter in peft's parameter names


@dataclass(frozen=True)
class Adapter:
    """What was added to a denoiser. layers: the adapted layers by name. also: modules that are trained whole."""

    rank: int
    alpha: float
    layers: tuple[str, ...]
    also: tuple[str, ...]

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adapted denoiser's state as that of an ordinary one: W + alpha / rank * B A under the plain names.

        W's dtype is kept. Layers are linear, A (r, in) and B (out, r), or convolutions, A (r, in, k, k) and
        B (out, r, 1, 1).
        """
        plain = {}
        for name, value in state.items():
            layer, _, leaf = name.rpartition(".base_layer.")
            if layer and leaf == "weight":
                down, up = (state[f"{layer}.lora_{half}.{_NAME}.weight"] for half in "AB")
                change = up.float().flatten(1) @ down.float().flatten(1)
                value = (value.float() + self.alpha / self.rank * change.view_as(value)).to(value.dtype)
            if layer or ".lora_" not in name:
                plain[f"{layer}.{leaf}" if layer else name] = value
        return plain

    def tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A and alpha / rank * B of every adapted layer under diffusers' names: ``unet.LAYER.lora_A.weight``.

        The strength is in B because diffusers reads it from the header on some of its ways in only, and else takes 1.
        """
        strength = {"lora_A": 1.0, "lora_B": self.alpha / self.rank}
        return {
            f"unet.{layer}.{half}.weight": state[f"{layer}.{half}.{_NAME}.weight"].float() * factor
            for layer in self.layers for half, factor in strength.items()
        }

    def header(self) -> dict[str, str]:
        """The adapter file's header, as diffusers writes it: peft's settings behind the part's name, as JSON."""
        settings = {"r": self.rank, "lora_alpha": self.rank, "target_modules": list(self.layers)}
        content = {f"unet.{key}": value for key, value in settings.items()}
        return {"format": "pt", ADAPTER_HEADER: json.dumps(content, indent=2, sort_keys=True)}


def add_lora(
    denoiser: nn.Module,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0"),
    also: Sequence[str] = (),
) -> Adapter:
    """Put adapters into a denoiser, in place; they, and the modules ``also``, are all of it that is trained.

    alpha: the adapters' strength times rank; null is rank. dropout: of the adapters' input in training; it draws from
    the global generator, which is seeded anew for every step. targets: linear or
    convolutional layers, by the end of their names. also: modules by their whole names, say those with channels that
    the checkpoint lacks. Raises ValueError for a name that fits no module, and where peft is not installed.
    """
    alpha = float(rank if alpha is None else alpha)
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"lora: needs rank >= 1, alpha > 0 and dropout in [0, 1), "
            f"not rank {rank}, alpha {alpha:g}, dropout {dropout}"
        )
    layers, whole = _layers(denoiser, targets), _modules(denoiser, also)
    both = [layer for layer in layers if any(layer == name or layer.startswith(f"{name}.") for name in whole)]
    if both:
        raise ValueError(f"lora: also trains {both[0]} whole, which is a target too: take it out of one of the two")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("lora: needs peft, which is not installed: pip install -e '.[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(config, denoiser, _NAME)
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    for name in whole:
        denoiser.get_submodule(name).requires_grad_(True)
    return Adapter(rank, alpha, tuple(layers), tuple(whole))


def check_grown(grown: Iterable[str], also: Sequence[str], where: str) -> None:
    """Raise ValueError where modules have weights that their checkpoint lacks and nothing would train them."""
    if not isinstance(also, (list, tuple)) or not all(isinstance(name, str) for name in also):
        raise ValueError(f"lora: also must be a list of module names, not {also!r}")
    idle = sorted(set(grown) - set(also))
    if idle:
        raise ValueError(
            f"lora: {where} lacks weights of {', '.join(idle)}, which would stay zero; "
            f"train them whole: '+lora.also=[{','.join([*also, *idle])}]'"
        )


def _layers(denoiser: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of the layers that the targets stand for, in the denoiser's order."""
    able = [name for name, module in denoiser.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not targets:
        raise ValueError("lora: targets is empty; to_q, to_k, to_v and to_out.0 are the usual ones")
    for target in targets:
        if not any(_ends(name, target) for name in able):
            near = nearest(target, _ends_of(able))
            raise ValueError(f"lora: no linear layer or convolution is called '{target}'; {near}")
    return [name for name in able if any(_ends(name, target) for target in targets)]


def _modules(denoiser: nn.Module, also: Sequence[str]) -> list[str]:
    known = [name for name, module in denoiser.named_modules() if name and any(True for _ in module.parameters())]
    for name in also:
        if name not in known:
            near = nearest(name, [other for other in known if other.count(".") == name.count(".")])
            raise ValueError(f"lora: also names '{name}', no module of the denoiser with weights; {near}")
    return list(also)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _ends_of(names: Sequence[str]) -> list[str]:
    """What layers are called, each with as much of its path as tells more than a number: ``to_q``, ``to_out.0``."""
    return sorted({".".join(name.split(".")[-2 if name[-1].isdigit() and "." in name else -1:]) for name in names})
