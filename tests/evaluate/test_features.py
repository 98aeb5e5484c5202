"""Feature networks: the features that their makers give, of pictures of any size, and files that do not fit."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from sb.evaluate.crops import resize
from sb.evaluate.features import autoencoder, inception, oracle, torchvision_features
from sb.evaluate.frechet import frechet_distance
from sb.evaluate.oracle import CROP_PX, Oracle
from sb.models.tiny_vae import TinyVAE
from sb.models.weights import no_init

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_the_oracle_sees_the_whole_picture(oracle_file):
    network, images = oracle(oracle_file), noise(5, 3, CROP_PX, CROP_PX)
    with torch.no_grad():
        expected = Oracle.load(oracle_file)(images.float() / 127.5 - 1)[1]
    assert torch.allclose(network.features(images), expected, atol=1e-4)
    assert network.describe() == {"name": "oracle", "weights": oracle(oracle_file).describe()["weights"]}


def test_pictures_of_several_sizes_keep_their_order(oracle_file):
    network = oracle(oracle_file)
    pictures = [noise(3, 40 + 8 * (i % 2), 40, seed=i) for i in range(5)]
    expected = torch.cat([network.features(picture[None]) for picture in pictures])
    assert torch.allclose(network.rows(pictures), expected, atol=1e-5)


def test_pooled_latents_of_an_autoencoder_in_files(tmp_path):
    vae = TinyVAE(stages=1, widths=8, blocks=1)
    for half, first in (("encoder", 0), ("decoder", 1)):  # published decoders count their clamp
        split = [(*name.split(".", 1), value) for name, value in getattr(vae, half).layers.state_dict().items()]
        state = {f"{int(number) + first}.{rest}": value for number, rest, value in split}
        save_file(state, tmp_path / f"small_{half}.safetensors")
    network = autoencoder(str(tmp_path), size_px=16)
    images = noise(3, 3, 20, 30)
    with torch.no_grad():
        z = vae.encode(resize(images, 16).float() / 127.5 - 1).mean
    expected = torch.cat([z.mean((2, 3)), z.std((2, 3))], 1)
    assert torch.allclose(network.features(images), expected, atol=1e-5)
    assert network.describe()["size_px"] == 16
    for size in (15, 2):
        with pytest.raises(ValueError, match=f"size_px {size} must be a multiple of 2, at least 4"):
            autoencoder(str(tmp_path), size_px=size)


def test_damage_moves_taef2_features_the_more_the_worse():
    if not (SHARED / "taef2").is_dir():
        pytest.skip("the shared data folder is absent")
    network = autoencoder(str(SHARED / "taef2"), size_px=64)
    photos = [Image.open(path).convert("RGB").resize((96, 96))
              for path in sorted((SHARED / "coco-mini-256/val/images").iterdir())[:6]]

    def rows(change):
        return network.rows([torch.from_numpy(np.array(change(photo))).permute(2, 0, 1) for photo in photos])

    real = rows(lambda photo: photo)
    blurred = [frechet_distance(rows(lambda photo: photo.filter(ImageFilter.GaussianBlur(sigma))), real)
               for sigma in (0, 1, 4)]
    assert blurred[0] < 1e-6 and blurred == sorted(blurred) and blurred[2] > 2 * blurred[1]
    recoloured = frechet_distance(rows(lambda photo: Image.merge("RGB", photo.split()[::-1])), real)
    assert real.shape == (6, 64) and recoloured > blurred[1]


@pytest.fixture(scope="module")
def shufflenet(tmp_path_factory):
    """A small classifier of torchvision with five classes, and its file."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=5).eval()
    path = tmp_path_factory.mktemp("torchvision") / "shufflenet.safetensors"
    save_file(network.state_dict(), path)
    return network, str(path)


def test_a_torchvision_classifiers_features_are_what_its_head_takes(shufflenet):
    theirs, path = shufflenet
    network = torchvision_features("shufflenet_v2_x0_5", path, size_px=32)
    images = noise(2, 3, 40, 48)
    from torchvision.transforms.functional import normalize

    pixels = normalize(resize(images, 32).float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        assert torch.allclose(theirs.fc(network.features(images)), theirs(pixels), atol=1e-4)
    about = network.describe()
    assert (about["model"], about["size_px"]) == ("shufflenet_v2_x0_5", 32)


def test_weights_of_another_network_are_one_line(shufflenet, oracle_file, tmp_path):
    with pytest.raises(ValueError, match="no classifier 'resnet5'; did you mean 'resnet5"):
        torchvision_features("resnet5", shufflenet[1])
    with pytest.raises(ValueError, match="oracle.safetensors is not a shufflenet_v2_x0_5 that ends in a linear"):
        torchvision_features("shufflenet_v2_x0_5", oracle_file)
    with pytest.raises(ValueError, match="shufflenet.safetensors does not fit this model; "):
        torchvision_features("resnet18", shufflenet[1])
    with pytest.raises(ValueError, match="holds no vae|no checkpoint"):
        autoencoder(oracle_file)


def test_inception_is_torch_fidelitys(tmp_path):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Blank(extractor):
        def load_state_dict(self, state):
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    path = tmp_path / "inception.pth"
    torch.save(Blank("blank", ["2048"], nothing).state_dict(), path)
    images = noise(1, 3, 75, 60)
    with no_init():
        expected = extractor("theirs", ["2048"], str(path))(images)[0]
    found = inception(str(path)).features(images)
    assert found.shape == (1, 2048) and torch.allclose(found, expected, atol=1e-5)


def test_inception_without_its_weights_or_its_package_is_one_line(oracle_file, monkeypatch):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(ValueError, match="oracle.safetensors is not torch-fidelity's Inception"):
        inception(oracle_file)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"needs torch-fidelity: pip install -e '.\[evaluate\]'"):
        inception(oracle_file)
