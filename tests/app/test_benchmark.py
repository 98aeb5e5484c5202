"""``tools/benchmark.py app``: what it measures, and one line where there is nothing to measure with."""

import json
import shutil
from contextlib import contextmanager

import pytest

from sb.app import benchmark
from sb.app.api import create_app
from sb.app.limits import Limits

from .conftest import serving


@pytest.fixture
def served(monkeypatch, small_painter):
    """The benchmark's server is a thread here, and has a small queue."""
    @contextmanager
    def small(model, device):
        with serving(create_app({"small": small_painter}, Limits(queue=2, batch=2))) as address:
            yield address, 0

    monkeypatch.setattr(benchmark, "serving", small)


@pytest.mark.parametrize("there, says", [((), "chromium, chromedriver not found"), (("chromium",), "chromedriver not")])
def test_without_a_browser_one_line_says_so(monkeypatch, there, says):
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    with pytest.raises(ValueError, match=f"^benchmark app: {says}"):
        benchmark.benchmark_app("model", 1, 1, "cpu")


def test_throughput_is_of_requests_that_were_all_painted(monkeypatch, served):
    pytest.importorskip("selenium")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(benchmark, "first_load", lambda address: 0.5)
    asked, post = [], benchmark.post

    def counted(address, content, *more):
        asked.append(content)
        return post(address, content, *more)

    monkeypatch.setattr(benchmark, "post", counted)
    lines = []
    figures = benchmark.benchmark_app("model", 4, 1, "cpu", lines.append)
    assert figures["first_load_s"] == 0.5 and figures["alone_per_s"] > 0
    assert figures["ratio"] == pytest.approx(figures["together_per_s"] / figures["alone_per_s"])
    assert len(set(asked)) == 1 + 2 + 4 - 2 and len(asked) == 1 + 2 + 2 * 4 and len(lines) == 2


def test_an_answer_that_is_none_ends_it(small_painter):
    with serving(create_app({"small": small_painter})) as address:
        with pytest.raises(ValueError, match="/v1/inpaint answered 415"):
            benchmark.post(address, b"x", "text/plain")
        content, kind = benchmark.picture_request(address)
        assert json.loads(benchmark.post(address, content(3), kind))["results"][0]["seed"] == 3


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, benchmark.BROWSER)), reason="needs Chromium")
def test_a_first_load_takes_some_time(small_painter):
    with serving(create_app({"small": small_painter})) as address:
        assert 0 < benchmark.first_load(address) < 60
