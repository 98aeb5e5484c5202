import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from sb.callbacks.ema import EMA


def ema_of(half_life=100.0, share=None):
    return EMA({"slow": {"half_life_images": half_life, "warmup_share": share}}, "slow")


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Jump(Callback):
    """Sets the weights to a constant after the start: a step response."""

    def on_train_start(self, trainer, pl_module):
        with torch.no_grad():
            for p in pl_module.layer.parameters():
                p.fill_(1.0)


def test_after_one_half_life_half_of_the_old_value_is_left(tmp_path, tiny):
    ema, system = ema_of(half_life=5 * tiny.BATCH), tiny.System(lr=0.0)
    start = weights(system)
    tiny.trainer(tmp_path, [ema, Jump()], 5).fit(system, tiny.Data())
    for name, value in ema.values("slow").items():
        torch.testing.assert_close(value, (start[name] + 1) / 2, rtol=1e-5, atol=1e-6)
    assert set(ema.values("slow")) == {"layer.weight", "layer.bias"}  # nothing frozen


def test_warm_up_forgets_the_start_and_ends(tmp_path, tiny):
    ema, system = EMA({"a": {"half_life_images": 40, "warmup_share": 0.5}}, "a"), tiny.System(lr=0.0)
    start = weights(system)["layer.weight"]
    tiny.trainer(tmp_path, [ema, Jump()], 30).fit(system, tiny.Data())
    left = 1.0
    for step in range(1, 31):
        left *= 0.5 ** (tiny.BATCH / min(40, 0.5 * step * tiny.BATCH))
    torch.testing.assert_close(ema.values("a")["layer.weight"], 1 + (start - 1) * left, rtol=1e-5, atol=1e-6)


def test_accumulation_averages_once_per_optimizer_step(tmp_path, tiny):
    ema, system = ema_of(half_life=8 * tiny.BATCH), tiny.System(lr=0.0)
    start = weights(system)["layer.weight"]
    tiny.trainer(tmp_path, [ema, Jump()], 4, accumulate_grad_batches=2).fit(system, tiny.Data())
    assert system.images_seen == 8 * tiny.BATCH
    torch.testing.assert_close(ema.values("slow")["layer.weight"], (start + 1) / 2, rtol=1e-5, atol=1e-6)


def test_validation_sees_the_average_and_raw_comes_back(tmp_path, tiny):
    ema, system, seen = ema_of(), tiny.System(), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.raw = weights(pl_module)

        def on_validation_batch_end(self, trainer, pl_module, *_):
            assert ema.swapped
            seen.append(torch.equal(pl_module.layer.weight, ema.values("slow")["layer.weight"]))
            assert not torch.equal(pl_module.layer.weight, self.raw["layer.weight"])
            checkpoint = trainer._checkpoint_connector.dump_checkpoint()
            assert torch.equal(checkpoint["state_dict"]["layer.weight"], self.raw["layer.weight"])
            assert torch.equal(ema.raw()["layer.weight"], self.raw["layer.weight"])

        def on_train_batch_start(self, trainer, pl_module, batch, index):
            assert index == 0 or equal(weights(pl_module), self.raw)

    tiny.trainer(tmp_path, [Watch(), ema], 8).fit(system, tiny.Data())
    assert seen == [True] * 4 and not ema.swapped


