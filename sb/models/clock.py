"""The shell that every system of ours trains in: images seen are the clock of rate, noise, logs and checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from sb.models.weights import check_state, digest
from sb.sharding import lay_out
from sb.types import Batch

DROPOUT = 1  # sets the draws of torch's own generators apart from the noise's


class ImagesClock(L.LightningModule):
    """Counts training images over all ranks in ``images_seen``; subclasses add the network and the steps.

    ``optimizer(params, total_images)`` gives an optimizer and a function of (images seen before an optimizer step,
    images of the step) to the factor on its learning rates. Rates and all other options of the optimizer follow the
    run file of this moment: neither they nor a count of steps are taken from a checkpoint.
    """

    def __init__(self, optimizer: Callable[..., Any], total_images: int, batch_size: int, seed: int):
        super().__init__()
        self.optimizer, self.total_images, self.batch_size, self.seed = optimizer, total_images, batch_size, seed
        self.images_seen, self.frozen_parts = 0, {}  # type: int, dict[str, int]
        self.strict_loading = False  # checkpoints lack what is frozen; ``check`` looks at every name
        self.gradient_norm: Tensor | None = None  # of this optimizer step, where a callback has measured it
        self._options: list[dict[str, Any]] = []  # of each parameter group, as the run file has them
        self._factor: Callable[[int, int], float]

    def count(self, batch: Batch) -> None:
        """Advance the clock by this batch on every rank."""
        self.images_seen += len(batch) * self.trainer.world_size

    def clock(self) -> Tensor:
        """The x axis of every log; float32 would lose count at 17 million images."""
        return torch.tensor(self.images_seen, dtype=torch.float64)

    def log_step(self, values: Mapping[str, Tensor], batch_size: int) -> None:
        """Log a training step's values where Lightning writes them out: between, it costs and is lost."""
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({**values, "step": self.clock()}, batch_size=batch_size)

    def generator(self, *numbers: int) -> torch.Generator:
        """Noise that follows from these numbers: no generator state to save or lose."""
        return torch.Generator(self.device).manual_seed(_mixed(*numbers))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let torch's own generators, which a network's dropout draws from, follow from (seed, images seen, rank) too.

        Not ``torch.manual_seed``: where CUDA has not been used yet that one takes 70 times as long.
        """
        seed = _mixed(self.seed, self.images_seen, self.global_rank, DROPOUT)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def configure_optimizers(self) -> Optimizer:
        """The factory's optimizer over what is trained."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer, self._factor = self.optimizer(trained, self.total_images)
        self._options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return optimizer

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the learning rate of this step, whose images are counted already."""
        step = self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        factor = self._factor(max(self.images_seen - step, 0), step)
        for group, options in zip(optimizer.param_groups, self._options, strict=True):
            group.update(options, lr=options["lr"] * factor)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as Lightning does, by the norm that is known already, inside a fused step where there is one."""
        norm, self.gradient_norm = self.gradient_norm, None
        if norm is None or gradient_clip_val is None or not isinstance(optimizer, Optimizer):  # DeepSpeed's own clips
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        clips = bool(norm > gradient_clip_val)
        if isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults.get("fused") and not self.device_mesh:
            # what a GradScaler would set: the step divides each gradient by it as it reads it
            optimizer.grad_scale = (norm + 1e-6) / gradient_clip_val if clips else None  # type: ignore[attr-defined]
        elif clips:
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)

    def setup(self, stage: str) -> None:
        """Look at the frozen parts while they are whole: a strategy may share them out."""
        self.frozen_parts = self.find_frozen()

    def find_frozen(self) -> dict[str, int]:
        """Checksums of what is not trained and in no checkpoint, by name; here, of frozen parameters."""
        frozen = {name: p for name, p in self.named_parameters() if not p.requires_grad}
        return {"frozen weights": digest(frozen)} if frozen else {}

    def check(self, checkpoint: Mapping[str, Any], where: str) -> None:
        """Raise ValueError, in one line, where a checkpoint's weights are those of another model."""
        check_state(self, checkpoint["state_dict"], where, self._untrained(), shown=3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clock, and by what frozen parts the network was trained, not these themselves."""
        checkpoint["images_seen"], checkpoint["frozen"] = self.images_seen, self.frozen_parts
        for name in self._untrained():
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the clock; ValueError where the weights are those of another model, or were trained by others."""
        where = str(self.trainer.ckpt_path)
        self.check(checkpoint, where)
        others = [name for name, found in checkpoint.get("frozen", {}).items() if self.frozen_parts.get(name) != found]
        if others:
            raise ValueError(
                f"{where} was trained with another {' and '.join(others)}: resume with the one of "
                "then, or start from its weights (denoiser.weights) in another run_dir"
            )
        for state in checkpoint.get("optimizer_states", ()):
            lay_out(self, state)
        self.images_seen = int(checkpoint["images_seen"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False  # the last batch of a run that is now longer is not the last one any more

    def _untrained(self) -> list[str]:
        return [name for name, p in self.named_parameters() if not p.requires_grad]


def _mixed(*numbers: int) -> int:
    """A 63-bit mix of numbers, so that neighbouring steps and ranks draw unrelated noise."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % (1 << 63)
    return mixed
