"""Text towers: one spelling, one tokeniser, the chosen layer."""

import logging
from urllib.error import URLError

import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file

from sb.models.text import clean_text, openclip, tiny


@pytest.mark.parametrize("written, read", [
    ("a &amp;amp; b", "a & b"),
    ("\u201cred\u201d \u2018star\u2019", "\"red\" 'star'"),
    ("\ufb01sh", "fish"),
    ("  two\n words ", "two words"),
])
def test_spelling(written, read):
    assert clean_text(written) == read


def test_the_tiny_tower_is_the_same_every_time_and_needs_no_global_seed():
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    one, other = tiny(width=32, heads=2, seed=3), tiny(width=32, heads=2, seed=3)
    assert torch.equal(torch.rand(1), before)
    features = one.encode(["striped blue star", ""])
    assert features.tokens.shape == (2, 16, 32) and features.pooled.shape == (2, 32)
    assert torch.equal(features.tokens, other.encode(["striped blue star", ""]).tokens)


def test_mean_pooling_ignores_the_padding():
    tower = tiny(width=32, heads=2, context_length=16)
    tokens = tower.tokenize(["red star"])
    features = tower(tokens)
    length = int((tokens != 0).sum())
    mean = features.tokens[0, :length].mean(0)
    assert torch.allclose(features.pooled[0], tower.standardise(mean), atol=1e-6)


def test_pooled_features_of_the_tiny_tower_tell_texts_apart():
    tower = tiny(width=64, heads=2, context_length=16)
    words = "anchor bridge candle dragon engine forest garden hammer island jacket kettle ladder mirror".split()
    pooled = tower.encode([f"{one} {other}" for one in words for other in words if one != other]).pooled
    shared, own = pooled.mean(0), pooled - pooled.mean(0)
    assert float(pooled.std(0).mean()) == pytest.approx(1, abs=0.2) and shared.norm() < 0.6 * own.norm(dim=1).mean()
    again = tiny(width=64, heads=2, context_length=16, seed=1)
    again.load_state_dict(tower.state_dict())  # a saved tower keeps what its features were standardised by
    assert torch.equal(again.encode(["red star"]).pooled, tower.encode(["red star"]).pooled)


def test_a_long_text_keeps_its_end_token():
    tower = tiny(width=32, heads=2, context_length=8)
    tokens = tower.tokenize(["one two three four five six seven eight nine ten"])
    assert tokens.shape == (1, 8) and int(tokens[0, -1]) == tower.tokenizer.eot_token_id


def test_published_towers_by_name():
    with torch.device("meta"):
        large, huge = openclip("ViT-L-14", layer=-1, pad="eos", quick_gelu=True), openclip("ViT-H-14")
    assert (large.width, huge.width) == (768, 1024) and huge.pooled_width == 0
    assert len(huge.transformer.transformer.resblocks) == 24
    tokens = large.tokenize(["a cat"])
    end = large.tokenizer.eot_token_id
    assert tokens[0, 3:].tolist() == [end] * 74 and tokens.shape == (1, 77)
    with pytest.raises(ValueError, match="no text transformer called 'ViT-Q'"):
        openclip("ViT-Q")


def test_the_layer_before_the_last_differs_and_is_normalised():
    last = tiny(width=32, heads=2, layers=3)
    last.layer = -1
    final = last.encode(["red star"]).tokens
    last.layer = -2
    earlier = last.encode(["red star"]).tokens
    assert not torch.allclose(final, earlier)
    assert torch.allclose(earlier.mean(-1), torch.zeros(1, 16), atol=1e-5)


SMALL = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}


@pytest.fixture
def published(monkeypatch):
    """A small architecture that open_clip knows as ViT-S, and the text half of its published weights."""
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: {"embed_dim": 8, "text_cfg": dict(SMALL)})
    return TextTransformer(**SMALL, output_dim=8).state_dict()


def clip_file(state):
    return {**state, "logit_scale": torch.zeros(()), "visual.proj": torch.zeros(2, 2),
            "visual.positional_embedding": torch.zeros(3)}


