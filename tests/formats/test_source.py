"""What published checkpoints are taken for, and that our networks then compute the published ones' functions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sb.assemble import load_inpainter
from sb.formats.source import open_source
from sb.inpaint import _noise
from sb.models.text import clean_text
from sb.registry import build
from sb.types import Condition, Request

SHARED = Path(__file__).parents[3] / "shared/data"
KINDS = ["sd1", "sd2", "sd1_inpainting"]


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference relative to the spread of the published answer."""
    return float((ours - theirs).abs().max() / theirs.std())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_every_network_computes_what_the_published_one_does(published, compvis, tmp_path, kind, form):
    folder, parts = published(kind)
    if form == "file":
        save_file(compvis(kind), tmp_path / "sd.safetensors")
        # SD2's single files do not say what they predict
        painter = load_inpainter(_told(tmp_path / "sd.safetensors") if kind == "sd2" else tmp_path / "sd.safetensors")
    else:
        painter = load_inpainter(folder)
    compare(painter, folder, parts)
    assert painter.schedule.prediction == ("v" if kind == "sd2" else "eps")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_at_full_width(published, kind):
    folder, parts = published(kind, full_width=True)
    painter = load_inpainter(folder)
    compare(painter, folder, parts)
    if kind == "sd1_inpainting":
        compare_a_request(painter, folder, parts, size_px=128)
    shutil.rmtree(folder)


def compare(painter, folder, parts):
    """UNet, VAE both ways, tokens and text tower against diffusers and transformers in fp32."""
    maker = torch.Generator().manual_seed(1)
    unet, vae = parts["unet"], parts["vae"]
    x = torch.randn(2, unet.config.in_channels, 8, 16, generator=maker)
    t, tokens = torch.tensor([3, 900]), torch.randn(2, 7, unet.config.cross_attention_dim, generator=maker)
    ours = painter.denoiser(x, t, Condition(tokens, None, torch.zeros(2)))[0]
    assert apart(ours, unet(x, t, encoder_hidden_states=tokens).sample) <= 1e-4
    image = torch.rand(2, 3, 32, 64, generator=maker) * 2 - 1
    theirs, found = vae.encode(image).latent_dist, painter.vae.encode(image)
    assert apart(found.mean, theirs.mean) <= 1e-4 and apart(found.std, theirs.std) <= 1e-4
    assert torch.allclose(painter.vae.latents(image), theirs.mean * 0.18215, atol=1e-4)
    z = torch.randn(2, 4, 8, 8, generator=maker)
    assert apart(painter.vae.decode(z), vae.decode(z).sample) <= 1e-4
    ids = _published_tokens(folder, ["“a cat”  &amp; more", ""])
    assert torch.equal(painter.text.tokenize(["“a cat”  &amp; more", ""]), ids)
    assert apart(painter.text(ids).tokens, parts["text_encoder"](ids)[0]) <= 1e-4


def _told(path):
    """The same file beside a way to say what it predicts: our own copy of it."""
    from sb.convert import convert

    convert(path, path.parent / "told", "sb", prediction="v")
    return path.parent / "told"


