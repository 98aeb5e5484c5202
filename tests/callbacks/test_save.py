import errno

import pytest
import torch

from sb.callbacks.ema import EMA
from sb.callbacks.guard import NotFiniteError
from sb.callbacks.save import Save, SaveError
from sb.launch import EndOfImages

STEPS = 12


def callbacks(folder, **options):
    ema = EMA({"slow": {"half_life_images": 30, "warmup_share": 0.5}}, "slow")
    return [Save(folder, **{"every_images": 8, **options}), ema]  # the wrong way round: Lightning puts Save last


def run(tiny, folder, steps, system=None, resume=None, trainer_options=None, **options):
    system = system or tiny.System()
    both = callbacks(folder, **options)
    trainer = tiny.trainer(folder, both, steps, **(trainer_options or {}))
    trainer.fit(system, tiny.Data(), ckpt_path=resume)
    return system, both[1]


def state(system, ema):
    optimizer = system.trainer.optimizers[0].state_dict()["state"]
    return {
        "weights": {n: p.detach().clone() for n, p in system.named_parameters()}, "ema": ema.values("slow"),
        "optimizer": {f"{i}.{k}": torch.as_tensor(v) for i, s in optimizer.items() for k, v in s.items()},
        "lr": torch.tensor(system.trainer.optimizers[0].param_groups[0]["lr"]),
    }


def assert_bit_equal(a, b):
    for name, value in a.items():
        if isinstance(value, dict):
            assert_bit_equal(value, b[name])
        else:
            assert torch.equal(value, b[name]), name


def keys_after(tiny, images):
    return [f"key-{j}" for j in range(images, STEPS * tiny.BATCH)]


@pytest.fixture
def straight(tmp_path, tiny):
    return state(*run(tiny, tmp_path / "straight", STEPS))


@pytest.mark.parametrize("steps", [2, 6, 7, 8])  # 6: a validation falls on it; 7: only the save at the end
def test_resume_from_last_equals_the_straight_run(tmp_path, tiny, straight, steps):
    run(tiny, tmp_path, steps)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["images_seen"] == steps * tiny.BATCH
    system, ema = run(tiny, tmp_path, STEPS, resume=checkpoint)
    assert system.keys == keys_after(tiny, steps * tiny.BATCH)
    assert_bit_equal(state(system, ema), straight)


@pytest.mark.parametrize("name, images", [("images-000000016.ckpt", 16), ("images-000000032.ckpt", 32)])
def test_resume_from_a_kept_checkpoint_equals_the_straight_run(tmp_path, tiny, straight, name, images):
    run(tiny, tmp_path, STEPS, keep_images=16)
    system, ema = run(tiny, tmp_path / "b", STEPS, resume=tmp_path / "checkpoints" / name)
    assert system.keys == keys_after(tiny, images)
    assert_bit_equal(state(system, ema), straight)


def test_resume_from_best_equals_the_straight_run(tmp_path, tiny, straight):
    run(tiny, tmp_path, 9)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    system, ema = run(tiny, tmp_path / "b", STEPS, resume=tmp_path / "checkpoints" / "best.ckpt")
    assert system.keys == keys_after(tiny, best["images_seen"]) and best["callbacks"]["save"]["best"] > 0
    assert_bit_equal(state(system, ema), straight)


def test_accumulation_resumes_exactly(tmp_path, tiny):
    options = {"accumulate_grad_batches": 2, "val_check_interval": 4}
    want = state(*run(tiny, tmp_path / "a", 6, trainer_options=options))
    run(tiny, tmp_path / "b", 3, trainer_options=options)
    resume = tmp_path / "b" / "checkpoints" / "last.ckpt"
    assert torch.load(resume, weights_only=True)["images_seen"] == 6 * tiny.BATCH
    assert_bit_equal(state(*run(tiny, tmp_path / "b", 6, resume=resume, trainer_options=options)), want)


@pytest.mark.parametrize("where", ["train", "validation"])
def test_an_interrupted_run_resumes_exactly(tmp_path, tiny, straight, where):
    system = tiny.System()

    def fail(module, loss=None):
        if module.images_seen == 6 * tiny.BATCH:
            raise RuntimeError("the power went")
        return loss

    system.hook, system.val_hook = (fail, None) if where == "train" else (None, fail)
    with pytest.raises(RuntimeError, match="the power went"):
        run(tiny, tmp_path, STEPS, system=system, every_images=1000)
    system, ema = run(tiny, tmp_path, STEPS, resume=tmp_path / "checkpoints" / "last.ckpt", every_images=1000)
    assert system.keys == keys_after(tiny, 6 * tiny.BATCH)
    assert_bit_equal(state(system, ema), straight)


def test_an_interruption_behind_the_count_trains_the_batch_again(tmp_path, tiny, straight):
    system = tiny.System()

    def fail(*_):
        if system.images_seen == 5 * tiny.BATCH:  # training_step has counted it, no optimizer step was made
            raise KeyboardInterrupt

    system.on_after_backward = fail
    with pytest.raises(SystemExit):
        run(tiny, tmp_path, STEPS, system=system, every_images=1000)
    system, ema = run(tiny, tmp_path, STEPS, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert system.keys == keys_after(tiny, 4 * tiny.BATCH)
    assert_bit_equal(state(system, ema), straight)


def test_a_loss_that_is_not_finite_is_not_saved(tmp_path, tiny):
    system = tiny.System()

    def fail(module, loss):
        if module.images_seen == 3 * tiny.BATCH:
            raise NotFiniteError("loss is nan")
        return loss

    system.hook = fail
    with pytest.raises(NotFiniteError):
        run(tiny, tmp_path, STEPS, system=system)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["images_seen"] == 8


def full_after(monkeypatch, saves):
    """The disk fills while the checkpoint after this many is half written."""
    count = [0]
    whole = torch.save

    def save(checkpoint, file):
        count[0] += 1
        if count[0] <= saves:
            return whole(checkpoint, file)
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(tmp_path, tiny, monkeypatch):
    full_after(monkeypatch, 1)
    with pytest.raises(SaveError, match=r"disk is full: cannot write .*last.ckpt \(.* older checkpoints are intact"):
        run(tiny, tmp_path, STEPS, monitor=None)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["images_seen"] == 8


def test_a_device_that_is_really_full(tmp_path, tiny):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".writing.ckpt").symlink_to("/dev/full")
    with pytest.raises(SaveError, match="disk is full"):
        run(tiny, tmp_path, STEPS, monitor=None)
    assert not list(folder.iterdir())


