"""Painted cases of the shapes world, and small networks with random weights in files."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from sb.evaluate.oracle import Oracle
from sb.evaluate.painting import Painting
from sb.evaluate.requests import make_cases
from sb.masks import box_of, dilate

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def paintings():
    """``paintings(count)``: ideal results for box masks on scenes, grown by 8 px, the predicted mask the outline."""

    def make(count=8, size_px=64):
        made = []
        for index, case in enumerate(make_cases(max(count, 2), size_px=size_px)[:count]):
            mask = dilate(box_of(case.outline[None]).float(), 8)[0].to(torch.uint8)
            about = SimpleNamespace(
                image=str(index), instance="0", label=case.shape, text=case.text, level=5.0, seed=index
            )
            made.append(Painting(
                about, case.background, case.image.clone(), case.outline.float(),
                case.background, case.image, mask, case.outline,
            ))
        return made

    return make


@pytest.fixture(scope="session")
def oracle_file(tmp_path_factory):
    """An untrained oracle that claims to be sure of itself."""
    path = tmp_path_factory.mktemp("oracle") / "oracle.safetensors"
    torch.manual_seed(0)
    oracle = Oracle()
    oracle.accuracy = {"real": 1.0}
    oracle.save(path)
    return str(path)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A very small OpenCLIP model as OpenCLIP saves it."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    about = {"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    state = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    return str(folder)
