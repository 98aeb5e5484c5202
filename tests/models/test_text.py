"""Text towers: one spelling, one tokeniser, the chosen layer."""

import pytest
import torch

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
    assert torch.allclose(features.pooled[0], features.tokens[0, :length].mean(0), atol=1e-6)


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
