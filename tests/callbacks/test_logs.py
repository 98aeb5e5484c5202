import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from sb.callbacks.board import grid, tinted
from sb.callbacks.ema import EMA
from sb.callbacks.guard import Guard, NotFiniteError
from sb.callbacks.mask_log import MaskLog
from sb.callbacks.sample_log import SampleLog
from sb.callbacks.speed import Speed
from sb.data.ledger import SkipLedger
from sb.types import Request, Result


def test_mask_log_known_answers(tmp_path, tiny):
    system = tiny.System()
    tiny.trainer(tmp_path, [MaskLog(num_images=2)], 3).fit(system, tiny.Data())
    got = {tag: list(curve.items()) for tag, curve in tiny.scalars(tmp_path).items() if tag.startswith("mask/")}
    # three samples with an object per batch: dice losses 0, .1, .2 at t = 0, 30, 99 of 100
    want = {"mask/dice": 0.9, "mask/dice_band_low": 1.0, "mask/dice_band_mid_low": 0.9, "mask/dice_band_high": 0.8}
    for tag, value in want.items():
        assert got[tag] == [(3 * tiny.BATCH, pytest.approx(value, abs=1e-6))]
    assert "mask/dice_band_mid_high" not in got  # nothing there
    assert {f"mask/iou_level_{i}" for i in range(3)} <= set(got)
    # bilinear upsampling of an exact target keeps it to within its rim
    assert 0.7 < got["mask/iou"][0][1] <= 1
    board = tiny.opened(tmp_path)
    image = board.Images("mask/input_user_predicted_target")
    assert [(e.step, e.width, e.height) for e in image] == [(12, 4 * 10, 2 * 10)]


def test_mask_log_is_silent_without_a_mask_head(tmp_path, tiny):
    class Headless(tiny.System):
        def validation_step(self, batch, index):
            return {**super().validation_step(batch, index), "predicted": None}

    tiny.trainer(tmp_path, [MaskLog()], 3).fit(Headless(), tiny.Data())
    assert not [tag for tag in tiny.scalars(tmp_path) if tag.startswith("mask/")]


def request(seed=0):
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, 2:6, 2:6] = 1
    return Request(torch.full((3, 8, 8), 100, dtype=torch.uint8), mask, "a red disc", level=1.5, seed=seed)


