"""Pooled metrics: any set of rows has a distance, and a stored reference stands in for real pictures."""

import logging
import math

import pytest
import torch

from sb.evaluate.frechet import frechet_distance
from sb.evaluate.frechet_metrics import Fid, LocalFid
from sb.evaluate.features import FeatureNetwork


class Means(torch.nn.Module):
    """The mean colour, through a layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, images):
        return self.layer(images.float().mean((2, 3)))


@pytest.fixture
def network():
    return FeatureNetwork("means", Means())


def test_rows_are_of_results_and_of_real_pictures(network, paintings):
    painted = paintings(6)
    for painting in painted:
        painting.pixels = painting.picture
    rows = Fid(network).features(painted)
    assert torch.equal(rows["fake"], network.rows([painting.picture for painting in painted]))
    assert torch.equal(rows["real"], network.rows([painting.real for painting in painted]))
    assert Fid(network).pooled(**rows)["fid"] == pytest.approx(frechet_distance(rows["fake"], rows["real"]))


def test_the_local_distance_is_of_the_masks_box(network, paintings):
    painted = paintings(6)
    for painting in painted:
        painting.mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        painting.mask[:, 16:48, 16:48] = 1
        painting.pixels = torch.where(painting.mask > 0, painting.real, 255 - painting.real)
    metric = LocalFid(network, side_px=16, context=1.0)
    assert metric.pooled(**metric.features(painted))["local_fid"] < 1e-6
    metric = LocalFid(network, side_px=16, context=1.5)
    assert metric.pooled(**metric.features(painted))["local_fid"] > 1


def test_a_stored_reference_stands_in_for_the_real_pictures(network, paintings, tmp_path):
    path, painted = str(tmp_path / "reference.safetensors"), paintings(8)
    for painting in painted:
        painting.pixels = painting.picture
    metric = Fid(network)
    rows = metric.features(painted)
    metric.statistics(rows["real"]).save(path)
    stored = Fid(network, reference=path)
    assert set(stored.features(painted)) == {"fake"}
    assert stored.pooled(rows["fake"]) == metric.pooled(**rows)
    with pytest.raises(ValueError, match="fid takes rows of real pictures or a reference, one of the two"):
        stored.pooled(**rows)
    with pytest.raises(ValueError, match="one of the two"):
        metric.pooled(rows["fake"])


def test_a_reference_of_another_network_or_crop_is_refused(network, paintings, tmp_path):
    path = str(tmp_path / "reference.safetensors")
    metric = LocalFid(network, context=1.5)
    metric.statistics(metric.features(paintings(4))["real"]).save(path)
    assert LocalFid(network, context=1.5, reference=path).reference.count == 4
    with pytest.raises(ValueError, match=r"local_fid: .*reference.safetensors: .*context \(1.5 there, 2.0 now\)"):
        LocalFid(network, context=2.0, reference=path)
    network = FeatureNetwork("means", Means())
    network.module.layer.bias.data.add_(1)
    with pytest.raises(ValueError, match=r"two networks cannot be compared: weights \("):
        LocalFid(network, context=1.5, reference=path)


def test_one_picture_has_no_distance_and_few_are_said_once(network, paintings, caplog):
    metric = Fid(network)
    rows = metric.features(paintings(3))
    assert math.isnan(metric.pooled(rows["fake"][:1], rows["real"][:1])["fid"])
    with caplog.at_level(logging.WARNING):
        metric.pooled(**rows)
        metric.pooled(**rows)
    assert [record.message.split(":")[0:2] for record in caplog.records] == [["fid", " 3 pictures for 4 features"]]
