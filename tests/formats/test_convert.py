"""In and out again: every pair of formats gives every tensor back, bit for bit, and says what it left where."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sb.assemble import load_inpainter
from sb.convert import convert
from sb.formats import write
from sb.formats.source import open_source
from sb.registry import register
from sb.types import Request
from tests.test_tools import tool

ROUTES = [("diffusers", "d", "single-file", "s.safetensors"), ("single-file", "s.safetensors", "diffusers", "d")]


def tensors(painter) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value for name in ("vae", "text", "denoiser")
        for key, value in getattr(painter, name).state_dict().items()
    }


def files(folder) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files, by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": value
        for path in sorted(folder.rglob("*.safetensors")) for name, value in load_file(path).items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd1_inpainting"])
@pytest.mark.parametrize("first, place, second, further", ROUTES)
def test_a_diffusers_folder_comes_back_whole(published, tmp_path, kind, first, place, second, further):
    folder, _ = published(kind)
    convert(folder, tmp_path / "sb", "sb")
    convert(tmp_path / "sb", tmp_path / place, first)
    convert(tmp_path / place, tmp_path / further, second)
    convert(tmp_path / further, tmp_path / "back", "diffusers")
    original = files(folder)
    back = files(tmp_path / "back")
    prefix = "text_encoder/model.safetensors:"
    if not any(name.startswith(f"{prefix}text_model.") for name in original):  # transformers drops it, we write it
        back = {name.replace(f"{prefix}text_model.", prefix): value for name, value in back.items()}
    assert same(original, back)
    one, other = load_inpainter(folder), load_inpainter(tmp_path / further)
    assert same(tensors(one), tensors(other))
    assert one.schedule.prediction == other.schedule.prediction
    assert one.denoiser.conv_in.in_channels == other.denoiser.conv_in.in_channels


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd1_inpainting"])
@pytest.mark.parametrize("to, place", [("sb", "m"), ("diffusers", "d")])
def test_a_single_file_comes_back_whole(compvis, tmp_path, kind, to, place):
    entries = {name: value.half() for name, value in compvis(kind).items()}  # and keeps its dtype
    extras = {"betas": torch.ones(3), "cond_stage_model.model.logit_scale": torch.ones(())}
    save_file(entries | extras, tmp_path / "sd.safetensors")
    prediction = "v" if kind == "sd2" else None
    report = convert(tmp_path / "sd.safetensors", tmp_path / place, to, prediction=prediction)
    assert any("left out: betas, cond_stage_model.model.logit_scale" in line for line in report)
    if kind == "sd2" and to == "diffusers":  # folders have no place for the last layer and the projection
        assert any("kept beside: sb.text.transformer.text_projection" in line for line in report)
    convert(tmp_path / place, tmp_path / "back.safetensors", "single-file")
    assert same(entries, load_file(tmp_path / "back.safetensors"))
    assert open_source(tmp_path / "back.safetensors").config["schedule"]["prediction"] == (prediction or "eps")


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd1_inpainting"])
def test_diffusers_loads_what_we_write_and_answers_the_same(published, compvis, tmp_path, kind):
    diffusers = pytest.importorskip("diffusers")
    _, parts = published(kind)
    save_file(compvis(kind), tmp_path / "sd.safetensors")
    convert(tmp_path / "sd.safetensors", tmp_path / "out", "diffusers", prediction="v" if kind == "sd2" else None)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe).__name__ == (
        "StableDiffusionInpaintPipeline" if kind == "sd1_inpainting" else "StableDiffusionPipeline"
    )
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipe, name).state_dict(), parts[name].state_dict()
        assert same(ours, theirs)
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    assert pipe.tokenizer.model_max_length == 77
    assert pipe.tokenizer.pad_token_id == (0 if kind == "sd2" else 49407)


@pytest.mark.parametrize("route", [["diffusers"], ["single-file"], ["diffusers", "single-file", "sb"]])
def test_a_model_of_ours_comes_back_whole_and_paints_the_same(trained_model, tmp_path, route):
    place = trained_model
    for step, to in enumerate(route):
        target = tmp_path / f"{step}{'.safetensors' if to == 'single-file' else ''}"
        convert(place, target, to)
        place = target
    one, other = load_inpainter(trained_model), load_inpainter(place)
    assert same(tensors(one), tensors(other))
    image, mask = torch.full((3, 32, 32), 90, dtype=torch.uint8), torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, 8:20, 8:24] = 1
    request = Request(image, mask, "a star", level=2.0)
    first, second = (painter.paint([request], steps=2)[0] for painter in (one, other))
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.predicted, second.predicted)


def test_raw_weights_by_choice(trained_model, tmp_path):
    convert(trained_model, tmp_path / "ema", "sb")
    convert(trained_model, tmp_path / "raw", "sb", weights="raw")
    ema, raw = (load_file(tmp_path / name / "unet.safetensors") for name in ("ema", "raw"))
    assert same(raw, load_file(trained_model / "model" / "unet.raw.safetensors")) and not same(ema, raw)


def test_a_vae_alone(published, tmp_path):
    folder, parts = published("sd1")
    convert(folder / "vae", tmp_path / "sb", "sb")
    convert(tmp_path / "sb", tmp_path / "vae", "diffusers")
    diffusers = pytest.importorskip("diffusers")
    back = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert same(back.state_dict(), parts["vae"].state_dict()) and back.config.scaling_factor == 0.18215
    with pytest.raises(ValueError, match="holds vae and cannot paint"):
        load_inpainter(tmp_path / "sb")
    for place, to in ((folder / "unet", "sb"), (folder / "vae", "onnx")):
        with pytest.raises(ValueError, match="convert a whole model, or a VAE alone|needs a whole model"):
            convert(place, tmp_path / "x", to)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_onnx_of_a_whole_model(trained_model, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    report = convert(trained_model, tmp_path / "onnx", "onnx")
    assert [line.split(" differs")[0] for line in report if "onnxruntime" in line] == [
        "unet: onnxruntime", "vae_decoder: onnxruntime"
    ]
    inputs = onnx_inputs(tmp_path / "onnx" / "unet.onnx")
    assert inputs["class_vector"][1] == 16 + 6 + 3  # the pooled text, a row for each level and each task
    assert not any("kept beside" in line for line in report)


def onnx_inputs(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {each.name: each.shape for each in session.get_inputs()}


@pytest.mark.parametrize("to, place", [("diffusers", "d"), ("single-file", "s.safetensors")])
def test_a_models_plugins_are_imported_wherever_it_goes(trained_model, tmp_path, monkeypatch, to, place):
    (tmp_path / "acme_words.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(trained_model / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    config.write_text(config.read_text().replace("plugins: []", "plugins: [acme_words]"))
    convert(tmp_path / "model", tmp_path / place, to)
    del sys.modules["acme_words"]
    load_inpainter(tmp_path / place)
    assert "acme_words" in sys.modules


def test_a_denoiser_of_another_kind_has_no_place_in_their_formats(own_registry, tmp_path):
    register("denoiser", "acme")(torch.nn.Linear)
    config = {"vae": {"name": "kl"}, "text": {"name": "clip", "width": 8, "layers": 1, "heads": 1},
              "denoiser": {"name": "acme"}, "schedule": {"name": "scaled_linear"}}
    with pytest.raises(ValueError, match="no place for the denoiser 'acme'"):
        write.write_single_file(tmp_path / "x.safetensors", {"vae": {}, "unet": {}, "text": {}}, config, {})


def test_half_a_model_is_not_taken_for_a_vae(trained_model, tmp_path):
    shutil.copytree(trained_model / "model", tmp_path / "half")
    (tmp_path / "half" / "unet.raw.safetensors").unlink()
    with pytest.raises(ValueError, match="holds vae and text of vae, text, unet"):
        convert(tmp_path / "half", tmp_path / "x", "diffusers", weights="raw")


def test_a_lone_tiny_vae_of_two_widths_comes_back_with_them(trained_model, tmp_path):
    (tmp_path / "vae").mkdir()
    for name in ("vae.safetensors", "config.yaml", "meta.json"):
        shutil.copy(trained_model / "model" / name, tmp_path / "vae" / name)
    convert(tmp_path / "vae", tmp_path / "out", "diffusers")
    convert(tmp_path / "out", tmp_path / "back", "sb")
    assert same(*(load_file(tmp_path / name / "vae.safetensors") for name in ("vae", "back")))
    pytest.importorskip("diffusers").AutoencoderTiny.from_pretrained(tmp_path / "out")


def test_what_is_known_of_a_model_goes_with_it(trained_model, tmp_path):
    for to, place in (("diffusers", "d"), ("single-file", "s.safetensors")):
        convert(trained_model, tmp_path / place, to)
        convert(tmp_path / place, tmp_path / f"back-{to}", "sb")
        meta = load_inpainter(tmp_path / f"back-{to}").about
        assert meta["images_seen"] == 8 and meta["tasks"] == ["object", "text_to_image", "remove"]


@pytest.mark.parametrize("to, target, says", [
    ("difusers", "new", "did you mean 'diffusers'"), ("single-file", "new.ckpt", "written as .safetensors"),
    ("sb", "there", "there exists"),
])
def test_bad_targets_are_refused(trained_model, tmp_path, to, target, says):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=says):
        convert(trained_model, tmp_path / target, to)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_tool_reports_and_fails_in_one_line(trained_model, tmp_path, capsys):
    assert tool("convert_weights", trained_model, tmp_path / "out.safetensors", "--to", "single-file") == 0
    assert "kept beside: sb.text.standardise.mean" in capsys.readouterr().out
    assert tool("convert_weights", tmp_path, tmp_path / "other", "--to", "sb") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