def test_bf16_weights_leave_the_average_in_fp32(tmp_path, tiny):
    ema, system, kept = ema_of(), tiny.System(lr=0.1), []

    class Watch(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            kept.append({name: v.clone() for name, v in ema.values("slow").items()})

        def on_validation_end(self, trainer, pl_module):
            assert equal(kept[-1], ema.values("slow"))

    tiny.trainer(tmp_path, [ema, Watch()], 7, precision="bf16-true").fit(system, tiny.Data())
    assert system.layer.weight.dtype == torch.bfloat16 and kept
    value = ema.values("slow")["layer.weight"]
    assert value.dtype == torch.float32 and not torch.equal(value, value.bfloat16().float())


def test_an_exception_in_validation_leaves_raw_weights(tmp_path, tiny):
    ema, system, raw = ema_of(), tiny.System(), {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            raw.update(weights(pl_module))

    def fail(_):
        assert ema.swapped
        raise RuntimeError("validation broke")

    system.val_hook = fail
    with pytest.raises(RuntimeError, match="validation broke"):
        tiny.trainer(tmp_path, [Watch(), ema], 8).fit(system, tiny.Data())
    assert equal(weights(system), raw) and not ema.swapped


def test_restore_is_by_name_and_says_what_is_wrong(tmp_path, tiny):
    ema, system = ema_of(), tiny.System()
    trainer = tiny.trainer(tmp_path / "a", [ema], 4)
    trainer.fit(system, tiny.Data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["ema"]
    assert equal(state["averages"]["slow"], ema.values("slow")) and state["images"] == 4 * tiny.BATCH

    def refuse(other, match, change=None):
        content = torch.load(tmp_path / "a.ckpt", weights_only=True)
        values = content["callbacks"]["ema"]["averages"]["slow"]
        if change:
            change(values)
        torch.save(content, tmp_path / "b.ckpt")
        with pytest.raises(ValueError, match=match):
            tiny.trainer(tmp_path / "b", [other], 6).fit(tiny.System(), tiny.Data(), ckpt_path=tmp_path / "b.ckpt")

    refuse(EMA({"fast": {"half_life_images": 9}}, "fast"), "averages slow and this run asks for fast")
    refuse(ema_of(), "lacks 'layer.bias'", lambda v: v.pop("layer.bias"))
    refuse(ema_of(), "has also 'other'", lambda v: v.update(other=torch.ones(1)))
    refuse(ema_of(), r"'layer.bias' is \(5,\) and the model's is \(2,\)",
           lambda v: v.update({"layer.bias": torch.ones(5)}))


def test_trainer_validate_runs_on_the_saved_average(tmp_path, tiny):
    ema = ema_of()
    trainer = tiny.trainer(tmp_path, [ema], 4)
    trainer.fit(tiny.System(), tiny.Data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    seen = []
    system = tiny.System()
    system.val_hook = lambda module: seen.append(weights(module)["layer.weight"])
    tiny.trainer(tmp_path / "b", [ema_of()], 4).validate(system, tiny.Data(), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(seen[0], ema.values("slow")["layer.weight"])


@pytest.mark.parametrize("averages, primary, match", [
    ({"a": {"half_life_images": 5}}, "b", "primary 'b' is none of the averages a"),
    ({"a": {"half_life": 5}}, "a", "did you mean 'half_life_images'"),
    ({"a": {}}, "a", "needs half_life_images > 0, not None"),
    ({"a": {"half_life_images": 5, "warmup_share": 0}}, "a", "warmup_share must be > 0"),
    ({"a": {"half_life_images": 5, "start_images": -1}}, "a", "start_images must be >= 0"),
])
def test_bad_settings(averages, primary, match):
    with pytest.raises(ValueError, match=match):
        EMA(averages, primary)


@pytest.mark.slow
def test_two_ranks_hold_the_same_average(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
import torch, conftest
from pathlib import Path
from sb.callbacks.ema import EMA
from sb.callbacks.save import Save
from sb.callbacks.speed import Speed
from sb.callbacks.mask_log import MaskLog
here = Path({str(tmp_path)!r})
ema = EMA({{"slow": {{"half_life_images": 50}}}}, "slow")
callbacks = [ema, Speed(every_images=16), MaskLog(), Save(here, every_images=16)]
trainer = conftest.trainer_of(here, callbacks, 8, devices=2, strategy="ddp", use_distributed_sampler=False)
system = conftest.System()
trainer.fit(system, conftest.Data())
torch.save({{"ema": ema.values("slow"), "raw": system.state_dict(), "keys": system.keys, "images": system.images_seen}},
           here / f"rank{{trainer.global_rank}}.pt")
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert equal(one["ema"], two["ema"]) and equal(one["raw"], two["raw"])
    assert not set(one["keys"]) & set(two["keys"]) and one["images"] == 8 * 4 * 2
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert equal(last["callbacks"]["ema"]["averages"]["slow"], one["ema"])
    assert last["images_seen"] == 64 and last["callbacks"]["speed"]["skipped"] == {"bad_image": 16}
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_where_and_how_often_is_checked():
    for wrong in ({"every_images": -1}, {"device": "gpu"}):
        with pytest.raises(ValueError, match="ema: needs every_images >= 0 and device cpu or null"):
            EMA({"a": {"half_life_images": 5}}, "a", **wrong)


def test_several_averages_start_when_they_are_told(tmp_path, tiny):
    """Until its start an average is the weights; the other one has its own half life."""
    ema = EMA(
        {"late": {"half_life_images": 8, "warmup_share": None, "start_images": 3 * tiny.BATCH},
         "slow": {"half_life_images": 20, "warmup_share": None}}, "late",
    )
    system = tiny.System(lr=0.0)
    start = weights(system)["layer.weight"]
    seen = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:  # before the start: back to the old weights, which the late average follows
                seen["late"] = ema.values("late")["layer.weight"].clone()
                with torch.no_grad():
                    pl_module.layer.weight.copy_(start)

    tiny.trainer(tmp_path, [Jump(), ema, Watch()], 4).fit(system, tiny.Data())
    assert torch.equal(seen["late"], torch.ones(2, 3))
    torch.testing.assert_close(ema.values("late")["layer.weight"], (start + 1) / 2)  # two steps, one half life
    kept = [0.5 ** (tiny.BATCH / 20)] * 4
    want = start
    for step, decay in enumerate(kept):
        want = want * decay + (torch.ones(2, 3) if step < 2 else start) * (1 - decay)
    torch.testing.assert_close(ema.values("slow")["layer.weight"], want, rtol=1e-5, atol=1e-6)


def test_rare_updates_keep_the_half_life_and_resume(tmp_path, tiny):
    """Every three steps once, on the CPU: half of the old value is left after one half life all the same."""
    ema = EMA(
        {"slow": {"half_life_images": 6 * tiny.BATCH, "warmup_share": None}}, "slow", every_images=3 * tiny.BATCH,
        device="cpu",
    )
    system = tiny.System(lr=0.0)
    start = weights(system)["layer.weight"]
    tiny.trainer(tmp_path, [ema, Jump()], 8).fit(system, tiny.Data())  # updates after steps 3 and 6
    torch.testing.assert_close(ema.values("slow")["layer.weight"], (start + 1) / 2, rtol=1e-5, atol=1e-6)
    assert ema.state_dict()["images"] == 6 * tiny.BATCH
