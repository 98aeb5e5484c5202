"""Cached latents: the samples and the losses of the pictures they were made of, or one line that says why not."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sb import cache, config
from sb.assemble import assemble
from sb.cache import cache_latents
from sb.data.ledger import Broken
from sb.data.pipeline import FixedStream, ShardLoader, TrainStream
from sb.data.verify import check_shards

RUN_FILE = Path(__file__).parents[1] / "configs" / "quickstart_cached.yaml"
SMALL = [
    "image_size=32", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=bf16-mixed",
    "trainer.progress_bar=false", "data.batch_size=4", "data.workers=0", "data.val_images=8", "data.max_area=1.0",
    "data.min_area=0.0", "trainer.images=24", "trainer.val_every_images=24", "vae.weights=null", "vae.widths=8",
    "vae.blocks=1", "denoiser.widths=[16,32]", "denoiser.attention=[false,true]", "denoiser.blocks=1",
    "denoiser.heads=2", "denoiser.groups=8", "text={name: tiny, width: 16, layers: 1, heads: 2, weights: null}",
    "callbacks.sample_log.every_images=24", "inpaint.steps=2",
]
KL = ["vae={name: kl, channels: 8, multipliers: [1, 1, 1], blocks: 1, norm_groups: 4, weights: null}"]


def loaded(shards, *overrides, **splits):
    """The run file with train (and val) read from these folders."""
    places = {"train": shards, "val": None, **splits}
    sources = [f"data.{s}=" + (f"[{{shards: {place}}}]" if place else "[]") for s, place in places.items()]
    return config.load(RUN_FILE, [*SMALL, *sources, *overrides])


@pytest.fixture(scope="module")
def made(shapes_shards, tmp_path_factory):
    """The small shapes world's latents, with texts: {"train": folder, "val": folder}."""
    out = tmp_path_factory.mktemp("latents") / "both"
    cfg = loaded(shapes_shards["train"], val=shapes_shards["val"])
    done = cache_latents(cfg, out, split="both", with_text=True, workers=0)
    assert [m["images"] for m in done.values()] == [96, 16] and done[str(out / "train")]["texts"] > 10
    return {"train": str(out / "train"), "val": str(out / "val")}


def run_of(shards, folder, *overrides, **splits):
    return assemble(loaded(shards, f"run_dir={folder}", *overrides, **splits))


def losses_of(run):
    losses = []
    run.trainer.callbacks[0].on_train_batch_end = lambda t, m, outputs, *_: losses.append(float(outputs["loss"]))
    run.fit()
    return losses


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_cached_samples_are_those_of_the_pictures(made, shapes_shards, tmp_path, workers):
    online, cached = run_of(shapes_shards["train"], tmp_path / "a"), run_of(made["train"], tmp_path / "b")
    both = [
        itertools.islice(ShardLoader(TrainStream(run.data.samples("train"), 16), lambda: 12, workers=workers), 12)
        for run in (online, cached)
    ]
    tower, nobody = cached.system.text, torch.zeros(16, dtype=torch.bool)
    for there, here in zip(*both, strict=True):  # two epochs
        assert (there.key, there.text) == (here.key, here.text) and here.image is None and there.moments is None
        for name in ("level", "task", "outline"):
            assert torch.equal(getattr(there, name), getattr(here, name))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mask = online.system.ladder(there.outline, there.level)
            clean = [run.system.canvas(b, mask, None).clean for run, b in ((online, there), (cached, here))]
            features = tower.encode(here.text)
        assert torch.equal(*clean)
        told = cached.system.told(here, nobody)
        assert torch.equal(told.tokens, features.tokens.bfloat16().float())
        assert torch.equal(told.pooled, features.pooled.bfloat16().float())
        empty = cached.system.told(here, ~nobody)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            nothing = tower.encode([""]).tokens.bfloat16().float()
        assert torch.equal(empty.tokens, nothing.expand_as(empty.tokens))


def test_ranks_and_positions_share_one_sequence(made, tmp_path):
    samples = run_of(made["train"], tmp_path).data.samples("train")

    def facts(stream, count):
        batches = itertools.islice(ShardLoader(stream, lambda: count), count)
        return [(b.key, b.text, b.moments.sum((1, 2, 3)).tolist(), b.outline.sum((1, 2, 3)).tolist()) for b in batches]

    whole = facts(TrainStream(samples, 8), 6)
    ranks = [facts(TrainStream(samples, 8, rank, 2), 3) for rank in range(2)]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole
    assert facts(TrainStream(samples, 8, start=24), 3) == whole[3:]


