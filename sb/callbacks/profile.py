"""Where the time of a training step goes, operator by operator."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.profiler import ProfilerActivity, profile, schedule

from sb.config import whole, write_whole
from sb.registry import register

MAX_BATCHES = 50  # a trace holds every operator of each


@register("callback", "profile")
class Profile(Callback):
    """Records ``batches`` training batches of rank zero behind the first ``skip_batches``, once.

    ``run_dir/profile`` then holds ``trace.json.gz`` (for chrome://tracing or ui.perfetto.dev) and ``profile.txt``, the
    ``rows`` operators that took longest. Recording slows the batches down: read shares, not seconds.
    """

    def __init__(self, run_dir: str | Path, skip_batches: int = 20, batches: int = 5, rows: int = 40):
        if skip_batches < 0 or not 1 <= batches <= MAX_BATCHES or rows < 1:
            raise ValueError(
                f"profile: needs skip_batches >= 0, 1 to {MAX_BATCHES} batches and rows >= 1, not {skip_batches}, "
                f"{batches} and {rows}"
            )
        self.folder, self.skip_batches, self.batches, self.rows = Path(run_dir) / "profile", skip_batches, batches, rows
        self._seen = 0
        self._running: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._seen == self.skip_batches and self._running is None and trainer.is_global_zero:
            on_gpu = pl_module.device.type == "cuda"
            self._running = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
                schedule=schedule(wait=0, warmup=1, active=self.batches, repeat=1), on_trace_ready=self._write,
            )
            self._running.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += 1
        if self._running is not None and self._seen <= self.skip_batches + self.batches + 1:
            self._running.step()
        if self._seen == self.skip_batches + self.batches + 1:
            self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.stop()

    def _write(self, recorded: Any) -> None:
        with whole(self.folder / "trace.json.gz") as aside:
            unfinished = aside.with_name(aside.name + ".gz")  # the ending says that it is to be compressed
            recorded.export_chrome_trace(str(unfinished))
            unfinished.replace(aside)
        averages = recorded.key_averages()
        device = any(getattr(event, "self_device_time_total", 0) for event in averages)
        order = "self_device_time_total" if device else "self_cpu_time_total"
        text = averages.table(sort_by=order, row_limit=self.rows, max_name_column_width=60)
        write_whole(self.folder / "profile.txt", text.encode())
        rank_zero_info(f"profile: {self.folder}/profile.txt and trace.json.gz")
