"""How a run spreads over devices: the engines are Lightning's, what they lack is added here.

Every strategy writes and reads the one checkpoint format of a single device (whole tensors by name, ``sharding``), so
that a run may go on with another strategy, another number of ranks, and without DeepSpeed.
"""

import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, Strategy,
)

from sb import checkpoints, sharding
from sb.estimate import BUCKET
from sb.registry import register


class WholeFile:
    """Checkpoints of a strategy whose ranks hold parts: gathered to rank zero, one file."""

    optimizers: list[Any]
    lightning_module: Any
    is_global_zero: bool
    checkpoint_io: Any
    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on rank zero."""
        return sharding.whole_state(self.lightning_module, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """As torch writes it on one device; on rank zero."""
        inner = getattr(optimizer, "_optimizer", optimizer)  # Lightning's wrapper has it
        return sharding.optimizer_state(self.lightning_module, inner, keep=self.is_global_zero)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """One file, by rank zero."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank maps the file and takes its part."""
        return checkpoints.read(Path(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Cut the weights into parts."""
        sharding.load_whole(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut the optimizer's state into parts."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            sharding.load_optimizer_state(self.lightning_module, optimizer, state)


class FSDP2(WholeFile, ModelParallelStrategy):  # type: ignore[misc]
    """Fully sharded data parallel; the module's ``configure_model`` says what is sharded together."""


class ZeRO(WholeFile, DeepSpeedStrategy):  # type: ignore[misc]
    """DeepSpeed; on a CPU as well, where Lightning's own refuses (for tests: it is no faster there)."""

    @property
    def parallel_devices(self) -> list[torch.device] | None:  # type: ignore[override]
        """The devices, each with an index: DeepSpeed asks for one."""
        return self._parallel_devices

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        self._parallel_devices = devices and [
            torch.device(d.type, i) if d.type == "cpu" else d for i, d in enumerate(devices)
        ]

    def setup_environment(self) -> None:
        """Without the check for CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Lightning has divided the loss by the accumulated batches already: DeepSpeed must not do so again."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)


@register("strategy", "auto")
def auto(ranks: int) -> Strategy | str:
    """One device on its own, several with DDP."""
    return ddp(ranks) if ranks > 1 else "auto"


@register("strategy", "ddp")
def ddp(ranks: int, timeout_s: float = 1800.0) -> Strategy | str:
    """Every rank holds everything, gradients are averaged. timeout_s: how long one exchange may take."""
    return DDPStrategy(timeout=timedelta(seconds=timeout_s), gradient_as_bucket_view=True)


@register("strategy", "fsdp")
def fsdp(ranks: int, timeout_s: float = 1800.0) -> Strategy | str:
    """FSDP2: weights, gradients, optimizer state and averages in rows over all ranks."""
    return FSDP2(data_parallel_size=ranks, tensor_parallel_size=1, timeout=timedelta(seconds=timeout_s))


@register("strategy", "deepspeed")
def deepspeed(
    ranks: int, precision: str, stage: int = 2, offload: bool = False, timeout_s: float = 1800.0,
    options: Mapping[str, Any] | None = None,
) -> Strategy | str:
    """DeepSpeed ZeRO (arXiv 1910.02054): optimizer state and averages in parts over all ranks (stage 1), gradients too
    (2), weights too (3). offload: optimizer state, master weights and averages in host memory, in stage 3
    the shared-out weights as well. options: further keys
    of DeepSpeed's own configuration.

    Mixed precision is autocast on fp32 weights, as everywhere else: DeepSpeed's own casts the whole module and every
    float input. Raises ValueError for another stage or precision, or without the package.
    """
    if stage not in (1, 2, 3):
        raise ValueError(f"strategy 'deepspeed': stage must be 1, 2 or 3, not {stage}")
    if precision == "16-mixed":
        raise ValueError("strategy 'deepspeed': trainer.precision must be bf16-mixed or 32-true, not 16-mixed")
    try:
        from deepspeed.ops import __compatible_ops__
    except ImportError:
        raise ValueError("strategy 'deepspeed' needs the package: pip install -e '.[deepspeed]'") from None
    if not torch.cuda.is_available():
        __compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles an extension before the first step
    zero: dict[str, Any] = {
        "stage": stage, "overlap_comm": True, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    warnings.filterwarnings("ignore", message=".*DeepSpeed handles gradient clipping internally.*")  # ours leaves it to
    more = dict(options or {})
    zero.update(more.pop("zero_optimization", {}))
    config = {
        "zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": precision == "bf16-mixed", "dtype": "bfloat16"}, **more,
    }
    return ZeRO(config=config, timeout=timedelta(seconds=timeout_s))