@pytest.mark.parametrize("other", [[], pytest.param(["system.posterior=sample"], marks=pytest.mark.slow)])
def test_losses_are_those_of_the_pictures(made, shapes_shards, tmp_path, other):
    online = losses_of(run_of(shapes_shards["train"], tmp_path / "a", *other, val=shapes_shards["val"]))
    cached = losses_of(run_of(made["train"], tmp_path / "b", *other, val=made["val"]))
    assert len(online) == 6 and online == cached


@pytest.mark.slow
def test_in_fp32_losses_agree_to_fp16(shapes_shards, tmp_path):
    true = ["trainer.precision=32-true"]
    folder = tmp_path / "latents"
    cache_latents(loaded(shapes_shards["train"], *true), folder, workers=0)
    online = losses_of(run_of(shapes_shards["train"], tmp_path / "a", *true))
    assert losses_of(run_of(folder, tmp_path / "b", *true)) == pytest.approx(online, abs=1e-3)


@pytest.mark.slow
def test_a_posterior_is_drawn_from_its_stored_std(shapes_shards, tmp_path):
    folder = tmp_path / "latents"
    manifest = cache_latents(loaded(shapes_shards["train"], *KL), folder, workers=0)[str(folder)]
    assert manifest["latents"]["vae"]["std"]
    modes, draws = ([*KL, f"system.posterior={kind}"] for kind in ("mode", "sample"))
    online = losses_of(run_of(shapes_shards["train"], tmp_path / "a", *draws))
    assert losses_of(run_of(folder, tmp_path / "b", *draws)) == online
    assert losses_of(run_of(folder, tmp_path / "c", *modes)) != online


