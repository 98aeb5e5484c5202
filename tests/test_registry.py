"""Names bind to callables, and every mistake says what the right name, key or type is."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import sb.schedule
from sb import registry
from sb.registry import build, call, lookup, names, register


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
    assert {"ddim", "dpmpp_2m", "euler", "unipc"} == set(names("sampler"))
    assert lookup("schedule", "cosine").__name__ == "cosine"


def test_a_path_to_code_is_no_name():
    for path in ("sb.masks.box_rung", "os.system", "subprocess.run"):
        with pytest.raises(ValueError, match=f"no degradation named '{path}'"):
            lookup("degradation", path)


@pytest.mark.parametrize(
    "spec, says",
    [
        ({"name": "test_onyl", "size": 1}, "no degradation named 'test_onyl'; did you mean 'test_only'?"),
        ({"name": "zzz"}, "no degradation named 'zzz'; there are: blur, box"),
        ({"name": "test_only", "size": 1, "scal": 2}, "'test_only' has no key 'scal'; did you mean 'scale'?"),
        ({"name": "test_only"}, "degradation 'test_only' needs 'size'; it takes (size: int"),
        ({"name": "test_only", "size": 1.5}, "size must be int, not 1.5"),
        ({"name": "test_only", "size": True}, "size must be int, not True"),
        ({"name": "test_only", "size": 1, "scale": "fast"}, "scale must be float, not 'fast'"),
        ({"name": "test_only", "size": 1, "word": 3}, "word must be str or null, not 3"),
        ({"size": 1}, "needs a 'name:'"),
        ("test_only", "needs a 'name:', not 'test_only'"),
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


def test_a_builtin_name_is_refused_before_anything_imported_it(monkeypatch):
    monkeypatch.setattr(sb, "schedule", sb.schedule)  # put back afterwards, as are the two below
    monkeypatch.setitem(registry._TABLE, "schedule", {})
    monkeypatch.delitem(sys.modules, "sb.schedule")
    mine = f"{only_for_tests.__module__}.only_for_tests"
    with pytest.raises(ValueError, match=f"^schedule 'cosine' is already sb.schedule.cosine; register {mine} under"):
        register("schedule", "cosine")(only_for_tests)
    assert lookup("schedule", "cosine").__module__ == "sb.schedule"


@dataclass
class Section:
    """A section of a run file without a name."""

    size: int
    rates: Sequence[float] = (1.0,)
    extra: Mapping[str, int] | None = None
    mode: Literal["fast", "slow"] = "fast"
    place: str | Path = "."


def test_call_fills_classes_dataclasses_and_functions():
    given = {"size": 2, "rates": [1, 2], "extra": {"a": 1}, "mode": "slow"}
    assert call("here", Section, given) == Section(2, [1, 2], {"a": 1}, "slow")
    assert call("here", Section, None, size=3) == Section(3)
    assert call("here", only_for_tests, {"scale": 2.5}, size=1) == (1, 2.5, None, False)
    assert call("here", lambda **keys: keys, {"anything": 1}) == {"anything": 1}


class Parent:
    def __init__(self, size: int, scale: float = 1.0) -> None:
        self.size, self.scale = size, scale


class Child(Parent):
    """A system of a team's own, say."""

    def __init__(self, *, depth: int = 2, **rest) -> None:
        super().__init__(**rest)
        self.depth = depth


def test_a_class_takes_what_the_parent_takes_that_it_hands_the_rest_to():
    child = call("here", Child, {"scale": 2.0, "depth": 3}, size=1)
    assert (child.size, child.scale, child.depth) == (1, 2.0, 3)
    for given, says in (({"scael": 1.0}, "did you mean 'scale'"), ({"scale": "1"}, "here: scale must be float")):
        with pytest.raises(ValueError, match=says):
            call("here", Child, given, size=1)
    with pytest.raises(ValueError, match="here needs 'size'"):
        call("here", Child, {})


@pytest.mark.parametrize(
    "given, says",
    [
        ({"sise": 1}, "here has no key 'sise'; did you mean 'size'?"),
        ({"mode": "slow"}, "here needs 'size'; it takes (size: int"),
        ({"size": "2"}, "here: size must be int, not '2'"),
        ({"size": 1, "rates": 0.5}, "here: rates must be a list, not 0.5"),
        ({"size": 1, "rates": "0.5"}, "here: rates must be a list, not '0.5'"),
        ({"size": 1, "extra": [1]}, "here: extra must be a mapping or null, not [1]"),
        ({"size": 1, "mode": "fats"}, "here: mode must be 'fast' or 'slow', not 'fats'"),
        ([1], "here must be a mapping of keys, not [1]"),
    ],
)
def test_call_says_on_one_line_what_does_not_fit(given, says):
    with pytest.raises(ValueError) as caught:
        call("here", Section, given)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_a_key_that_the_program_sets_is_refused():
    with pytest.raises(ValueError, match="here: 'size' follows from the rest of the run file; leave it out"):
        call("here", Section, {"size": 1}, size=2)


def test_every_kind_has_a_home_in_this_package():
    assert all(home.startswith("sb.") for homes in registry.HOMES.values() for home in homes)
