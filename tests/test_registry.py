"""Names bind to callables, and every mistake says what the right name, key or type is."""

import pytest

from sb import registry
from sb.registry import build, lookup, names, register


@pytest.fixture(autouse=True)
def _registered(own_registry):
    register("degradation", "test_only")(only_for_tests)


def only_for_tests(size: int, scale: float = 1.0, word: str | None = None, flag: bool = False):
    """Gives its arguments back."""
    return size, scale, word, flag


def test_build_passes_the_keys_and_the_runtime_objects():
    assert build("degradation", {"name": "test_only", "scale": 2}, size=3) == (3, 2, None, False)


def test_builtin_names_are_found_without_an_import():
    assert {"outline", "blur", "box"} <= set(names("degradation"))
    assert {"ddim", "dpmpp_2m", "euler"} == set(names("sampler"))
    assert lookup("schedule", "cosine").__name__ == "cosine"


def test_a_dotted_path_is_a_name():
    assert lookup("degradation", "sb.masks.box_rung") is lookup("degradation", "box")


@pytest.mark.parametrize(
    "spec, says",
    [
        ({"name": "test_onyl", "size": 1}, "no degradation named 'test_onyl'; did you mean 'test_only'?"),
        ({"name": "zzz"}, "no degradation named 'zzz'; there are: blur, box"),
        ({"name": "test_only", "size": 1, "scal": 2}, "'test_only' has no key 'scal'; did you mean 'scale'?"),
        ({"name": "test_only"}, "missing a required argument: 'size'; it takes (size: int"),
        ({"name": "test_only", "size": 1.5}, "size must be int, not 1.5"),
        ({"name": "test_only", "size": True}, "size must be int, not True"),
        ({"name": "test_only", "size": 1, "scale": "fast"}, "scale must be float, not 'fast'"),
        ({"name": "test_only", "size": 1, "word": 3}, "word must be str or null, not 3"),
        ({"name": "no.such.module.x"}, "cannot be imported"),
        ({"name": "sb.masks.nothing"}, "cannot be imported"),
        ({"size": 1}, "needs a 'name:'"),
    ],
)
def test_mistakes_name_the_nearest_right_thing(spec, says):
    with pytest.raises(ValueError) as caught:
        build("degradation", spec)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_belongs_to_one_entry():
    register("degradation", "test_only")(only_for_tests)  # the same code again, as in a reload
    with pytest.raises(ValueError, match="already"):
        register("degradation", "test_only")(lambda: None)
    with pytest.raises(ValueError, match="did you mean 'sampler'"):
        register("sampelr", "x")


def test_every_kind_has_a_home_in_this_package():
    assert all(home.startswith("sb.") for homes in registry.HOMES.values() for home in homes)
