"""LoRA through one section of a run file: what is trained, what is exported, and what diffusers makes of it."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from sb import config
from sb.assemble import assemble, load_inpainter
from sb.convert import convert
from sb.models.lora import ADAPTER_FILE, add_lora
from sb.models.weights import read_header
from sb.registry import build
from sb.types import Condition

pytest.importorskip("peft")
SMALL = [
    "image_size=32", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.progress_bar=false",
    "data.batch_size=4", "data.workers=0", "data.val_images=4", "trainer.images=8", "trainer.val_every_images=8",
    "vae={name: tiny, latent_channels: 4, stages: 2, widths: [8, 8, 16], blocks: 1, weights: null}",
    "denoiser.blocks=1", "denoiser.widths=[16,32]", "denoiser.attention=[false,true]", "denoiser.heads=2",
    "denoiser.groups=8", "text={name: tiny, width: 16, layers: 1, heads: 2, pool: none}",
    "callbacks.ema.every_images=0",
]
ATTENTION = "to_q", "to_k", "to_v", "to_out.0"


@pytest.fixture(scope="module")
def quickstart(shapes_shards):
    """A run of the quickstart at tiny widths in a folder, and of what a test overrides."""
    shards = [f"data.{split}=[{{shards: {shapes_shards[split]}}}]" for split in ("train", "val")]
    untold = ["denoiser.with_task=false", "data.tasks=[{name: object, weight: 1.0, label_share: 0.25}]"]

    def of(folder, *overrides):
        chosen = [*SMALL, *shards, *untold, f"run_dir={folder}", *overrides]
        return assemble(config.load(config.CONFIGS / "quickstart.yaml", chosen))

    return of


@pytest.fixture(scope="module")
def base(quickstart, tmp_path_factory):
    """The run folder of a model after two steps."""
    folder = tmp_path_factory.mktemp("base") / "run"
    quickstart(folder).fit()
    return folder


@pytest.fixture(scope="module")
def adapt(quickstart, base):
    """A LoRA run on that model, its learning rate so high that two steps show."""
    def of(folder, lora, *overrides):
        starts = [f"{part}.weights={base}" for part in ("vae", "text", "denoiser")]
        return quickstart(folder, *starts, f"lora={lora}", "optimizer.lr=0.05", "optimizer.warmup_images=0", *overrides)

    return of


def state_of(folder, name="unet"):
    return load_file(folder / "model" / f"{name}.safetensors")


def inputs(denoiser):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, denoiser.conv_in.in_channels, 8, 8, generator=generator)
    tokens = torch.randn(2, 5, 16, generator=generator)
    return x, torch.tensor([100.0, 900.0]), Condition(tokens, None, torch.tensor([0.0, 2.5]))


def answers(denoiser):
    denoiser.eval()
    with torch.no_grad():
        return torch.cat(denoiser(*inputs(denoiser)), dim=1)


def unet(**options):
    return build("denoiser", {
        "name": "unet", "widths": [16, 32], "attention": [False, True], "blocks": 1, "heads": 2, "groups": 8,
        "in_channels": 4, "out_channels": 4, "mask_head": 1, "text_width": 16, "level_rows": 3, "zero_init": False,
        **options,
    })


@pytest.mark.parametrize("targets", [ATTENTION, ("conv1", "proj_in", "conv_out", "ff.net.2")])
def test_an_adapted_network_starts_as_the_one_it_adapts(targets):
    denoiser = unet()
    before, names = answers(denoiser), set(denoiser.state_dict())
    adapter = add_lora(denoiser, 2, targets=targets)
    assert torch.equal(answers(denoiser), before)
    assert adapter.merged(denoiser.state_dict()).keys() == names
    trained = {name for name, p in denoiser.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)


@pytest.mark.parametrize("targets", [ATTENTION, ("conv1", "conv2", "proj_in", "conv_shortcut", "time_emb_proj")])
def test_merged_weights_answer_as_the_adapted_network(targets):
    denoiser = unet()
    adapter = add_lora(denoiser, 3, alpha=7.0, targets=targets)
    before = answers(denoiser)
    for name, parameter in denoiser.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = answers(denoiser)
    plain = unet()
    plain.load_state_dict(adapter.merged(denoiser.state_dict()))
    assert (adapted - before).std() > 0.05 * before.std()
    assert (answers(plain) - adapted).abs().max() < 1e-5 * adapted.std()


@pytest.mark.parametrize("also", [[], ["conv_in", "class_embedding"]])
def test_only_the_adapters_and_what_is_named_are_trained(adapt, base, tmp_path, also):
    run = adapt(tmp_path / "run", f"{{rank: 2, also: [{', '.join(also)}]}}")
    before = {name: value.clone() for name, value in run.system.state_dict().items()}
    run.fit()
    after = run.system.state_dict()
    named = [f"denoiser.{name}." for name in also]
    for name in after:
        trained = ".lora_" in name or name.startswith(tuple(named)) if named else ".lora_" in name
        assert torch.equal(before[name], after[name]) != trained, name
    ema = next(callback for callback in run.trainer.callbacks if callback.state_key == "ema")
    assert ema.values("main").keys() == {n for n, p in run.system.named_parameters() if p.requires_grad}
    merged, plain = state_of(tmp_path / "run"), state_of(base)
    assert merged.keys() == plain.keys()
    changed = {name.removesuffix(".weight") for name in merged if not torch.equal(merged[name], plain[name])}
    whole = {name for name in changed if name.removesuffix(".bias") in also}
    assert changed - whole == {name for name in changed if name.endswith(ATTENTION)} and bool(whole) == bool(also)
    meta = json.loads((tmp_path / "run" / "model" / "meta.json").read_text())
    assert meta["adapter"] == {"rank": 2, "alpha": 2.0, "of": str(base), "also": also}


def test_the_model_folder_is_an_ordinary_model(adapt, tmp_path):
    folder = tmp_path / "run"
    run = adapt(folder, "{rank: 2, alpha: 6}")
    run.fit()
    cfg = config.load(folder / "model" / "config.yaml")
    assert cfg.lora is None and config.load(folder / "config.yaml").lora.alpha == 6
    raw = answers(run.system.denoiser)
    painter = load_inpainter(folder / "model" / "unet.raw.safetensors")
    assert (answers(painter.denoiser) - raw).abs().max() < 1e-5 * raw.std()
    averages = next(callback for callback in run.trainer.callbacks if callback.state_key == "ema").values("main")
    run.system.load_state_dict(averages, strict=False)
    averaged = answers(run.system.denoiser)
    assert (answers(load_inpainter(folder).denoiser) - averaged).abs().max() < 1e-5 * averaged.std()
    assert not torch.equal(raw, averaged)


def test_diffusers_loads_the_adapter_onto_the_exported_base(adapt, base, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    adapt(tmp_path / "run", "{rank: 2, alpha: 5}").fit()
    convert(base, tmp_path / "pipe", "diffusers")
    ours, before = (load_inpainter(folder).denoiser for folder in (tmp_path / "run", base))
    x, t, condition = inputs(ours)
    condition.level = torch.tensor([0.0, 2.0])
    with torch.no_grad():
        merged, plain = (torch.cat(denoiser(x, t, condition), dim=1) for denoiser in (ours, before))
    assert (merged - plain).std() > 0.05 * plain.std()

    def check(network):
        with torch.no_grad():
            theirs = network(x, t, condition.tokens, class_labels=condition.level.long()).sample
        assert (theirs - merged).abs().max() < 1e-4 * merged.std()

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe.load_lora_weights(tmp_path / "run" / "model")
    check(pipe.unet)
    network = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "pipe" / "unet")
    network.load_lora_adapter(tmp_path / "run" / "model" / ADAPTER_FILE, prefix="unet")  # reads no header
    check(network)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(adapt, tmp_path):
    lora = "{rank: 2, also: [conv_in]}"
    options = ["trainer.val_every_images=8", "optimizer.decay=none"]
    adapt(tmp_path / "straight", lora, *options, "trainer.images=16").fit()
    adapt(tmp_path / "resumed", lora, *options).fit()
    torch.manual_seed(99)
    adapt(tmp_path / "resumed", lora, *options, "trainer.images=16", "resume=auto").fit()
    for name in ("unet", "unet.raw"):
        one, other = (state_of(tmp_path / folder, name) for folder in ("straight", "resumed"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    one, other = (load_file(tmp_path / folder / "model" / ADAPTER_FILE) for folder in ("straight", "resumed"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_adapters_file_says_its_rank_and_layers(adapt, tmp_path):
    adapt(tmp_path / "run", "{rank: 3, alpha: 6, targets: [attn2.to_k]}").fit()
    file = tmp_path / "run" / "model" / ADAPTER_FILE
    settings = json.loads(read_header(file)["lora_adapter_metadata"])
    assert settings["unet.r"] == settings["unet.lora_alpha"] == 3  # the strength of 2 is in B
    for layer in settings["unet.target_modules"]:
        assert load_file(file)[f"unet.{layer}.lora_A.weight"].shape == (3, 16)


def test_a_trained_text_tower_is_named_beside_the_adapter(adapt, tmp_path):
    adapt(tmp_path / "run", "{rank: 2}", "system.train_text=true").fit()
    assert json.loads((tmp_path / "run" / "model" / "meta.json").read_text())["adapter"]["also"] == ["text"]


def test_what_a_checkpoint_lacks_must_be_trained_whole(quickstart, tmp_path):
    narrow = tmp_path / "narrow"
    quickstart(
        narrow, "denoiser.with_level=false", "denoiser.with_mask_head=false", "callbacks.mask_log=null"
    ).fit()
    starts = [f"denoiser.weights={narrow}", f"run_dir={tmp_path}/run"]
    with pytest.raises(ValueError, match=r"lacks weights of class_embedding, conv_out, which would stay zero; train "
                                         r"them whole: '\+lora.also=\[conv_in,class_embedding,conv_out\]'"):
        quickstart(tmp_path / "run", *starts, "lora={rank: 2, also: [conv_in]}")
    run = quickstart(tmp_path / "run", *starts, "lora={rank: 2, also: [class_embedding, conv_out]}")
    run.fit()
    assert bool((state_of(tmp_path / "run", "unet.raw")["conv_out.weight"][4:] != 0).any())


@pytest.mark.parametrize("lora, says", [
    ("{rank: 0}", "needs rank >= 1, alpha > 0 and dropout in .*, not rank 0"),
    ("{rank: 2, alpha: 0}", "not rank 2, alpha 0"),
    ("{rank: 2, dropout: 1.0}", "dropout 1.0"),
    ("{rank: 2, targets: [to_kk]}", "no linear layer or convolution is called 'to_kk'; did you mean 'to_k'"),
    ("{rank: 2, targets: []}", "targets is empty"),
    ("{rank: 2, also: [conv_int]}", "also names 'conv_int', .* did you mean 'conv_in'"),
    ("{rank: 2, targets: [conv_in], also: [conv_in]}", "also trains conv_in whole, which is a target too"),
    ("{rank: 2, also: conv_in}", "also must be a list of module names, not 'conv_in'"),
    ("{rank: 2, also: [mid_block]}", r"also trains mid_block\.\S*to_q whole"),
    ("{rnk: 2}", "lora has no key 'rnk'; did you mean 'rank'"),
    ("{}", "lora needs 'rank'"),
    ("8", "lora must be a mapping of keys, not 8"),
])
def test_what_is_wrong_is_said_in_one_line(adapt, tmp_path, lora, says):
    with pytest.raises(ValueError, match=says) as error:
        adapt(tmp_path / "run", lora)
    assert "\n" not in str(error.value)


def test_an_adapter_of_random_weights_is_refused(adapt, tmp_path):
    with pytest.raises(ValueError, match="adapts a trained denoiser, and none is named: set denoiser.weights"):
        adapt(tmp_path / "run", "{rank: 2}", "denoiser.weights=null")


def test_an_absent_peft_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"lora: needs peft, which is not installed: pip install -e '.\[lora\]'"):
        add_lora(unet(), 2)


def test_resuming_with_another_rank_or_without_adapters_is_refused(adapt, tmp_path):
    adapt(tmp_path / "run", "{rank: 2}").fit()
    for lora in ("{rank: 4}", "null"):
        with pytest.raises(ValueError, match="last.ckpt does not fit this model") as error:
            adapt(tmp_path / "run", lora, "resume=auto", "trainer.images=16").fit()
        assert "\n" not in str(error.value)
