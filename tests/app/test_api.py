"""The interface from outside: what it paints, what it refuses and how, and that it keeps its promises."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from sb.app.api import create_app
from sb.app.limits import Limits
from sb.app.reading import Fields

testclient = pytest.importorskip("fastapi.testclient")


@pytest.fixture
def client(small_painter):
    with testclient.TestClient(create_app({"small": small_painter, "other": small_painter})) as found:
        yield found


def opened(content) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def post(client, photo, drawn=None, accept="application/json", **fields):
    files = {"image": ("../../etc/passwd", photo[1], "image/png")}
    if drawn is not None:
        files["mask"] = ("m.png", drawn[1], "image/png")
    return client.post("/v1/inpaint", files=files, data={"text": "red star", **fields}, headers={"Accept": accept})


def test_a_request_is_painted_as_in_python(client, small_painter, photo, drawn):
    answer = post(client, photo, drawn, precision="0.5", seed="7")
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["model"] == "small" and said["lossy"] is False and said["results"][0]["seed"] == 7
    found = opened(base64.b64decode(said["results"][0]["image"]))
    alone = small_painter(photo[0], drawn[0], "red star", precision=0.5, seed=7)
    assert np.abs(found.astype(int) - np.asarray(alone.image)).max() <= 1
    outside = drawn[0] == 0
    assert (found[outside] == photo[0][outside]).all() and (found != photo[0]).any()
    assert opened(base64.b64decode(said["results"][0]["predicted_mask"])).shape == (40, 48)


def test_json_gives_the_same_as_multipart(client, photo, drawn):
    body = {name: base64.b64encode(part[1]).decode() for name, part in (("image", photo), ("mask", drawn))}
    one = client.post("/v1/inpaint", json={**body, "text": "red star", "seed": 3, "precision": 0.0})
    two = post(client, photo, drawn, seed=3, precision="box")
    assert one.status_code == 200 and one.json()["results"][0]["image"] == two.json()["results"][0]["image"]
    for wrong in ({"guidance": False}, {"seed": "3"}, {"steps": 2.0}, {"text": None}, {"variations": True}):
        answer = client.post("/v1/inpaint", json={**body, **wrong})
        assert answer.status_code == 422 and answer.json()["detail"].startswith(f"{next(iter(wrong))}: "), wrong


def test_what_a_task_without_an_object_answers(client, small_painter, photo, drawn):
    answer = post(client, photo, drawn, task="remove", text="", seed="2")
    assert answer.status_code == 200 and answer.json()["results"][0]["predicted_mask"] is None
    found = opened(base64.b64decode(answer.json()["results"][0]["image"]))
    alone = small_painter(photo[0], drawn[0], "", seed=2, task="remove")
    assert np.abs(found.astype(int) - np.asarray(alone.image)).max() <= 1
    assert (found != opened(post(client, photo, drawn, "image/png", text="", seed="2").content)).any()
    assert client.get("/v1/models").json()[0]["without_object"] == ["remove"]


def test_the_picture_alone(client, photo):
    answer = post(client, photo, accept="image/png", box="12,10,22,20", seed="5")
    assert answer.headers["content-type"] == "image/png" and answer.headers["x-seed"] == "5"
    assert opened(answer.content).shape == (40, 48, 3)
    for asked in ({"accept": "image/*", "format": "jpeg"}, {"accept": "image/jpeg"}):
        lossy = post(client, photo, box="12,10,22,20", **asked)
        assert Image.open(io.BytesIO(lossy.content)).format == "JPEG" and lossy.headers["x-lossy"] == "true"
    assert "x-lossy" not in answer.headers
    assert post(client, photo, box="12,10,22,20", format="jpeg").json()["lossy"] is True


def test_variations_are_the_seeds_that_follow(client, photo, drawn):
    three = post(client, photo, drawn, variations="3", seed="4").json()["results"]
    assert [result["seed"] for result in three] == [4, 5, 6]
    assert len({result["image"] for result in three}) == 3
    one = opened(base64.b64decode(post(client, photo, drawn, seed="5").json()["results"][0]["image"]))
    assert np.abs(one.astype(int) - opened(base64.b64decode(three[1]["image"]))).max() <= 1


def test_progress_is_streamed_with_previews(client, photo, drawn):
    answer = post(client, photo, drawn, accept="text/event-stream", steps="4")
    events = [part.split("\n") for part in answer.text.strip().split("\n\n")]
    kinds = [first.removeprefix("event: ") for first, _ in events]
    values = [json.loads(second.removeprefix("data: ")) for _, second in events]
    assert kinds == ["queued", *["progress"] * 4, "done"]
    assert [value["step"] for value in values[1:5]] == [0, 1, 2, 3] and values[1]["previews"] == []
    preview = Image.open(io.BytesIO(base64.b64decode(values[2]["previews"][0])))
    assert preview.size == (48, 40)
    assert values[-1]["results"][0]["image"] == post(client, photo, drawn, steps="4").json()["results"][0]["image"]


def test_models_can_be_listed_and_chosen(client, photo, drawn):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed] == ["small", "other"]
    assert listed[0] | {"native_px": 32, "tasks": ["object", "remove"], "steps": 3, "guidance": 2.0} == listed[0]
    assert post(client, photo, drawn, model="other").json()["model"] == "other"


@pytest.mark.parametrize("fields, status, says", [
    ({"model": "../runs/small"}, 404, "none of this id"),
    ({"seed": "-1"}, 422, "seed: "), ({"precision": "1.5"}, 422, "precision: Input should be less than or equal to 1"),
    ({"precision": "nan"}, 422, "precision: Input should be a finite number"),
    ({"steps": "101"}, 422, "steps: at most 100 here"), ({"variations": "9"}, 422, "at most 8 here"),
    ({"text": "x" * 1001}, 422, "at most 1000 characters"), ({"task": "rm"}, 422, "knows object, remove"),
    ({"guidance": "inf"}, 422, "guidance: "), ({"colour": "red"}, 422, "colour: Extra"),
    ({"/etc/passwd": "1"}, 422, "a field: Extra"), ({"box": "/etc/passwd"}, 422, "box: String should match"),
    ({"box": "1,2,3,4"}, 422, "exactly one of them"),
])
def test_wrong_fields_are_one_line(client, photo, drawn, fields, status, says):
    answer = post(client, photo, drawn, **fields)
    assert answer.status_code == status and says in answer.json()["detail"], answer.text
    assert set(answer.json()) == {"detail"} and "\n" not in answer.json()["detail"]


@pytest.mark.parametrize("content, status", [
    (b"", 422), (b"not a picture", 415), (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, 415), (b"GIF89a", 415),
])
def test_what_is_no_picture_is_refused(client, drawn, content, status):
    answer = post(client, (None, content), drawn)
    assert answer.status_code == status and "image" in answer.json()["detail"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_pictures_bombs_and_wrong_sizes_are_refused(client, photo, drawn, small_painter):
    assert post(client, (None, photo[1][:-900]), drawn).status_code == 422
    for side, says in ((11_000, "11000 x 11000 px is too large"), (14_000, "this picture is too large")):
        bomb = io.BytesIO()
        Image.new("1", (side, side)).save(bomb, format="PNG")
        answer = post(client, (None, bomb.getvalue()), drawn)
        assert answer.status_code == 413 and says in answer.json()["detail"]
    other = io.BytesIO()
    Image.new("L", (48, 41), 255).save(other, format="PNG")
    assert "48x41 px and the image 48x40 px" in post(client, photo, (None, other.getvalue())).json()["detail"]
    with testclient.TestClient(create_app({"small": small_painter}, Limits(max_bytes=1000))) as little:
        answer = post(little, photo, drawn)
        assert answer.status_code == 413 and "at most 1,000 bytes" in answer.json()["detail"]


@pytest.mark.parametrize("content, kind, status", [
    (b"{", "application/json", 400), (b"[1]", "application/json", 422), (b"x", "text/plain", 415),
    (b'{"image": 5}', "application/json", 422), (b'{"image": "?"}', "application/json", 422),
    (b"--x\r\n", "multipart/form-data; boundary=x", 422), (b"x", "multipart/form-data", 400),
    (b"[" * 100_000, "application/json", 400), (b'{"\\ud800": 1}', "application/json", 422),
    (b'{"image": "", "text": "\\ud800"}', "application/json", 422), (b'{"seed": NaN}', "application/json", 422),
    (b"--x--\r\n", "multipart/form-data; boundary=x; charset=punycode", 415),
    (b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1' * 2 + b"\r\n--x--\r\n",
     "multipart/form-data; boundary=x", 422),
    (b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + b"x" * 70_000 + b"\r\n--x--\r\n",
     "multipart/form-data; boundary=x", 400),
])
def test_broken_bodies_are_refused(client, content, kind, status):
    answer = client.post("/v1/inpaint", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status and set(answer.json()) == {"detail"}, answer.text


def test_a_token_is_asked_for(small_painter, photo, drawn):
    with testclient.TestClient(create_app({"small": small_painter}, token="secret")) as closed:
        assert closed.get("/healthz").json() == {"status": "ok"} and closed.get("/").status_code == 200
        for sent in ({}, {"Authorization": "Bearer Secret"}, {"Authorization": "secret"}):
            assert closed.get("/v1/models", headers=sent).status_code == 401
        assert closed.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert post(closed, photo, drawn).status_code == 401


@pytest.mark.parametrize("provenance", [True, False])
@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_pictures_say_where_they_come_from_unless_told_not_to(small_painter, photo, drawn, provenance, form):
    with testclient.TestClient(create_app({"small": small_painter}, provenance=provenance)) as asked:
        content = post(asked, photo, drawn, accept="image/*", seed="6", format=form).content
    picture = Image.open(io.BytesIO(content))
    note = picture.text.get("Description") if form == "png" else picture.getexif().get(0x010E)
    assert note == ("generated by sb, model small, seed 6" if provenance else None)


def test_alpha_and_orientation_are_kept(client, drawn):
    pixels = np.random.default_rng(1).integers(0, 256, (48, 40, 4), dtype=np.uint8)
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(content, format="PNG", exif=exif)
    found = opened(post(client, (None, content.getvalue()), drawn, accept="image/png").content)
    upright = np.rot90(pixels, 3)
    assert found.shape == upright.shape == (40, 48, 4) and (found[..., 3] == upright[..., 3]).all()
    assert (found[drawn[0] == 0] == upright[drawn[0] == 0]).all()


def test_what_eight_bits_cannot_hold_is_said(client, photo, drawn):
    assert post(client, photo, drawn).json()["converted"] is None
    deep = io.BytesIO()
    Image.fromarray(np.full((40, 48), 40_000, np.uint16)).save(deep, format="PNG")
    assert post(client, (None, deep.getvalue()), drawn).json()["converted"].startswith("16 bits a channel become 8")


def test_counters_and_pages(client, photo, drawn):
    post(client, photo, drawn)
    post(client, photo, drawn, seed="-1")
    text = client.get("/metrics").text
    assert 'sb_answers_total{status="200"} 1.0' in text and 'sb_answers_total{status="422"} 1.0' in text
    assert 'sb_pictures_total{model="small"} 1.0' in text and "sb_waiting 0.0" in text
    offered = client.get("/openapi.json").json()["paths"]["/v1/inpaint"]["post"]["requestBody"]["content"]
    example = offered["application/json"]["example"]
    assert client.post("/v1/inpaint", json=example).status_code == 200
    assert set(offered["multipart/form-data"]["schema"]["properties"]) == {"image", "mask", *Fields.model_fields}
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    for place in ("/", "/page/app.js", "/page/app.css", "/docs", "/swagger/swagger-ui-bundle.js", "/openapi.json"):
        answer = client.get(place)
        assert answer.status_code == 200 and "https://" not in answer.text[:5000] * (place in ("/", "/docs")), place
    assert client.get("/page/../api.py").status_code == 404
