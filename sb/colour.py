"""Colour matching at the border: what a decoder makes of a picture is shifted a little, and that shows beside it.

Around what was painted the decoded picture stands beside the true one; their difference there, carried on into the
painted place, is what a matcher adds. Legend: H W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sb.masks import dilate, gaussian_blur
from sb.registry import register

RING_PX, SIGMA_PX = 8, 6.0
# decoded and true picture (3, H, W) float, painted (1, H, W) in {0, 1} -> the decoded picture, matched
ColourMatch = Callable[[Tensor, Tensor, Tensor], Tensor]


@register("colour_match", "none")
def no_match() -> ColourMatch:
    """The decoded picture as it is."""
    return lambda decoded, picture, painted: decoded


@register("colour_match", "mean")
def mean_match() -> ColourMatch:
    """One shift for each channel: the mean difference in a ring of ``RING_PX`` around what was painted."""

    def match(decoded: Tensor, picture: Tensor, painted: Tensor) -> Tensor:
        ring = dilate(painted[None], RING_PX)[0] * (1 - painted)
        shift = ((picture - decoded) * ring).sum((1, 2), keepdim=True) / ring.sum().clamp(min=1)
        return decoded + shift * painted

    return match


@register("colour_match", "smooth")
def smooth_match() -> ColourMatch:
    """The difference outside, blurred over ``SIGMA_PX`` into what was painted; it fades where none is in reach."""

    def match(decoded: Tensor, picture: Tensor, painted: Tensor) -> Tensor:
        known = 1 - painted
        width = torch.full((len(picture) + 1,), SIGMA_PX, device=decoded.device)
        stacked = torch.cat([(picture - decoded) * known, known])[:, None]  # (4, 1, H, W)
        blurred = gaussian_blur(stacked, width)[:, 0]
        return decoded + painted * blurred[:-1] / blurred[-1:].clamp(min=1e-3)

    return match


@register("colour_match", "membrane")
def membrane_match() -> ColourMatch:
    """The differences along the border, spread inside as evenly as they go: the decoded picture's gradients stay.

    The correction is harmonic inside, which is Poisson image editing (Perez et al., 2003) of the decoded picture into
    the true one.
    """
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import spsolve

    def match(decoded: Tensor, picture: Tensor, painted: Tensor) -> Tensor:
        inside = painted[0] > 0
        count = int(inside.sum())
        if count == 0 or count == inside.numel():
            return decoded
        number = torch.full(inside.shape, -1, dtype=torch.long)
        number[inside.cpu()] = torch.arange(count)
        height, width = inside.shape
        ys, xs = inside.cpu().nonzero(as_tuple=True)
        gap = (picture - decoded).double().cpu()
        known = torch.zeros(count, 3, dtype=torch.float64)
        neighbours = torch.zeros(count, dtype=torch.float64)
        rows, columns = [], []
        for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            y, x = ys + down, xs + right
            there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            neighbours += there
            other = torch.full((count,), -2)
            other[there] = number[y[there], x[there]]
            rows.append((other >= 0).nonzero()[:, 0])
            columns.append(other[other >= 0])
            border = other == -1
            known[border] += gap[:, y[border], x[border]].T
        row, column = torch.cat(rows).numpy(), torch.cat(columns).numpy()
        links = coo_matrix((torch.ones(len(row)).double().numpy(), (row, column)), shape=(count, count))
        spread = spsolve((diags(neighbours.numpy()) - links).tocsc(), known.numpy())
        matched = decoded.clone()
        matched[:, inside] += torch.from_numpy(spread).reshape(count, 3).T.to(decoded)
        return matched

    return match
