"""``tools/serve.py``: several models, who may come in, limits, and one line for what is wrong."""

import importlib.util
import socket
import sys
from pathlib import Path

import pytest

from sb.app.guard import LOCAL, Guard
from sb.app.serving import Server
from sb.inpaint import Inpainter

testclient = pytest.importorskip("fastapi.testclient")
loaded = {}  # the preview and the dtype of each model
TOOL = Path(__file__).parents[2] / "tools" / "serve.py"


@pytest.fixture
def serve(monkeypatch, small_painter, tmp_path):
    """Runs the tool on nothing but its arguments: its exit code, and the app that it would have served."""
    served = []

    def run(server, sockets):
        sockets[0].close()
        served.append(server.config.app)

    monkeypatch.setattr(Server, "run", run)
    loaded.clear()

    def load(path, device, dtype, preview):
        loaded[path] = (preview, dtype)
        return small_painter

    monkeypatch.setattr(Inpainter, "load", load)
    spec = importlib.util.spec_from_file_location("tool_serve", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["serve.py", "--port", "0", *map(str, arguments)])
        return module.main(), served[-1] if served else None

    return call


def test_several_models_are_offered_by_name(serve, capsys, tmp_path):
    code, app = serve("--model", "runs/shapes", "--model", f"photos={tmp_path}", "--limit", "steps=7")
    assert code == 0 and capsys.readouterr().out.startswith("shapes, photos: http://127.0.0.1:")
    with testclient.TestClient(app, "http://localhost") as client:
        assert [model["id"] for model in client.get("/v1/models").json()] == ["shapes", "photos"]
        refused = client.post("/v1/inpaint", files={"image": b"x"}, data={"steps": "8"})
        assert refused.json() == {"detail": "steps: at most 7 here"}
        assert str(tmp_path) not in client.get("/v1/models").text + client.get("/metrics").text


def test_only_this_machine_unless_told_otherwise(serve, capsys, tmp_path):
    def hosts(app):
        return next(one.kwargs["hosts"] for one in app.user_middleware if one.cls is Guard)

    assert hosts(serve("--model", "a")[1]) == LOCAL
    app = serve("--model", "a", "--allow-host", "paint.example")[1]
    assert hosts(app) == {*LOCAL, "paint.example"}
    assert "--token-file keeps strangers out" not in capsys.readouterr().err
    app = serve("--model", "a", "--host", "0.0.0.0")[1]
    assert hosts(app) is None
    assert "--token-file keeps strangers out" in capsys.readouterr().err
    (tmp_path / "token").write_text("secret\n")
    app = serve("--model", "a", "--token-file", tmp_path / "token")[1]
    with testclient.TestClient(app, "http://localhost") as client:
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("arguments, says", [
    (["--model", "a", "--model", "b/a"], "two models are called 'a'; give one another name, ID=b/a"),
    (["--model", "a", "--limit", "sides=3"], "there is no limit of this name; there are max_bytes, "),
    (["--model", "a", "--limit", "steps=many"], "'many' is no number"),
    (["--model", "a", "--limit", "steps=0"], "steps must be more than 0"),
    (["--model", "a", "--limit", "steps=2"], "model 'a' takes 3 by itself"),
    (["--model", "a", "--port", "99999"], "port must be 0-65535"),
    (["--model", "a", "--model", "b", "--preview", "taesd"], "say for which model, ID=path; there are a, b"),
    (["--model", "a", "--preview", "c=taesd"], "say for which model"),
    (["--model", "a", "--token-file", "/dev/null"], "its first line must be the token"),
])
def test_one_line_says_what_is_wrong(serve, capsys, arguments, says):
    assert serve(*arguments) == (2, None)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and says in said


def test_previews_are_for_the_model_that_is_named(serve):
    serve("--model", "a", "--preview", "taesd")
    assert loaded == {"a": ("taesd", "fp32")}
    serve("--model", "a", "--model", "b", "--preview", "b=taesd", "--dtype", "bf16")
    assert loaded == {"a": (None, "bf16"), "b": ("taesd", "bf16")}


def test_a_taken_port_is_said(serve, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve("--model", "a", "--port", taken.getsockname()[1]) == (2, None)
    assert "in use" in capsys.readouterr().err
