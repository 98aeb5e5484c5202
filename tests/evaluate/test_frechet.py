"""Frechet distance: known distances, scipy's and torch-fidelity's figures on the same features, and kept statistics."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sb.evaluate.frechet import Statistics, frechet_distance, warn_if_few

NETWORK = {"name": "probe", "weights": 7, "size_px": 32}


def features(count, width=48, seed=0):
    """Correlated, of uneven variance and off the origin, as networks' features are."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return mixed * torch.logspace(0, -3, width) + torch.rand(width, generator=generator)


def test_known_distances():
    normal = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(normal, normal) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(normal, normal + 2) == pytest.approx(12, rel=1e-6)
    spread = float(torch.cov(normal.double().T).trace())
    assert frechet_distance(normal, 3 * normal) == pytest.approx(
        4 * spread + 4 * float(normal.double().mean(0).square().sum()), rel=1e-6
    )
    assert frechet_distance(normal[:, :1], normal[:, :1] + 1) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("count", [400, 30])  # more and fewer pictures than features
def test_the_distance_is_scipys_and_torch_fidelitys(count):
    linalg = pytest.importorskip("scipy.linalg")
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = features(count), features(count + 20, seed=1)
    found = frechet_distance(a, b)
    one, two = (fidelity.fid_features_to_statistics(rows.double()) for rows in (a, b))
    theirs = fidelity.fid_statistics_to_metric(one, two, False)["frechet_inception_distance"]
    product = one["sigma"] @ two["sigma"]
    root = np.trace(linalg.sqrtm(product + 1e-14 * np.eye(len(product))).real)
    gap = np.square(one["mu"] - two["mu"]).sum()
    assert found == pytest.approx(theirs, rel=1e-3)
    assert found == pytest.approx(gap + np.trace(one["sigma"]) + np.trace(two["sigma"]) - 2 * root, rel=1e-3)


@pytest.mark.parametrize("count", [400, 10])
def test_a_set_is_no_distance_from_itself(count):
    rows = features(count)
    assert frechet_distance(rows, rows.flip(0)) < 1e-9 * float(rows.double().var(0).sum())
    flat = torch.ones(5, 4)
    assert frechet_distance(flat, flat) == 0 and frechet_distance(flat, flat + 1) == pytest.approx(4)


def test_one_picture_has_no_spread():
    with pytest.raises(ValueError, match="at least 2 pictures on each side, not 1"):
        frechet_distance(features(1), features(10))


def test_kept_statistics_give_the_same_distance(tmp_path):
    rows, path = features(100), tmp_path / "reference.safetensors"
    reference, here = Statistics.of(rows, NETWORK), Statistics.of(features(90, seed=1), NETWORK)
    reference.save(path)
    again = Statistics.load(path)
    assert (again.count, again.network) == (100, NETWORK)
    assert here.distance(again) == here.distance(reference)


def test_statistics_of_another_network_are_refused(tmp_path):
    rows = features(20)
    one, other = Statistics.of(rows, NETWORK), Statistics.of(rows, {**NETWORK, "weights": 8})
    with pytest.raises(ValueError, match=r"two networks cannot be compared: weights \(8 there, 7 now\)"):
        one.distance(other)


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no reference statistics at"):
        Statistics.load(tmp_path / "none.safetensors")
    save_file({"mean": torch.zeros(3), "cov": torch.zeros(3, 2)}, tmp_path / "odd.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("odd", "text"):
        with pytest.raises(ValueError, match=f"{name}.safetensors does not hold reference statistics"):
            Statistics.load(tmp_path / f"{name}.safetensors")


def test_few_pictures_are_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert not warn_if_few(64, 64, "fid") and not caplog.records
        assert warn_if_few(63, 64, "fid")
    assert "fid: 63 pictures for 64 features: the distance is biased upwards" in caplog.text
