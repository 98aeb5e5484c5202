"""The CLIP tower and its score: torchmetrics' figures on the same tower, and files that do not fit."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

from sb.evaluate.clip import ClipTower
from sb.evaluate.features import clip
from sb.evaluate.metrics import ClipScore
from sb.registry import build, build_fitted

from .conftest import CLIP


def theirs(tower, image, text):
    """torchmetrics' CLIP score of one picture, with our tower as its model."""
    from torchmetrics.functional.multimodal import clip_score

    class Model(torch.nn.Module):
        config = SimpleNamespace()

        def get_image_features(self, pixels):
            return tower.model.encode_image(pixels)

        def get_text_features(self, tokens, attention):
            return tower.model.encode_text(tokens)

    def processor(text=None, images=None, return_tensors="pt", padding=True):
        if images is not None:
            return {"pixel_values": torch.stack([tower._transform(to_pil_image(image)) for image in images])}
        tokens = tower.tokenizer(text)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    with torch.no_grad():
        return float(clip_score(image, text, lambda: (Model(), processor)))


def test_the_score_is_torchmetrics_on_the_same_tower(clip_folder, paintings):
    painted = paintings(12)
    network = clip(clip_folder)
    score = build_fitted("metric", {"name": "clip_score"}, {"clip": network, "reader": None})
    found = score(painted)["clip_score_whole"]
    expected = [theirs(network.module, painting.pixels, painting.case.text) for painting in painted]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert min(expected) == 0 and max(expected) > 5  # random towers: some cosines lie below 0


def test_the_score_is_of_the_masks_box(clip_folder, paintings):
    network = clip(clip_folder)
    found = {}
    for spoiled in (False, True):
        painted = paintings(6)
        for painting in painted:
            painting.mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
            painting.mask[:, 16:48, 16:48] = 1
            if spoiled:
                painting.pixels = torch.where(painting.mask > 0, painting.pixels, 255 - painting.pixels)
        found[spoiled] = {context: ClipScore(network, context)(painted) for context in (1.0, 1.5)}
    assert torch.equal(found[False][1.0]["clip_score"], found[True][1.0]["clip_score"])
    assert not torch.equal(found[False][1.5]["clip_score"], found[True][1.5]["clip_score"])
    assert not torch.equal(found[False][1.0]["clip_score_whole"], found[True][1.0]["clip_score_whole"])


def test_a_tower_embeds_and_describes_itself(clip_folder):
    network = build("feature network", {"name": "clip", "model": clip_folder})
    images = torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8)
    assert network.features(images).shape == (3, 16) and network.module.texts(["a cat", "dog"]).shape == (2, 16)
    about = network.describe()
    assert about["name"] == "clip" and about["preprocess"]["mean"] == [0.5] * 3
    assert about["preprocess"]["size"] == [32, 32] and network.module.side_px == 32


def test_an_architecture_by_name_takes_its_weights_from_a_file(clip_folder, tmp_path):
    (tmp_path / "ViT-small-probe.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path)
    weights = f"{clip_folder}/open_clip_model.safetensors"
    tower = ClipTower("ViT-small-probe", weights)
    assert torch.equal(tower.texts(["a cat"]), ClipTower(clip_folder).texts(["a cat"]))
    assert tower.preprocess_settings["mean"][0] == pytest.approx(0.4815, abs=1e-4)


def test_what_does_not_load_is_one_line(clip_folder, tmp_path, oracle_file):
    with pytest.raises(ValueError, match="clip: no weights at .*none.pt"):
        ClipTower("ViT-B-32", str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="'ViT-B-32' is a name and needs its weights"):
        ClipTower("ViT-B-32")
    with pytest.raises(ValueError, match="is a folder and brings its weights"):
        ClipTower(clip_folder, oracle_file)
    with pytest.raises(ValueError, match="oracle.safetensors and ViT-Q-3 do not make a model"):
        ClipTower("ViT-Q-3", oracle_file)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    with pytest.raises(ValueError, match="its own weights and .* do not make a model"):
        ClipTower(str(tmp_path))
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="its own weights and .* do not make a model"):
        ClipTower(str(tmp_path))
    other = build("feature network", {"name": "oracle", "weights": oracle_file})
    with pytest.raises(ValueError, match="needs the feature network 'clip', not 'oracle'"):
        ClipScore(other)