def custom_file(state):
    return clip_file({f"text.{name}": value for name, value in state.items()})


def wrapped_file(state):
    return {f"module.{name}": value for name, value in clip_file(state).items()}


@pytest.mark.parametrize("layout", [dict, clip_file, custom_file, wrapped_file])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_text_half_of_a_file_is_loaded(published, layout, suffix, tmp_path, caplog):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": layout(published)}, path)
    else:
        save_file(layout(published), path)
    tower = openclip("ViT-S", pretrained=str(path))
    loaded = tower.transformer.state_dict()
    assert set(loaded) == set(published) and all(torch.equal(loaded[name], published[name]) for name in loaded)
    tower.encode(["a cat"])
    assert not caplog.records


def test_a_file_that_does_not_fit_is_refused_on_one_line(published, tmp_path):
    path = tmp_path / "weights.safetensors"
    gone = published.pop("ln_final.weight")
    files = {
        "1 missing: ln_final.weight": custom_file(published),
        "1 unexpected: surprise": custom_file({**published, "ln_final.weight": gone, "surprise": gone + 1}),
        r"ln_final.weight is \(7,\), not \(16,\)": clip_file({**published, "ln_final.weight": torch.ones(7)}),
        "holds no text transformer": {"visual.proj": torch.zeros(2)},
    }
    for says, state in files.items():
        save_file(state, path)
        with pytest.raises(ValueError, match=says) as caught:
            openclip("ViT-S", pretrained=str(path))
        assert "\n" not in str(caught.value) and "weights.safetensors" in str(caught.value)


def test_a_tag_comes_from_open_clip_and_says_what_to_do_without_a_network(published, tmp_path, monkeypatch):
    path = tmp_path / "cached.safetensors"
    save_file(clip_file(published), path)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda tag: str(path))
    tower = openclip("ViT-H-14", pretrained="laion2b_s32b_b79k")
    assert torch.equal(tower.transformer.positional_embedding, published["positional_embedding"])

    for error in (FileNotFoundError("Failed\nto download"), URLError("unreachable"), RuntimeError("checksum")):
        def offline(tag, error=error):
            raise error

        monkeypatch.setattr("open_clip.pretrained.download_pretrained", offline)
        with pytest.raises(ValueError, match="cannot download ViT-H-14 .*give the path of its file") as caught:
            openclip("ViT-H-14", pretrained="laion2b_s32b_b79k")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="neither a file nor a tag of ViT-H-14; did you mean 'laion2b_s32b_b79k'"):
        openclip("ViT-H-14", pretrained="laion2b_s32b_b79")
    with pytest.raises(ValueError, match="was trained with QuickGELU; set quick_gelu: true"):
        openclip("ViT-L-14", pretrained="openai")


def test_an_untrained_tower_is_said_to_be_so_once(published, caplog):
    tower = openclip("ViT-S")
    with caplog.at_level(logging.WARNING):
        tower.encode(["a cat"])
        tower.encode(["a cat"])
        assert [record.getMessage() for record in caplog.records] == [
            "text tower ViT-S has random weights: give text.pretrained or text.weights"
        ]
        caplog.clear()
        loaded = openclip("ViT-S")
        torch.nn.ModuleDict({"text": loaded}).load_state_dict({f"text.{n}": v for n, v in tower.state_dict().items()})
        loaded.encode(["a cat"])
        assert not caplog.records


@pytest.mark.parametrize("pool", ["mean", "eos", "none"])
@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_every_trained_parameter_gets_a_gradient(published, pool, layer):
    tower = openclip("ViT-S", layer=layer, pool=pool)
    features = tower.encode(["red star"])
    sum(part.square().sum() for part in features if part is not None).backward()
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in tower.named_parameters() if p.grad is not None}
    assert ("transformer.text_projection" in trained) == (pool == "eos")
    assert len(tower.transformer.transformer.resblocks) == 3  # the file's blocks are all there
    with pytest.raises(ValueError, match="layer -4 must lie in -3 ... -1"):
        openclip("ViT-S", layer=-4)