def _published_tokens(folder, texts):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    cleaned = [clean_text(text) for text in texts]
    return tokenizer(cleaned, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def test_a_whole_inpainting_request_is_the_published_pipelines(published):
    folder, parts = published("sd1_inpainting")
    compare_a_request(load_inpainter(folder), folder, parts, size_px=64)


def test_a_published_model_knows_its_size(published):
    folder, _ = published("sd1_inpainting")
    config = folder / "unet" / "config.json"
    told = json.loads(config.read_text())
    assert load_inpainter(folder).native_px == told["sample_size"] * load_inpainter(folder).vae.factor
    config.write_text(json.dumps({**told, "sample_size": None}))
    assert load_inpainter(folder).native_px == 512


def compare_a_request(painter, folder, parts, size_px):
    """Ten steps of DDIM, the same noise and the same posterior, before our paste, of the whole picture."""
    painter.native_px = None
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    pipe = diffusers.StableDiffusionInpaintPipeline(
        **parts, tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"), safety_checker=None,
        feature_extractor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    maker = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (3, size_px, size_px), generator=maker).float()
    image = torch.nn.functional.avg_pool2d(image[None], 5, 1, 2)[0].to(torch.uint8)
    mask = torch.zeros(1, size_px, size_px, dtype=torch.uint8)
    mask[:, 13:41, 20:57] = 1  # off the grid: the pipeline samples one pixel of a cell
    ours = painter.paint([Request(image, mask, "a red cat", seed=5)], steps=10, guidance=7.5)[0]
    masked, cells = (image.float() / 127.5 - 1) * (mask == 0), size_px // painter.vae.factor
    theirs = pipe(
        prompt="a red cat", image=image.float()[None] / 255, mask_image=mask[None].float(), height=size_px,
        width=size_px, num_inference_steps=10, guidance_scale=7.5, strength=1.0, output_type="pt",
        latents=_noise(5, (4, cells, cells))[None], masked_image_latents=painter.vae.latents(masked[None]),
    ).images[0]
    apart_by = (theirs * 255 - ours.decoded.float()).abs()
    assert float((apart_by <= 1).float().mean()) >= 0.999
    assert torch.equal(ours.pixels[(mask == 0).expand(3, -1, -1)], image[(mask == 0).expand(3, -1, -1)])


def test_a_text_to_image_model_paints_and_keeps_what_is_outside(published):
    painter = load_inpainter(published("sd1")[0])
    image = torch.full((3, 32, 32), 90, dtype=torch.uint8)
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, 8:20, 8:20] = 1
    result = painter.paint([Request(image, mask, "a cat")], steps=2)[0]
    assert bool((result.pixels[:, mask[0] == 0] == 90).all()) and not bool((result.pixels == 90).all())


def test_average_or_raw_where_a_file_holds_both(compvis, tmp_path):
    entries = compvis("sd1")
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value + 1
        for name, value in entries.items() if name.startswith("model.diffusion_model.")
    }
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    extras = {"alphas_cumprod": torch.ones(1000), "cond_stage_model.transformer.text_model.embeddings.position_ids":
              torch.arange(77)[None]}
    torch.save({"state_dict": entries | averages | counts | extras}, tmp_path / "sd.ckpt")
    bias = {}
    for weights in ("ema", "raw"):
        source = open_source(tmp_path / "sd.ckpt", weights)
        own = {"conv_out.bias": torch.empty(4)}
        part = source.part("unet")
        part.tensors = {key: part.tensors[key] for key in part.layout("conv_out.bias").names}
        bias[weights] = part.state(own)["conv_out.bias"]
        assert {"alphas_cumprod", *extras} <= set(source.extras)
    assert torch.equal(bias["ema"], bias["raw"] + 1)
    assert torch.equal(bias["raw"], entries["model.diffusion_model.out.2.bias"])


