"""LPIPS (Zhang et al., 2018) without a download: torchmetrics' network and heads on a backbone from a file.

Legend: P pairs, h w pixels.
"""

import re
from typing import Literal

import torch
from torch import Tensor

from sb.diversity import Distance
from sb.models.weights import load_state, no_init, read_state

MIN_PX = 64  # what the deepest of the backbones still gives features for


def lpips_distance(weights: str, net: Literal["alex", "vgg", "squeeze"] = "alex", device: str = "cpu") -> Distance:
    """Two stacks (P, 3, h, w) in [-1, 1] to their distances (P,); smaller pictures are first enlarged to 64 px.

    weights: torchvision's file of the backbone: alexnet for ``alex``, vgg16 for ``vgg``, squeezenet1_1 for
    ``squeeze``. ValueError for weights that do not fit.
    """
    from torchmetrics.functional.image.lpips import _LPIPS  # its public door downloads the backbone

    state = read_state(weights)
    with no_init():
        network = _LPIPS(net=net, pnet_rand=True)
    inside = {name: re.sub(r"^(slices\.)?\w+\.", "features.", name, count=1) for name in network.net.state_dict()}
    missing = [name for name in inside.values() if name not in state]
    if missing:
        raise ValueError(f"lpips: {weights} is not torchvision's backbone of '{net}': it has no {missing[0]}")
    load_state(network.net, {name: state[theirs] for name, theirs in inside.items()}, weights)
    network.to(device)

    @torch.no_grad()
    def distance(one: Tensor, two: Tensor) -> Tensor:
        pair = [picture.to(device) for picture in (one, two)]
        if min(one.shape[-2:]) < MIN_PX:
            size = [max(length, MIN_PX) for length in one.shape[-2:]]
            pair = [torch.nn.functional.interpolate(picture, size, mode="bilinear") for picture in pair]
        return network(*pair).flatten().cpu()

    return distance
