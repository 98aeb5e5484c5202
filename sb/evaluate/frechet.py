"""Frechet distance between normal fits of features, and the statistics of a reference set kept in a file.

Legend: N pictures, D features, r rank of a covariance.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sb.config import difference
from sb.models.weights import write_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statistics:
    """What a Frechet distance needs of N rows of features, in float64: mean (D,), cov (D, D), count = N.

    network: the description of what made the features; distances between different ones are refused.
    """

    mean: Tensor
    cov: Tensor
    count: int
    network: Mapping[str, Any]

    @classmethod
    def of(cls, rows: Tensor, network: Mapping[str, Any] | None = None) -> "Statistics":
        """Of rows (N, D); ValueError for fewer than two, which have no covariance."""
        if len(rows) < 2:
            raise ValueError(f"a Frechet distance needs at least 2 pictures on each side, not {len(rows)}")
        features = rows.double()
        return cls(features.mean(0), torch.cov(features.T).reshape(rows.shape[1], -1), len(rows), network or {})

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        header = {"count": str(self.count), "network": json.dumps(self.network)}
        write_state({"mean": self.mean, "cov": self.cov}, path, header)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what ``save`` wrote; ValueError that names the file where it holds something else."""
        if not Path(path).is_file():
            raise ValueError(f"no reference statistics at {path}")
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                mean, cov = file.get_tensor("mean"), file.get_tensor("cov")
            if cov.shape != (len(mean), len(mean)):
                raise ValueError(f"mean {tuple(mean.shape)} and cov {tuple(cov.shape)}")
            return cls(mean, cov, int(header["count"]), json.loads(header["network"]))
        except Exception as error:  # a foreign file fails in any way there is
            raise ValueError(f"{path} does not hold reference statistics: {str(error).splitlines()[0]}") from None

    def check_network(self, network: Mapping[str, Any]) -> None:
        """Raise ValueError, with what differs, where another network made these features."""
        if self.network != network:
            raise ValueError(
                f"features of two networks cannot be compared: {difference(dict(self.network), dict(network))}"
            )

    def distance(self, other: "Statistics") -> float:
        """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Frechet, 1957; Heusel et al., 2017), 0 for the same set.

        The trace of the root is the sum of the singular values of ``F_a^T F_b`` where ``A = F_a F_a^T``: no root of an
        unsymmetric matrix, and no error of sqrt(eps) from the null space of a set of fewer than D pictures.
        ValueError where other networks made the features.
        """
        other.check_network(self.network)
        cross = torch.linalg.svdvals(_factor(self.cov).T @ _factor(other.cov)).sum()
        gap = (self.mean - other.mean).square().sum()
        return max(0.0, float(gap + self.cov.trace() + other.cov.trace() - 2 * cross))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between normal fits of two feature sets (N, D): 0 for the same set."""
    return Statistics.of(a).distance(Statistics.of(b))


def warn_if_few(count: int, width: int, name: str) -> bool:
    """Say in the log that N < D pictures leave the covariance singular and the distance biased upwards."""
    if count < width:
        log.warning(
            "%s: %d pictures for %d features: the distance is biased upwards; compare it only with distances of as "
            "many pictures", name, count, width,
        )
    return count < width


def _factor(cov: Tensor) -> Tensor:
    """F (D, r) with ``F F^T`` the covariance, without directions that are nothing but rounding."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