def test_export_gets_raw_and_ema_by_name(tmp_path, tiny):
    calls = []

    def export(model_dir, weights):
        calls.append((model_dir, {kind: {n: v.clone() for n, v in w.items()} for kind, w in weights.items()}))

    system, ema = run(tiny, tmp_path, 6, export=export, monitor=None)
    assert len(calls) == 4  # three intervals, and the end
    model_dir, weights = calls[-1]
    assert model_dir == tmp_path / "model" and set(weights) == {"ema", "raw"}
    assert_bit_equal(weights["raw"], system.state_dict())
    assert_bit_equal(ema.values("slow"), weights["ema"])
    assert weights["ema"].keys() == weights["raw"].keys()


def test_best_keeps_the_best_and_the_keys_are_checked(tmp_path, tiny):
    system = tiny.System(lr=3.0)  # overshoots: a later validation is worse
    run(tiny, tmp_path, 6, system=system, monitor="val/loss")
    curve = tiny.scalars(tmp_path)["val/loss"]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["images_seen"] == min(curve, key=curve.get) < 6 * tiny.BATCH
    assert best["callbacks"]["save"]["best"] == pytest.approx(min(curve.values()))
    with pytest.raises(ValueError, match="monitor 'val/los' is not logged in validation; there is: .*val/loss"):
        run(tiny, tmp_path / "b", 9, monitor="val/los")
    with pytest.raises(ValueError, match="every_images must be at least 1"):
        Save(tmp_path, every_images=0)
    with pytest.raises(ValueError, match="mode 'least'"):
        Save(tmp_path, every_images=1, mode="least")


def test_mode_max_wants_more(tmp_path, tiny):
    run(tiny, tmp_path, 6, monitor="val/loss", mode="max")
    curve = tiny.scalars(tmp_path)["val/loss"]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["images_seen"] == max(curve, key=curve.get)


def test_the_model_folder_is_written_after_the_last_validation(tmp_path, tiny):
    order = []
    system = tiny.System()
    system.val_hook = lambda module: order.append("validation")
    run(tiny, tmp_path, 6, system=system, every_images=24, monitor=None, export=lambda *_: order.append("export"))
    assert order == ["validation"] * 2 + ["export"] + ["validation"] * 2 + ["export"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["images_seen"] == 24


@pytest.mark.parametrize("keep", [0, 3000, -100])
def test_a_checkpoint_that_is_cut_off_is_one_line(tmp_path, tiny, keep):
    run(tiny, tmp_path, 2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"last.ckpt is not a readable checkpoint \(.*put another one") as error:
        run(tiny, tmp_path, 4, resume=last)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [6, 12])  # in the middle, and at the end of the run
def test_a_validation_that_was_cut_short_is_made_up_for(tmp_path, tiny, straight, steps):
    """A run that dies in a validation behind its save: the curve, the best score and the weights miss nothing."""
    total = STEPS * tiny.BATCH

    def fit(system, resume=None):
        both = callbacks(tmp_path)
        tiny.trainer(tmp_path, [*both, EndOfImages(total)], 10**9).fit(system, tiny.Data(), ckpt_path=resume)
        return system, both[1]

    def die(module):
        if module.images_seen == steps * tiny.BATCH:
            raise NotFiniteError("stands for a kill: nothing more is saved")

    system = tiny.System()
    system.val_hook = die
    with pytest.raises(NotFiniteError):
        fit(system)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["callbacks"]["save"]["due"]
    assert_bit_equal(state(*fit(tiny.System(), last)), straight)
    whole, curve = (tiny.scalars(folder)["val/loss"] for folder in (tmp_path / "straight", tmp_path))
    assert curve == whole
    done = torch.load(last, weights_only=True)
    assert done["images_seen"] == total and not done["callbacks"]["save"]["due"]
    best = [
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["images_seen"]
        for folder in (tmp_path, tmp_path / "straight")
    ]
    assert best[0] == best[1]
    before = last.stat().st_mtime_ns
    again, _ = fit(tiny.System(), last)  # complete, and left as it is
    assert last.stat().st_mtime_ns == before and again.keys == []


def test_an_interruption_amid_accumulation_resumes_exactly(tmp_path, tiny):
    options = {"accumulate_grad_batches": 2, "val_check_interval": 4}
    want = state(*run(tiny, tmp_path / "a", 6, trainer_options=options))
    system = tiny.System()

    def fail(module, loss):
        if module.images_seen == 7 * tiny.BATCH:  # the second half of the fourth step
            raise RuntimeError("the power went")
        return loss

    system.hook = fail
    with pytest.raises(RuntimeError, match="the power went"):
        run(tiny, tmp_path / "b", 6, system=system, trainer_options=options, every_images=1000)
    resume = tmp_path / "b" / "checkpoints" / "last.ckpt"
    assert torch.load(resume, weights_only=True)["images_seen"] == 6 * tiny.BATCH
    assert_bit_equal(state(*run(tiny, tmp_path / "b", 6, resume=resume, trainer_options=options)), want)
