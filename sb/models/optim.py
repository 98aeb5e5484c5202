"""Optimizers with a learning rate that is scheduled in images, so that the batch size does not change the recipe."""

import importlib.util
import math
from collections.abc import Iterable, Sequence

import torch

from sb.registry import register

DECAYS = ("none", "linear", "cosine")


class ImageSchedule:
    """The factor on the learning rate as a function of images alone, whatever came before.

    It rises in a line over ``warmup_images``, then stays at 1, or falls in a line or half a cosine to 0 at
    ``total_images``. An object, not a closure, so that it can be pickled.
    """

    def __init__(self, total_images: int, warmup_images: int, decay: str):
        self.total_images, self.warmup_images, self.decay = total_images, warmup_images, decay

    def __call__(self, images: int, images_per_step: int) -> float:
        """The factor, in [0, 1], of a step of ``images_per_step`` with ``images`` behind it."""
        if images < self.warmup_images:
            return min((images + images_per_step) / self.warmup_images, 1.0)
        done = min((images - self.warmup_images) / max(self.total_images - self.warmup_images, 1), 1.0)
        if self.decay == "linear":
            return 1 - done
        return 0.5 + 0.5 * math.cos(math.pi * done) if self.decay == "cosine" else 1.0


@register("optimizer", "adamw")
class AdamW:
    """Factory of AdamW (arXiv 1711.05101) and its schedule: ``factory(params, total_images)``.

    decay: ``none``, ``linear`` or ``cosine`` after the warm-up. fused: one kernel for all parameters; null uses it
    where they lie on a CPU or a CUDA device. in_parts: its state lies along the weights, so that a strategy can hold
    both in parts. Raises ValueError for another decay.
    """

    in_parts = True

    def __init__(
        self,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_images: int = 0,
        decay: str = "none",
        fused: bool | None = None,
    ):
        if decay not in DECAYS:
            raise ValueError(f"optimizer 'adamw': decay '{decay}' is none of {', '.join(DECAYS)}")
        if len(betas) != 2:
            raise ValueError(f"optimizer 'adamw': betas must be two numbers, not {list(betas)}")
        self.lr, self.weight_decay, self.betas, self.eps = lr, weight_decay, (betas[0], betas[1]), eps
        self.warmup_images, self.decay, self.fused = warmup_images, decay, fused

    def __call__(
        self, params: Iterable[torch.nn.Parameter], total_images: int
    ) -> tuple[torch.optim.Optimizer, ImageSchedule]:
        """The optimizer over ``params``, and the factor that its learning rate is to be multiplied by at each step."""
        trained = [p for p in params if p.requires_grad]
        fused = self.fused if self.fused is not None else all(p.device.type in ("cpu", "cuda") for p in trained)
        optimizer = torch.optim.AdamW(
            trained, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )
        # a fused step could also unscale fp16 gradients, for which Lightning refuses to clip: leave that to the scaler
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer, ImageSchedule(total_images, self.warmup_images, self.decay)


@register("optimizer", "adamw8bit")
class AdamW8bit(AdamW):
    """As ``adamw``, with its two moments in 8 bits, in blocks of 256 (arXiv 2110.02861): 2 bytes a parameter for 8.

    For one device and ddp. Raises ValueError where bitsandbytes is missing, and for parameters in FSDP's pieces, which
    it cannot update.
    """

    in_parts = False

    def __init__(
        self,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_images: int = 0,
        decay: str = "none",
    ):
        super().__init__(lr, weight_decay, betas, eps, warmup_images, decay)
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("optimizer 'adamw8bit' needs bitsandbytes: pip install -e '.[adam8bit]'")

    def __call__(
        self, params: Iterable[torch.nn.Parameter], total_images: int
    ) -> tuple[torch.optim.Optimizer, ImageSchedule]:
        """The optimizer over ``params``, and the factor on its learning rate; small tensors keep fp32 moments."""
        from bitsandbytes.optim import AdamW8bit as EightBit

        trained = [p for p in params if p.requires_grad]
        if any(hasattr(p, "full_tensor") for p in trained):
            raise ValueError("optimizer 'adamw8bit' cannot update FSDP's pieces: it works on one device and with ddp")
        optimizer = EightBit(trained, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
        return optimizer, ImageSchedule(total_images, self.warmup_images, self.decay)
