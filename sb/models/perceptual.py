"""Perceptual distance: pictures compared by the features of a VGG16 that the user brings as a file.

Legend: B batch, H W pixels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

TAPS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3, relu4_3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels in [0, 1] that VGG16 was trained on


class Perceptual(nn.Module):
    """Frozen VGG16 features up to relu4_3; ``path`` is torchvision's weight file (.pth or .safetensors).

    Raises ValueError where the file is missing or is not a VGG16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str):
        super().__init__()
        if not Path(path).is_file():
            raise ValueError(
                f"perceptual_path: no file {path}; save torchvision's vgg16 weights there, or set it to null"
            )
        self.features = make_layers(cfgs["D"], batch_norm=False)[: TAPS[-1] + 1]
        state = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
        wanted = {name: state.get(f"features.{name}", state.get(name)) for name in self.features.state_dict()}
        missing = [name for name, value in wanted.items() if value is None]
        if missing:
            raise ValueError(f"perceptual_path: {path} is not a torchvision VGG16: it has no 'features.{missing[0]}'")
        self.features.load_state_dict(wanted)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, picture: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance of unit-length features, summed over the taps: (B, 3, H, W) in [-1, 1] -> ()."""
        both = (torch.cat([picture, target]) * 0.5 + 0.5 - self.mean) / self.std
        total = picture.new_zeros((), dtype=torch.float32)
        for i, layer in enumerate(self.features):
            both = layer(both)
            if i in TAPS:
                ours, theirs = F.normalize(both.float(), dim=1).chunk(2)
                total = total + (ours - theirs).square().sum(1).mean()
        return total
