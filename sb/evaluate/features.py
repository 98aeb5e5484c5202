"""Feature networks: what turns pictures into rows for a Frechet distance, each from a file that the user names.

Nothing is downloaded. A network describes itself with the digest of its weights, and the report and stored reference
statistics say which one it was.

Legend: B pictures, H W pixels, P side a network looks at, D features, C latent channels, h w latent cells.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sb.config import nearest
from sb.evaluate.crops import resize
from sb.evaluate.oracle import Oracle, crop
from sb.evaluate.painting import by_shape
from sb.formats.source import open_source
from sb.models.perceptual import MEAN, STD
from sb.models.weights import digest, load_state, no_init, read_state
from sb.networks import build_vae
from sb.registry import register

BATCH = 64


@dataclass
class FeatureNetwork:
    """A frozen network as metrics see it; ``module`` takes (B, 3, H, W) uint8 on ``device`` and gives (B, D)."""

    name: str
    module: nn.Module
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.module.requires_grad_(False).eval().to(self.device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 -> (B, D) float32 on the CPU."""
        return torch.cat([self.module(some.to(self.device)).float().cpu() for some in images.split(BATCH)])

    def rows(self, pictures: Sequence[Tensor]) -> Tensor:
        """The same of pictures (3, H, W) that may differ in size, at least one of them."""
        found: list[Tensor] = [torch.empty(0)] * len(pictures)
        for indexes in by_shape(pictures, lambda picture: picture.shape):
            for index, row in zip(indexes, self.features(torch.stack([pictures[i] for i in indexes])), strict=True):
                found[index] = row
        return torch.stack(found)

    def describe(self) -> dict[str, Any]:
        """Name, settings and the digest of the weights, as JSON holds them."""
        return {"name": self.name, **self.settings, "weights": self._digest}

    @cached_property
    def _digest(self) -> int:
        return digest(self.module.state_dict())


class _OracleView(nn.Module):
    """The oracle's features of the whole picture."""

    def __init__(self, oracle: Oracle):
        super().__init__()
        self.oracle = oracle

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        square = torch.tensor([width / 2, height / 2, max(width, height)])
        return self.oracle(crop(images, square.expand(len(images), 3)))[1]


@register("feature network", "oracle")
def oracle(weights: str) -> FeatureNetwork:
    """The shapes world's oracle, from the file that an evaluation on shapes leaves; it runs on the CPU."""
    return FeatureNetwork("oracle", _OracleView(Oracle.load(weights)))


class _PooledLatents(nn.Module):
    """Mean and standard deviation over the cells of each raw latent channel, (B, 2C)."""

    def __init__(self, vae: Any, size_px: int):
        super().__init__()
        self.vae, self.size_px = vae, size_px

    def forward(self, images: Tensor) -> Tensor:
        z = self.vae.encode(resize(images, self.size_px).float() / 127.5 - 1).mean  # (B, C, h, w)
        return torch.cat([z.mean((2, 3)), z.std((2, 3))], 1)


@register("feature network", "autoencoder")
def autoencoder(weights: str, size_px: int = 128, device: str = "cpu") -> FeatureNetwork:
    """Pooled latents of any autoencoder that we read: a tiny one (diffusers' AutoencoderTiny folder, or a pair of
    encoder and decoder files), a VAE, or a model folder's."""
    source = open_source(weights)
    source.part("vae")
    vae = build_vae({"vae": {**source.config["vae"], "weights": weights}})
    if size_px < 2 * vae.factor or size_px % vae.factor:
        raise ValueError(
            f"feature network 'autoencoder': size_px {size_px} must be a multiple of {vae.factor}, at least "
            f"{2 * vae.factor}"
        )
    return FeatureNetwork("autoencoder", _PooledLatents(vae, size_px), {"size_px": size_px}, device)


class Standardised(nn.Module):
    """A network of torchvision behind the pixels' mean and spread that ImageNet's classifiers were trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size_px: int):
        super().__init__()
        self.network, self.size_px = network, size_px
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8, squeezed to P, to what the network gives."""
        return self.network((resize(images, self.size_px).float() / 255 - self.mean) / self.std)


def torchvision_classifier(model: str, weights: str) -> tuple[nn.Module, str]:
    """torchvision's classifier of that name with the weights of a file, and the name of its last linear layer.

    It has as many classes as the file. ValueError for an unknown name, and for weights that do not fit.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        raise ValueError(f"torchvision has no classifier '{model}'; {nearest(model, known)}")
    state = read_state(weights)
    with no_init():
        plain = torchvision.models.get_model(model, weights=None)
        head = [name for name, layer in plain.named_modules() if isinstance(layer, nn.Linear)][-1:]
        if not head or f"{head[0]}.weight" not in state:
            raise ValueError(f"{weights} is not a {model} that ends in a linear layer")
        network = torchvision.models.get_model(model, weights=None, num_classes=len(state[f"{head[0]}.weight"]))
    load_state(network, state, weights)
    return network, head[0]


@register("feature network", "torchvision")
def torchvision_features(model: str, weights: str, size_px: int = 224, device: str = "cpu") -> FeatureNetwork:
    """What goes into the last linear layer of a torchvision classifier, ``resnet50`` for one."""
    network, head = torchvision_classifier(model, weights)
    network.set_submodule(head, nn.Identity())
    return FeatureNetwork("torchvision", Standardised(network, size_px), {"model": model, "size_px": size_px}, device)


@register("feature network", "clip")
def clip(model: str, weights: str | None = None, device: str = "cpu") -> FeatureNetwork:
    """The image embedding of an OpenCLIP model; its ``module`` embeds texts too. model, weights: as ``ClipTower``."""
    from sb.evaluate.clip import ClipTower

    tower = ClipTower(model, weights)
    return FeatureNetwork("clip", tower, {"model": model, "preprocess": tower.preprocess_settings}, device)


class _Inception(nn.Module):
    """torch-fidelity's extractor gives a tuple."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(images)[0]


@register("feature network", "inception")
def inception(weights: str, device: str = "cpu") -> FeatureNetwork:
    """The 2,048 features of the Inception network that published FIDs mean (Heusel et al., 2017), by torch-fidelity.

    weights: its file, ``weights-inception-2015-12-05-6726825d.pth``.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError("feature network 'inception' needs torch-fidelity: pip install -e '.[evaluate]'") from None
    tensors_alone = io.BytesIO()  # torch-fidelity itself would run what a file brings
    torch.save(read_state(weights), tensors_alone)
    tensors_alone.seek(0)
    try:
        with no_init():
            extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], tensors_alone)
    except RuntimeError as error:
        raise ValueError(f"{weights} is not torch-fidelity's Inception: {str(error).splitlines()[0]}") from None
    return FeatureNetwork("inception", _Inception(extractor), {}, device)