def test_a_run_on_latents_alone_validates_shows_and_paints(made, tmp_path):
    run = run_of(made["train"], tmp_path / "run", val=made["val"])
    run.fit()
    assert (run.run_dir / "model" / "meta.json").is_file()
    batch = next(iter(ShardLoader(FixedStream(run.data.samples("val"), 8, 8), lambda: 1)))
    shown = run.system.pictures(batch, [1, 3])
    assert shown.shape == (2, 3, 32, 32) and shown.dtype == torch.uint8


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(made, tmp_path):
    straight = run_of(made["train"], tmp_path / "a", "trainer.images=16", "optimizer.decay=none")
    straight.fit()
    run_of(made["train"], tmp_path / "b", "trainer.images=8", "optimizer.decay=none").fit()
    resumed = run_of(made["train"], tmp_path / "b", "trainer.images=16", "optimizer.decay=none", "resume=auto")
    resumed.fit()
    for (name, a), b in zip(straight.system.state_dict().items(), resumed.system.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("override, says", [
    (["conditioning.encode=masked"], "needs pictures: encode: masked encodes .* set conditioning.encode=full"),
    (["conditioning={name: nine_channel}", "denoiser.with_mask_head=false", "callbacks.mask_log=null"],
     "needs pictures: it shows the picture with the mask greyed out, encoded; conditioning.name=smartbrush"),
    (["image_size=64"], r"differs in image_size \(32 there, 64 now\)"),
    (["data.crop.variants=4"], r"differs in crop.variants \(2 there, 4 now\)"),
    (["data.crop=null"], r"differs in crop \(.*there, null now\)"),
    (["data.flip=0.0"], r"differs in flip \(0.5 there, 0.0 now\)"),
    (["data.max_area=0.5"], r"differs in max_area \(1.0 there, 0.5 now\)"),
    (["seed=1"], r"differs in vae.digest \(\d+ there, \d+ now\); change the run file, or build them anew"),
    (["vae.stages=1"], r"differs in vae.digest"),
    (["text.seed=1"], r"differs in text.digest"),
    (["text.pool=eos"], r"differs in text.digest"),
    (["trainer.precision=32-true"], r'differs in trainer.precision \("bf16-mixed" there, "32-true" now\)'),
    (["system.train_text=true"], r"with text features, and system.train_text changes them; build without --text"),
])
def test_what_does_not_fit_is_refused_in_one_line(made, tmp_path, override, says):
    with pytest.raises(ValueError, match=says) as error:
        run_of(made["train"], tmp_path / "run", *override)
    assert "\n" not in str(error.value) and made["train"] in str(error.value) and not (tmp_path / "run").exists()


def test_pictures_and_latents_do_not_mix(made, shapes_shards, tmp_path):
    both = f"data.train=[{{shards: {made['train']}}}, {{shards: {shapes_shards['train']}}}]"
    with pytest.raises(ValueError, match="holds latents and .* pictures; a run reads one kind"):
        run_of(made["train"], tmp_path, both)
    with pytest.raises(ValueError, match="holds latents and .* pictures; a run reads one kind"):
        run_of(f"[{made['train']}, {shapes_shards['train']}]", tmp_path)


def test_latents_need_their_manifest(made, tmp_path):
    with pytest.raises(ValueError, match="shard-000000.tar/.* holds latents; give its folder, whose manifest"):
        run_of(f"{made['train']}/shard-000000.tar", tmp_path).fit()


def test_a_vae_is_not_trained_on_latents(made, tmp_path):
    vae_run = config.load(RUN_FILE.parent / "quickstart_vae.yaml", [
        *(o for o in SMALL if o.split(".")[0] in ("image_size=32", "trainer", "data")), "image_size=32",
        f"data.train=[{{shards: {made['train']}}}]", "data.val=[]", f"run_dir={tmp_path}/run",
        "data.crop={min_context: 1.0, max_context: 1.0, max_zoom: 1.0, variants: 2}",
    ])
    with pytest.raises(ValueError, match="holds latents; a VAE is trained on pictures"):
        assemble(vae_run)


@pytest.mark.parametrize("overrides, options, says", [
    (["data.crop=null"], {}, "draws a fresh frame for each sample, which cannot be cached"),
    ([], {"batch": 0}, "needs batch >= 1 and workers >= 0, not 0 and 0"),
])
def test_what_cannot_be_cached_is_refused_in_one_line(shapes_shards, tmp_path, overrides, options, says):
    with pytest.raises(ValueError, match=says):
        cache_latents(loaded(shapes_shards["train"], *overrides), tmp_path / "out", workers=0, **options)
    assert not (tmp_path / "out").exists()


def test_latents_are_not_cached_again(made, tmp_path):
    with pytest.raises(ValueError, match="holds latents already; name the pictures' shards: data.train.0.shards=DIR"):
        cache_latents(loaded(made["train"]), tmp_path / "out", workers=0)


def test_latents_beyond_fp16_are_refused(shapes_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("sb.models.tiny_vae.TinyVAE.encode", lambda self, x: cache.facts_of.__globals__["Posterior"](
        torch.full((len(x), 4, x.shape[2] // 4, x.shape[3] // 4), 1e6), torch.zeros(1)))
    with pytest.raises(ValueError, match="leave the range of fp16"):
        cache_latents(loaded(shapes_shards["train"]), tmp_path / "out", workers=0)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_a_build_that_was_killed_goes_on_to_the_same_bytes(made, shapes_shards, tmp_path, monkeypatch):
    out, calls, encode = tmp_path / "out", [], cache._Encoders.moments

    def dies(self, images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(cache._Encoders, "moments", dies)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(loaded(shapes_shards["train"]), out, with_text=True, workers=0)
    assert [p.name for p in out.glob("*.tar")] == ["shard-000000.tar"] and not (out / "manifest.json").exists()
    cache_latents(loaded(shapes_shards["train"]), out, with_text=True, workers=1)
    assert len(calls) == 4 + 4 and contents(out) == contents(made["train"])  # two batches of 16 images to a shard
    before = len(calls)
    cache_latents(loaded(shapes_shards["train"]), out, with_text=True, workers=0)
    assert len(calls) == before
    with pytest.raises(ValueError, match="holds a finished build that differs in latents.text"):
        cache_latents(loaded(shapes_shards["train"]), out, workers=0)


@pytest.mark.slow
def test_broken_images_keep_their_place(broken_set, tmp_path):
    crop = ["data.crop={min_context: 1.0, max_context: 2.0, min_side_px: 8, max_zoom: 1.0, variants: 2}"]
    cfg = loaded(broken_set, *crop)
    manifest = cache_latents(cfg, tmp_path / "out", workers=0)[str(tmp_path / "out")]
    assert sum(manifest["skipped"].values()) == 16 and [s["samples"] for s in manifest["shards"]] == [100] * 4
    online = run_of(broken_set, tmp_path / "a", *crop).data.samples("train")
    cached = run_of(tmp_path / "out", tmp_path / "b", *crop).data.samples("train")
    for j in range(400):
        there, here = online.sample(j), cached.sample(j)
        assert (there.key, there.text, there.level) == (here.key, here.text, here.level)
        assert np.array_equal(there.outline, here.outline)
        assert (there.skipped is None) == (here.skipped is None)


def test_a_text_without_features_is_named(made, tmp_path):
    samples = run_of(made["train"], tmp_path).data.samples("train")
    assert samples.features(["", ""]).shape[0] == 2
    with pytest.raises(ValueError, match="texts.npy has no features of the text 'a walrus'; build it anew"):
        samples.features(["a walrus"])


def test_check_shards_reads_latents(made, tmp_path):
    from sb.data.index import read_index, write_index

    report = check_shards(made["train"])
    assert report.problems == [] and report.samples == 96 and report.formats == {"latents": 96}
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, body in contents(made["train"]).items():
        (copy / name).write_bytes(body)
    tar = copy / "shard-000000.tar"
    members = [sample["members"] for sample in read_index(tar)["samples"]]
    with tar.open("r+b") as file:
        file.seek(members[0]["0.npy"][0] + sum(members[0]["0.npy"][1:]) - 2)
        file.write(np.float16(np.nan).tobytes())
        file.seek(members[1]["1.npy"][0])
        file.write(b"\0" * 8)
        file.seek(members[2]["json"][0])
        file.write(b"?")
        file.truncate(members[31]["0.npy"][0] + 3)
    write_index(tar)
    (copy / "texts.json").write_text(json.dumps(["", "one"]))
    lines = "\n".join(check_shards(str(copy)).problems)
    for wanted in ("0.npy holds numbers that are not finite", "1.npy is no fp16 array of (4, 8, 8)",
                   "json cannot be read", "sha256 is not the one in manifest.json", "numbers for 2 texts"):
        assert wanted in lines, lines


def test_damaged_moments_are_replaced_and_counted(made, tmp_path):
    from sb.data.index import read_index

    copy = tmp_path / "copy"
    copy.mkdir()
    for name, body in contents(made["train"]).items():
        (copy / name).write_bytes(body)
    for sample in read_index(copy / "shard-000001.tar")["samples"]:
        with (copy / "shard-000001.tar").open("r+b") as file:
            file.seek(sample["members"]["0.npy"][0])
            file.write(b"\0" * 8)
    samples = run_of(copy, tmp_path / "run").data.samples("train")
    reasons = [made.skipped.reason for made in map(samples.sample, range(96)) if made.skipped]
    assert set(reasons) == {"bad_moments"} and 8 < len(reasons) < 25


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_cannot_be_reached_stop_the_build_for_a_while(made, shapes_shards, tmp_path, monkeypatch, workers):
    read = cache.ShardStore.read

    def away(self, shard, sample, variant=None):
        if (shard, sample) == (1, 3):
            raise Broken("unreachable", "shard-000001.tar/#3")
        return read(self, shard, sample, variant)

    cfg = loaded(shapes_shards["train"])
    says = "^shard-000001.tar/#3 cannot be read now"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=says) as error:
        patch.setattr(cache.ShardStore, "read", away)
        cache_latents(cfg, tmp_path / "out", with_text=True, workers=workers)
    assert "\n" not in str(error.value)
    cache_latents(cfg, tmp_path / "out", with_text=True, workers=workers)
    assert contents(tmp_path / "out") == contents(made["train"])


def test_an_error_of_the_shards_stops_the_build(shapes_shards, tmp_path, monkeypatch):
    def stale(self, shard, sample, variant=None):
        raise ValueError("delete the stale index")

    monkeypatch.setattr(cache.ShardStore, "read", stale)
    with pytest.raises(ValueError, match="^delete the stale index$"):
        cache_latents(loaded(shapes_shards["train"]), tmp_path / "out", workers=0)


def test_texts_that_are_none_are_left_to_their_task():
    things = [{"label": 3, "captions": ["a", 4]}, {"label": "b", "captions": "c"}, {}]
    assert cache._texts({"caption": ["d"], "captions": ["e", None], "instances": things}) == ["e", "a", "b"]


def test_a_device_that_is_not_there_is_one_line(shapes_shards, tmp_path):
    with pytest.raises(ValueError, match="^device 'cuda:99' cannot be used here: .+$"):
        cache_latents(loaded(shapes_shards["train"]), tmp_path / "out", workers=0, device="cuda:99")