def test_samples_are_painted_with_the_average_and_disturb_nothing(tmp_path, tiny):
    system, painted = tiny.System(), []
    ema = EMA({"slow": {"half_life_images": 50}}, "slow")

    def paint(requests):
        assert isinstance(requests, list)
        painted.append((system.images_seen, torch.equal(system.layer.weight, ema.values("slow")["layer.weight"])))
        torch.rand(7)
        return [Result(r.image + 1, r.image, None if r.seed else r.mask.float(), r.seed) for r in requests]

    log = SampleLog(paint, {"object": [request(0), request(1)], "scene": [request(2)]}, every_images=20)
    drawn = []

    class Draw(Callback):
        def on_train_batch_start(self, *_):
            drawn.append(torch.rand(()).item())

    def draws(folder, callbacks, module):
        drawn.clear()
        torch.manual_seed(0)
        tiny.trainer(folder, [*callbacks, ema, Draw()], 12, num_sanity_val_steps=1).fit(module, tiny.Data())
        return list(drawn)

    without = draws(tmp_path / "a", [], tiny.System())
    assert draws(tmp_path / "b", [log], system) == without and len(without) == 12
    # validations at 12, 24, 36, 48 images, a sheet at the first and where another 20 are complete: one paint per task
    assert painted == [(12, True), (12, True), (24, True), (24, True), (48, True), (48, True)]
    board = tiny.opened(tmp_path / "b")
    sheet = board.Images("samples/object")
    assert [(e.step, e.width, e.height) for e in sheet] == [(12, 4 * 10, 2 * 10), (24, 40, 20), (48, 40, 20)]
    assert [e.height for e in board.Images("samples/scene")] == [10, 10, 10]
    text = board.Tensors("samples/object/text/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| 2 | a red disc | 1.5 | 1 |" in text
    assert log.state_dict() == {"last": 48}


def test_grid_and_tint():
    cells = [torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(3, 5, 3, dtype=torch.uint8)]
    sheet = grid([cells, cells[::-1]])
    assert sheet.shape == (3, 14, 16) and sheet.dtype == torch.uint8
    assert sheet[:, :4, :6].max() == 0 and sheet[:, 5:7].min() == 255
    image, mask = torch.full((3, 2, 2), 10, dtype=torch.uint8), torch.tensor([[[0, 1], [0, 0]]])
    shown = tinted(image, mask)
    assert torch.equal(shown[:, 0, 0], image[:, 0, 0]) and shown[0, 0, 1] > 100


def test_speed_measures_waiting_and_counts_skips(tmp_path, tiny, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sb.callbacks.speed.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def passes(seconds, value=None):
        clock[0] += seconds
        return value

    class Slow(tiny.Data):
        def train_dataloader(self):
            loader = super().train_dataloader()
            loader.collate_fn = lambda batch: passes(3, batch)
            return loader

    system = tiny.System()
    system.hook = lambda module, loss: passes(1, loss)
    system.val_hook = lambda _: passes(100)  # no part of training time, nor is the read behind it
    speed = Speed(every_images=8)
    trainer = tiny.trainer(tmp_path, [speed], 12)
    trainer.fit(system, Slow())
    curves = tiny.scalars(tmp_path)
    # two batches of four images, one second each, and three seconds for each read that counts
    assert curves["speed/images_per_second"] == pytest.approx({8: 1.6, 16: 1.6, 24: 1, 32: 1.6, 40: 1.6, 48: 1})
    assert curves["speed/data_wait"] == pytest.approx({8: 0.6, 16: 0.6, 24: 0.75, 32: 0.6, 40: 0.6, 48: 0.75})
    for tag in ("step_seconds", "step_p50", "step_p95", "step_max"):
        assert set(curves[f"speed/{tag}"].values()) == {1.0}
    assert curves["train/learning_rate"][48] == pytest.approx(0.01 * 0.97**12, rel=0.05)
    assert "speed/tflops" not in curves  # nobody said what a step computes
    assert curves["speed/memory_gib"][40] > 0.05
    assert curves["data/skipped_bad_image"] == {8: 1, 16: 2, 24: 3, 32: 4, 40: 5, 48: 6}
    assert curves["data/val_skipped_bad_image"] == {12: 2, 24: 2, 36: 2, 48: 2}  # of each validation, no sum
    assert {"img/s", "wait"} <= set(trainer.progress_bar_metrics)
    assert speed.state_dict() == {"skipped": {"bad_image": 6}}
    other = Speed(every_images=8)
    other.load_state_dict(speed.state_dict())
    assert other.state_dict() == speed.state_dict()


def test_percentiles_are_of_the_window(tmp_path, tiny, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sb.callbacks.speed.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    took = iter(range(1, 41))

    def hook(module, loss):
        clock[0] += next(took)
        return loss

    system = tiny.System()
    system.hook = hook
    tiny.trainer(tmp_path, [Speed(every_images=80)], 40, limit_val_batches=0).fit(system, tiny.Data())
    curves = tiny.scalars(tmp_path)
    assert curves["speed/step_p50"] == {80: 11, 160: 31} and curves["speed/step_p95"] == {80: 20, 160: 40}
    assert curves["speed/step_max"] == {80: 20, 160: 40} and curves["speed/step_seconds"] == {80: 10.5, 160: 30.5}


def test_share_of_peak_is_flops_times_speed_over_the_peak(tmp_path, tiny, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sb.callbacks.speed.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr("sb.callbacks.speed.matmul_rate", lambda device, dtype: {torch.bfloat16: 8e12}[dtype])
    system = tiny.System()

    def hook(module, loss):
        clock[0] += 2.0
        return loss

    system.hook = hook
    for name, options, share in (("given", {"peak_tflops": 4.0}, 0.5), ("measured", {"precision": "bf16-mixed"}, 0.25)):
        trainer = tiny.trainer(tmp_path / name, [Speed(8, flops=lambda: 10**12, **options)], 4, limit_val_batches=0)
        trainer.fit(system, tiny.Data())
        curves = tiny.scalars(tmp_path / name)
        assert set(curves["speed/tflops"].values()) == {2.0}  # two images a second
        assert set(curves["speed/share_of_peak"].values()) == {share}
    assert {"img/s", "wait", "s", "p95", "GiB", "peak", "loss", "skipped"} == set(trainer.progress_bar_metrics)


def test_norms_are_those_of_the_step_that_completes_an_interval(tmp_path, tiny):
    before, wanted = {}, {}

    class Watch(Callback):
        def on_train_batch_start(self, trainer, system, *_):
            before.update(weights=torch.cat([p.detach().flatten() for p in system.layer.parameters()]))

        def on_train_batch_end(self, trainer, system, *_):
            now = torch.cat([p.detach().flatten() for p in system.layer.parameters()])
            wanted[system.images_seen] = float(now.norm()), float((now - before["weights"]).norm())

    speed = Speed(every_images=1000, norms_every_images=12)
    tiny.trainer(tmp_path, [Watch(), speed], 7, limit_val_batches=0).fit(tiny.System(), tiny.Data())
    curves = tiny.scalars(tmp_path)
    for number, tag in enumerate(("train/weight_norm", "train/update_norm")):
        assert curves[tag] == {n: pytest.approx(wanted[n][number], rel=1e-5) for n in (12, 24)}
    assert speed._norms._before is None  # no copy is kept in between
    tiny.trainer(tmp_path / "b", [Speed(norms_every_images=None)], 7, limit_val_batches=0).fit(
        tiny.System(), tiny.Data()
    )
    assert "train/update_norm" not in tiny.scalars(tmp_path / "b")


@pytest.mark.parametrize("options", [{"every_images": 0}, {"norms_every_images": 0}, {"peak_tflops": 0.0}])
def test_speed_refuses_what_makes_no_sense(options):
    with pytest.raises(ValueError, match=f"speed: {next(iter(options))} must be"):
        Speed(**options)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_norms_of_two_ranks_are_those_of_one(tmp_path, tiny, strategy):
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
import conftest, torch
from pathlib import Path
from sb.callbacks.speed import Speed
from sb.registry import build
ranks = int(sys.argv[1])
class Same(conftest.Stream):  # every rank reads the same, so that two of them take one's steps
    def __iter__(self):
        for n in range(100):
            yield conftest.batch_at(4 * n)
class Data(conftest.Data):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(Same(self.trainer), batch_size=None)
class System(conftest.System):
    def configure_model(self):
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])
strategy = build("strategy", dict(name={strategy!r}), ranks=ranks) if ranks > 1 else "auto"
trainer = conftest.trainer_of(
    Path({str(tmp_path)!r}) / str(ranks), [Speed(norms_every_images=4 * ranks)], 4, devices=ranks, strategy=strategy,
    use_distributed_sampler=False, limit_val_batches=0,
)
trainer.fit(System(), Data())
""")
    curves = []
    for ranks in ("1", "2"):
        done = subprocess.run([sys.executable, str(script), ranks], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        curves.append(tiny.scalars(tmp_path / ranks))
    for tag in ("train/weight_norm", "train/update_norm"):
        one, two = (list(curve[tag].values()) for curve in curves)
        assert len(one) == 4 and two == pytest.approx(one, rel=1e-5)


def nan_at(*bad):
    def hook(module, loss):
        return loss * float("nan") if module.trainer.fit_loop.total_batch_idx in bad else loss
    return hook


def test_guard_skips_one_bad_step_and_logs_the_norm(tmp_path, tiny):
    system = tiny.System()
    system.hook = nan_at(3)
    with pytest.warns(UserWarning, match=r"not finite at step 3, 16 images: loss nan.*key-12, .*skipped \(1 of 3\)"):
        tiny.trainer(tmp_path, [Guard()], 6).fit(system, tiny.Data())
    assert all(p.isfinite().all() for p in system.parameters())
    curve = tiny.scalars(tmp_path)["grad/norm"]
    assert curve[4] > 0 and curve[24] > 0


def test_guard_stops_after_patience(tmp_path, tiny):
    system = tiny.System()
    system.hook = nan_at(2, 4, 5, 6, 7)
    with pytest.warns(UserWarning), pytest.raises(NotFiniteError, match="at step 5, 24 images.*2 in a row: stopped"):
        tiny.trainer(tmp_path, [Guard(patience=2)], 9, limit_val_batches=0).fit(system, tiny.Data())
    assert all(p.isfinite().all() for p in system.parameters())
    with pytest.raises(ValueError, match="patience"):
        Guard(patience=0)


def test_guard_norm_is_the_gradients_norm(tmp_path, tiny):
    norms = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(sum(p.grad.square().sum() for p in pl_module.layer.parameters()).sqrt().item())

    tiny.trainer(tmp_path, [Watch(), Guard()], 3, gradient_clip_val=0.01).fit(tiny.System(), tiny.Data())
    assert list(tiny.scalars(tmp_path)["grad/norm"].values()) == pytest.approx(norms)


def test_guard_leaves_a_scaler_its_start(tmp_path, tiny):
    system = tiny.System()
    system.hook = lambda module, loss: loss * float("nan")
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    with pytest.warns(UserWarning), pytest.raises(NotFiniteError, match="2 in a row"):
        tiny.trainer(tmp_path, [Guard(patience=2)], 9, limit_val_batches=0, plugins=[plugin]).fit(system, tiny.Data())
    assert system.images_seen == 4 * tiny.BATCH  # scales 4 and 2 were not counted, 1 and 1/2 were


def test_guard_stops_rotten_data(tmp_path, tiny):
    ledger = SkipLedger(max_broken_share=0.1, min_samples=16)
    with pytest.raises(ValueError, match="8 of 64 samples are broken"):
        tiny.trainer(tmp_path, [Guard(ledger=ledger)], 20).fit(tiny.System(), tiny.Data())


def test_guard_remembers_the_skips_of_a_resumed_run(tmp_path, tiny):
    first = tiny.trainer(tmp_path, [Guard(ledger=SkipLedger(max_broken_share=0.12, min_samples=60))], 14)
    first.fit(tiny.System(), tiny.Data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    ledger = SkipLedger(max_broken_share=0.12, min_samples=60)
    with pytest.raises(ValueError, match="8 of 64 samples are broken"):
        tiny.trainer(tmp_path / "b", [Guard(ledger=ledger)], 20).fit(
            tiny.System(), tiny.Data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


@pytest.mark.slow
def test_rotten_data_of_one_rank_stops_all(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
import conftest
from pathlib import Path
from sb.callbacks.guard import Guard
from sb.data.ledger import SkipLedger
from sb.types import Skip
from torch.utils.data import DataLoader
here = Path({str(tmp_path)!r})
class Rotten(conftest.Stream):
    def __iter__(self):
        for batch in super().__iter__():
            batch.skipped = [Skip("bad_image", f"b{{i}}") for i in range(2)] if self.trainer.global_rank == 1 else []
            yield batch
class Data(conftest.Data):
    def train_dataloader(self):
        return DataLoader(Rotten(self.trainer), batch_size=None)
guard = Guard(ledger=SkipLedger(max_broken_share=0.2, min_samples=16))
trainer = conftest.trainer_of(here, [guard], 40, devices=2, strategy="ddp", use_distributed_sampler=False)
try:
    trainer.fit(conftest.System(), Data())
except ValueError as error:
    (here / f"rank{{trainer.global_rank}}").write_text(str(error))
""")
    subprocess.run([sys.executable, str(script)], capture_output=True, timeout=200)
    one, two = ((tmp_path / f"rank{rank}").read_text() for rank in (0, 1))
    assert one == two and one.startswith("32 of 128 samples are broken (bad_image 32)") and "b1 (bad_image)" in one