def test_old_lightning_pickles_are_read_without_running_them(compvis, tmp_path):
    import sys
    import types

    names = "pytorch_lightning.callbacks.model_checkpoint"
    modules = {names.rsplit(".", i)[0]: types.ModuleType("x") for i in range(3)}
    kind = type("ModelCheckpoint", (), {"__module__": names})
    modules[names].ModelCheckpoint = kind
    sys.modules.update(modules)
    try:
        beside = {kind: {"best": np.float64(1.5), "at": kind()}}
        torch.save({"state_dict": compvis("sd1"), "callbacks": beside}, tmp_path / "sd.ckpt")
    finally:
        for name in modules:
            sys.modules.pop(name)
    assert open_source(tmp_path / "sd.ckpt").parts.keys() == {"unet", "vae", "text"}


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Evil()}, tmp_path / "sd.ckpt")
    with pytest.raises(ValueError, match="not a readable weights file"):
        open_source(tmp_path / "sd.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_wrong_tensors_are_named_by_the_files_names_and_no_others(compvis, tmp_path, kind):
    from sb.convert import convert

    entries = compvis(kind)
    unet = "model.diffusion_model."
    entries[f"{unet}middle_block.0.in_layers.2.wieght"] = entries.pop(f"{unet}middle_block.0.in_layers.2.weight")
    del entries["first_stage_model.encoder.mid.attn_1.k.weight"]
    bent = "cond_stage_model.model.ln_final.bias" if kind == "sd2" else (
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.k_proj.bias"
    )
    entries[bent] = torch.zeros(3)
    faults = {"unet": ["middle_block.0.in_layers.2.weight", "middle_block.0.in_layers.2.wieght"],
              "vae": ["encoder.mid.attn_1.k.weight"], "text": [bent]}
    save_file(entries, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "sd.safetensors", tmp_path / "out", "sb", prediction="eps")
    assert all(name in str(error.value) for names in faults.values() for name in names)
    assert "2 missing" in str(error.value) and "1 unexpected" in str(error.value)
    assert "1 of another shape" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_stranger_among_the_tensors_is_named(compvis, tmp_path):
    save_file(compvis("sd1") | {"control_model.weight": torch.ones(1)}, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match="1 unexpected: control_model.weight"):
        open_source(tmp_path / "sd.safetensors")


def test_sd2_files_must_be_told_what_they_predict(compvis, tmp_path):
    save_file(compvis("sd2"), tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match="does not say what it predicts"):
        open_source(tmp_path / "sd.safetensors").sections()
    with pytest.raises(ValueError, match="does not say what it predicts"):
        load_inpainter(tmp_path / "sd.safetensors")
    assert open_source(tmp_path / "sd.safetensors", prediction="v").config["schedule"]["prediction"] == "v"


def test_autoencoders_alone(published, compvis, tmp_path):
    folder, parts = published("sd1")
    entries = {name.removeprefix("first_stage_model."): value for name, value in compvis("sd1").items()
               if name.startswith("first_stage_model.")}
    save_file(entries, tmp_path / "vae.safetensors")
    save_file(parts["vae"].state_dict(), tmp_path / "diffusers.safetensors")
    old = parts["vae"].state_dict()
    for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        old = {name.replace(new, before): value for name, value in old.items()}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text((folder / "vae" / "config.json").read_text())
    torch.save(old, tmp_path / "old" / "diffusion_pytorch_model.bin")
    for place in (tmp_path / "vae.safetensors", tmp_path / "diffusers.safetensors", folder / "vae", tmp_path / "old"):
        source = open_source(place)
        spec = source.config["vae"]
        assert (spec["channels"], list(spec["multipliers"]), spec["scale"]) == (32, [1, 2], 0.18215)
        state = source.part("vae").state(parts["vae"].state_dict())
        assert all(torch.equal(state[name], value) for name, value in parts["vae"].state_dict().items())


def test_tiny_autoencoders_as_a_folder_and_as_a_pair(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 3, decoder_block_out_channels=(16,) * 3, num_encoder_blocks=(1, 3, 3),
        num_decoder_blocks=(3, 3, 1), latent_channels=5,
    ).eval()
    theirs.save_pretrained(tmp_path / "tiny")
    pair = tmp_path / "pair"
    pair.mkdir()
    state = theirs.state_dict()
    bare = {name.removeprefix("encoder.layers."): v for name, v in state.items() if name.startswith("encoder")}
    torch.save(bare, pair / "taesd_encoder.pth")
    numbered = [(*name.split(".", 3)[2:], value) for name, value in state.items() if name.startswith("decoder")]
    shifted = {f"{int(number) + 1}.{rest}": value for number, rest, value in numbered}  # theirs counts the tanh
    torch.save(shifted, pair / "taesd_decoder.pth")
    from sb.models.tiny_vae import TinyVAE

    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with pytest.raises(ValueError, match="holds several autoencoders"):
        for half in ("encoder", "decoder"):
            shutil.copy(pair / f"taesd_{half}.pth", tmp_path / f"one_{half}.pth")
            shutil.copy(pair / f"taesd_{half}.pth", tmp_path / f"two_{half}.pth")
        open_source(tmp_path)
    for place in (tmp_path / "tiny", pair):
        source = open_source(place)
        spec = {key: value for key, value in source.config["vae"].items() if key != "name"}
        ours = TinyVAE(**spec)
        ours.load_state_dict(source.part("vae").state(ours.state_dict()))
        assert spec["latent_channels"] == 5 and spec["blocks"] == [1, 3, 3]
        latents = theirs.encode(image).latents
        assert torch.allclose(ours.latents(image), latents, atol=1e-5)
        assert torch.allclose(ours.picture(latents), theirs.decode(latents).sample, atol=1e-5)


def test_pruned_files_keep_two_counters_of_their_average(compvis, tmp_path):
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    save_file(compvis("sd1") | counts, tmp_path / "sd.safetensors")
    source = open_source(tmp_path / "sd.safetensors")
    assert set(source.extras) == set(counts) and "model.diffusion_model.out.2.bias" in source.part("unet").tensors


def test_old_folders_do_not_name_stable_diffusions_scale(published, tmp_path):
    shutil.copytree(published("sd1")[0], tmp_path / "pipe")
    place = tmp_path / "pipe" / "vae" / "config.json"
    config = json.loads(place.read_text())
    del config["scaling_factor"]
    place.write_text(json.dumps(config))
    assert load_inpainter(tmp_path / "pipe").vae.scale == 0.18215


@pytest.mark.parametrize("spoil, says", [
    (lambda pipe: (pipe / "unet" / "config.json").write_text("{}"), "is not whole: KeyError 'down_block_types'"),
    (lambda pipe: (pipe / "vae" / "config.json").write_text("[]"), "holds no mapping"),
    (lambda pipe: (pipe / "vae" / "config.json").write_text("{"), "is not readable"),
    (lambda pipe: shutil.rmtree(pipe / "text_encoder"), "no config.json in .*text_encoder"),
    (lambda pipe: (pipe / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "no weights in .*unet"),
    (lambda pipe: (pipe / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"xx"), "not a readable weights"),
])
def test_what_is_not_whole_is_one_line(published, tmp_path, spoil, says):
    shutil.copytree(published("sd1")[0], tmp_path / "pipe")
    spoil(tmp_path / "pipe")
    with pytest.raises(ValueError, match=says) as error:
        open_source(tmp_path / "pipe")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02]q\x00."])
def test_files_that_hold_no_tensors_are_one_line(tmp_path, content):
    (tmp_path / "sd.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable weights file"):
        open_source(tmp_path / "sd.ckpt")


@pytest.mark.parametrize("weights, prediction", [("average", None), ("ema", "epsilon")])
def test_choices_are_checked(published, weights, prediction):
    with pytest.raises(ValueError, match="weights must be ema or raw, prediction eps or v"):
        open_source(published("sd1")[0], weights, prediction)
    with pytest.raises(ValueError, match="says that it predicts eps: leave out"):
        open_source(published("sd1")[0], prediction="v")


@pytest.mark.parametrize("change, says", [
    ({"addition_embed_type": "text_time"}, "no Stable Diffusion 1 or 2 UNet"),
    ({"in_channels": 7}, "7 channels in and 4 out are neither"),
    ({"num_class_embeds": 3}, "class embedding but no smartbrush.json"),
])
def test_other_structures_are_refused(published, tmp_path, change, says):
    shutil.copytree(published("sd1")[0], tmp_path / "pipe")
    place = tmp_path / "pipe" / "unet" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    with pytest.raises(ValueError, match=says):
        open_source(tmp_path / "pipe")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    for place, says in ((tmp_path, "that is known here"), (tmp_path / "nothing", "at .*nothing")):
        with pytest.raises(ValueError, match=f"no checkpoint {says}"):
            open_source(place)


@pytest.mark.parametrize("photos", [4, pytest.param(71, marks=pytest.mark.slow)])
def test_taef2_reconstructs_photos_as_published(photos):
    if not (SHARED / "taef2").is_dir():
        pytest.skip("the shared data folder is absent")
    source = open_source(SHARED / "taef2")
    spec = source.config["vae"]
    assert (spec["latent_channels"], spec["blocks"], spec["pooled"]) == (32, [1, 3, 3, 3], True)
    vae = build("vae", spec)
    vae.load_state_dict(source.part("vae").state(vae.state_dict()))
    decibel = []
    for path in sorted((SHARED / "coco-mini-256/val/images").iterdir())[:photos]:
        photo = Image.open(path).convert("RGB")
        left, top = (photo.width - 256) // 2, (photo.height - 256) // 2
        pixels = np.array(photo.crop((left, top, left + 256, top + 256)))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            error = vae.decode(vae.encode(image).mean).clamp(-1, 1) - image
        decibel.append(float(10 * torch.log10(4 / error.square().mean())))
    assert len(decibel) == photos and min(decibel) > 19
    assert 28.6 <= np.mean(decibel) <= 28.8 if photos == 71 else 24 < np.mean(decibel) < 34
