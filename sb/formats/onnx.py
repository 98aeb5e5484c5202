"""The denoiser and the VAE's decoder as ONNX files, for programs without PyTorch.

``unet.onnx`` is one pass through the denoiser: ``latents`` (B, C + k, h, w), what ``sb.conditioning`` makes of noisy
latents and mask; ``t`` (B,) int64, the schedule's time; ``tokens`` (B, T, D), the text; where the denoiser knows levels
or tasks, ``class_vector`` (B, P + S + 1 + tasks) as ``UNet.class_vector`` makes it; to ``prediction`` (B, C + k, h, w),
whose last k channels are the mask head's logits. ``vae_decoder.onnx`` is ``latents`` (B, C, h, w), as denoisers see
them, to ``picture`` (B, 3, H, W), about [-1, 1], not clamped. All are fp32 but ``t``; B, h and w are free, h and w in
multiples of the denoiser's grid. The VAE's encoder, the text tower, schedule, guidance and the paste stay with the
program that calls.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, T tokens, D text width, P pooled
width, S + 1 level rows.
"""

import importlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from sb.models.latents import Autoencoder
from sb.models.unet import UNet

LIMIT = 1e-3  # of the output's std; fp32 in another order of sums is off by 1e-6 to 1e-4
EXPORTED = (2, 2, 3)  # B, then h and w in units of the grid; no 1, which the exporter may take for a constant
CHECKED = ((1, 1, 4), (3, 4, 2))  # other than EXPORTED, so that a size that became a constant shows


class _Graph(NamedTuple):
    """What becomes one file. shapes: of each input, without B, h and w. grid: what h and w are multiples of."""

    name: str
    module: nn.Module
    output: str
    shapes: dict[str, tuple[int, ...]]
    grid: int


class _Trunk(nn.Module):
    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, t: Tensor, tokens: Tensor, class_vector: Tensor | None = None) -> Tensor:
        return self.unet.trunk(latents, t, tokens, class_vector)


class _Decoder(nn.Module):
    def __init__(self, vae: Autoencoder):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.picture(latents)


def write_onnx(folder: Path, denoiser: nn.Module, vae: Autoencoder, tokens: tuple[int, int]) -> dict[str, float]:
    """Write both files, with their weights in a ``.data`` file beside each, once onnxruntime agrees with PyTorch.

    tokens: T and D, which are fixed in the file. Returns by file the largest difference found, relative to the
    output's std. Both modules end up on the CPU, in fp32 and eval mode. Raises ValueError, and leaves the folder as it
    was, for a difference above LIMIT, a denoiser other than ``UNet`` or a missing package.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ValueError(f"ONNX files need {package}: pip install -e '.[onnx]'") from None
    if not isinstance(denoiser, UNet):
        raise ValueError(f"only the denoiser 'unet' can be written as ONNX, not a {type(denoiser).__name__}")
    shapes = {"latents": (denoiser.conv_in.in_channels,), "t": (), "tokens": tokens}
    if denoiser.class_embedding is not None:
        shapes["class_vector"] = (denoiser.pooled_width + denoiser.level_rows + denoiser.task_rows,)
    graphs = (
        _Graph("unet", _Trunk(denoiser), "prediction", shapes, denoiser.grid),
        _Graph("vae_decoder", _Decoder(vae), "picture", {"latents": (vae.latent_channels,)}, 1),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        for graph in graphs:
            path = Path(aside) / f"{graph.name}.onnx"
            _export(graph, path)
            found[graph.name] = _difference(graph, path)
            if not found[graph.name] <= LIMIT:  # nan included
                raise ValueError(
                    f"{path.name} differs from PyTorch by {found[graph.name]:.1e} of its output's std, more than "
                    f"{LIMIT:.0e}; nothing was written"
                )
        folder.mkdir(exist_ok=True)
        for path in sorted(Path(aside).iterdir(), reverse=True):  # the weights before the graph that names them
            os.replace(path, folder / path.name)
    return found


def _inputs(graph: _Graph, size: tuple[int, int, int]) -> dict[str, Tensor]:
    """Random inputs for B, and h and w in units of the grid; of a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    batch, height, width = size
    inputs = {}
    for name, shape in graph.shapes.items():
        if name == "t":
            inputs[name] = torch.randint(1000, (batch,), generator=generator)
        else:
            cells = (height * graph.grid, width * graph.grid) if name == "latents" else ()
            inputs[name] = torch.randn(batch, *shape, *cells, generator=generator)
    return inputs


def _export(graph: _Graph, path: Path) -> None:
    """Write ``path`` and its weights; the file says nothing of this machine's folders, as the exporter's notes do."""
    inputs = _inputs(graph, EXPORTED)
    batch, h, w = Dim("batch"), Dim("h"), Dim("w")
    cells = {2: h, 3: w} if graph.grid == 1 else {2: graph.grid * h, 3: graph.grid * w}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own inside
        program = torch.onnx.export(
            graph.module.cpu().float().eval(), tuple(inputs.values()), dynamo=True, verbose=False,
            input_names=list(inputs), output_names=[graph.output],
            dynamic_shapes=tuple({0: batch, **(cells if name == "latents" else {})} for name in inputs),
        )
    assert program is not None
    program.model.graph.metadata_props.clear()
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(path, external_data=True)


def _difference(graph: _Graph, path: Path) -> float:
    """The largest difference between the file in onnxruntime and the module, in units of the output's std."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst = []
    for size in CHECKED:
        inputs = _inputs(graph, size)
        with torch.no_grad():
            wanted = graph.module(*inputs.values())
        found = torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])
        off = (found - wanted).abs().max() if found.shape == wanted.shape else torch.tensor(torch.inf)
        worst.append(off / wanted.std().clamp(min=1e-6))  # an untrained network may answer 0 everywhere
    return float(torch.stack(worst).max())
