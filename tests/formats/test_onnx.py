"""ONNX files: onnxruntime computes what PyTorch does at any size, and what it does not compute is never written."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sb.formats import onnx as onnx_files
from sb.models.latents import Autoencoder
from sb.models.tiny_vae import TinyVAE
from sb.models.unet import UNet
from sb.models.vae import KLVAE
from sb.types import Condition

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

TOKENS = (5, 12)
SMALL = {"widths": (8, 16), "blocks": 1, "attention": (False, False), "heads": 2, "groups": 4, "zero_init": False}
FILES = ["unet.onnx", "unet.onnx.data", "vae_decoder.onnx", "vae_decoder.onnx.data"]


@dataclass
class Written:
    folder: Path
    unet: UNet
    vae: Autoencoder
    found: dict[str, float]


def tiny() -> TinyVAE:
    return TinyVAE(stages=1, widths=[8, 8], blocks=1, scale=0.7, shift=-0.2)


@pytest.fixture(scope="module", params=["kl", pytest.param("tiny", marks=pytest.mark.slow)])
def written(request, tmp_path_factory) -> Written:
    """Levels beside a KL VAE, in training mode; no levels beside a tiny one, in bf16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("onnx") / "new" / "folder"
    if request.param == "kl":
        unet = UNet(5, 4, 1, 12, 6, **SMALL)
        nn.init.normal_(unet.class_embedding.weight)
        vae: Autoencoder = KLVAE(channels=8, multipliers=[1, 1, 2], blocks=1, norm_groups=4, scale=0.3, shift=0.5)
    else:
        unet, vae = UNet(9, 4, 0, 12, 0, linear_projection=True, **SMALL).bfloat16(), tiny().bfloat16()
    return Written(folder, unet, vae, onnx_files.write_onnx(folder, unet, vae, TOKENS))


def run(path: Path, **inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).abs().max() < 1e-4 * wanted.std())


def test_the_differences_are_those_of_rounding(written: Written):
    assert list(written.found) == ["unet", "vae_decoder"]
    assert all(0 < figure < 1e-4 for figure in written.found.values())
    assert sorted(path.name for path in written.folder.iterdir()) == FILES
    assert list(written.folder.parent.iterdir()) == [written.folder]
    for module in (written.unet, written.vae):
        assert not module.training and all(p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("batch, height, width", [(1, 2, 2), (4, 6, 14), (2, 16, 4)])
def test_any_batch_and_size(written: Written, batch, height, width):
    unet = written.unet
    x, t = torch.randn(batch, unet.conv_in.in_channels, height, width), torch.randint(1000, (batch,))
    cond = Condition(torch.randn(batch, *TOKENS), None, torch.rand(batch) * 5)
    inputs = {"latents": x, "t": t, "tokens": cond.tokens}
    if unet.class_embedding is not None:
        inputs["class_vector"] = unet.class_vector(cond)
    with torch.no_grad():
        wanted = torch.cat([part for part in unet(x, t, cond) if part is not None], dim=1)
        assert close(run(written.folder / "unet.onnx", **inputs), wanted)
        latents = torch.randn(batch, 4, height + 1, width + 1)  # the decoder has no grid
        assert close(run(written.folder / "vae_decoder.onnx", latents=latents), written.vae.picture(latents))


def test_free_axes_have_names(written: Written):
    def axes(name: str) -> dict[str, list[str | int]]:
        graph = onnx.load(written.folder / name, load_external_data=False).graph
        return {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }

    inside, outside = (9, 4) if written.unet.class_embedding is None else (5, 5)
    levels = {} if written.unet.class_embedding is None else {"class_vector": ["batch", 6]}
    assert axes("unet.onnx") == {
        "latents": ["batch", inside, "2*h", "2*w"], "t": ["batch"], "tokens": ["batch", *TOKENS], **levels,
        "prediction": ["batch", outside, "2*h", "2*w"],
    }
    factor = written.vae.factor
    assert axes("vae_decoder.onnx") == {
        "latents": ["batch", 4, "h", "w"], "picture": ["batch", 3, f"{factor}*h", f"{factor}*w"],
    }


def test_the_folder_can_be_moved(written: Written, tmp_path: Path):
    latents = torch.randn(1, 4, 3, 3)
    shutil.copytree(written.folder, tmp_path / "elsewhere")
    with torch.no_grad():
        wanted = written.vae.picture(latents)
    assert close(run(tmp_path / "elsewhere/vae_decoder.onnx", latents=latents), wanted)
    for name in ("unet.onnx", "vae_decoder.onnx"):
        tensors = onnx.load(written.folder / name, load_external_data=False).graph.initializer
        places = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
        assert places == {f"{name}.data"}
        assert not any("encoder.layers" in t.name or "vae.encoder" in t.name for t in tensors)
        assert str(Path(onnx_files.__file__).parents[1]).encode() not in (written.folder / name).read_bytes()


class Shortcut(UNet):
    """A denoiser that exports in no time, and answers ``factor`` times as much while it is exported."""

    factor = 1.0

    def trunk(self, x: Tensor, t: Tensor, context: Tensor, class_vector: Tensor | None) -> Tensor:
        return self.conv_in(x) * (self.factor if torch.compiler.is_exporting() else 1.0)


class ShiftedVAE(TinyVAE):
    """A decoder whose export is off by 0.05."""

    def picture(self, latents: Tensor) -> Tensor:
        return super().picture(latents) + (0.05 if torch.compiler.is_exporting() else 0.0)


def shortcut(factor: float = 1.0) -> Shortcut:
    unet = Shortcut(5, 4, 1, 12, 6, **SMALL)
    unet.factor = factor
    return unet


@pytest.mark.parametrize("fault, name, figure", [
    ("scale", "unet", r"\de-02"), ("nan", "unet", "nan"), ("vae", "vae_decoder", r"\de-01"),
])
def test_what_onnxruntime_computes_otherwise_is_refused(fault, name, figure, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in FILES:
        (folder / file).write_bytes(b"good")
    torch.manual_seed(0)
    unet = shortcut({"scale": 1.01, "nan": torch.nan, "vae": 1.0}[fault])
    vae = ShiftedVAE(stages=1, widths=8, blocks=1) if fault == "vae" else tiny()
    line = rf"^{name}\.onnx differs from PyTorch by \S*{figure} of .*, more than 1e-03; nothing was written$"
    with pytest.raises(ValueError, match=line) as caught:
        onnx_files.write_onnx(folder, unet, vae, TOKENS)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {file: b"good" for file in FILES}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_network_that_answers_nothing_yet_is_written_over_older_files(tmp_path: Path, capfd):
    for file in (*FILES, "other"):
        (tmp_path / file).write_bytes(b"old")
    unet = shortcut()
    nn.init.zeros_(unet.conv_in.weight)
    nn.init.zeros_(unet.conv_in.bias)
    found = onnx_files.write_onnx(tmp_path, unet, tiny(), TOKENS)
    assert found["unet"] == 0 and found["vae_decoder"] < 1e-4
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.read_bytes() == b"old"] == ["other"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"ONNX files need {package}: pip install -e '\.\[onnx\]'$"):
        onnx_files.write_onnx(tmp_path / "model", shortcut(), tiny(), TOKENS)
    assert not list(tmp_path.iterdir())


def test_another_denoiser_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="only the denoiser 'unet' can be written as ONNX, not a Identity"):
        onnx_files.write_onnx(tmp_path / "model", nn.Identity(), tiny(), TOKENS)
