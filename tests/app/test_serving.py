"""A server as clients meet it: those that go away, that are too many, too slow, or not from here; and its end."""

import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest

from sb.app.api import create_app
from sb.app.guard import LOCAL
from sb.app.limits import Limits
from sb.app.serving import listen

from .conftest import png, serving

testclient = pytest.importorskip("fastapi.testclient")


def body(photo, **fields):
    """The bytes of a multipart request, and its content type."""
    parts = [b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + photo[1]]
    for name, value in {"box": "12,10,22,20", "text": "red star", **fields}.items():
        parts.append(f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    return b"\r\n".join([*parts, b"--x--\r\n"]), "multipart/form-data; boundary=x"


def send(address, photo, accept="application/json", headers=None, **fields):
    """A connection on which a request to paint was sent."""
    content, kind = body(photo, **fields)
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(
        "POST", "/v1/inpaint", content, {"Content-Type": kind, "Accept": accept, **(headers or {})}
    )
    return connection


def until(says, true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, says
        time.sleep(0.02)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_what_nobody_waits_for_is_given_up(slow_painter, photo, accept):
    app = create_app({"small": slow_painter})
    with serving(app) as address:
        painted, waiting = send(address, photo, accept), send(address, photo, accept, steps=2)
        assert slow_painter.began.wait(10)
        until("the second waits", lambda: len(app.state.jobs) == 1)
        waiting.close()
        until("it leaves the queue", lambda: len(app.state.jobs) == 0)
        painted.close()
        until("the first is given up", lambda: slow_painter.given_up == 1)


def test_too_many_are_told_when_to_come_again_and_the_others_are_answered(slow_painter, photo):
    app = create_app({"small": slow_painter}, Limits(queue=2, batch=1))
    with serving(app) as address:
        kept = [send(address, photo, seed=0)]
        assert slow_painter.began.wait(10)
        kept += [send(address, photo, seed=1), send(address, photo, seed=2)]
        until("two wait", lambda: len(app.state.jobs) == 2)
        answer = send(address, photo, seed=3).getresponse()
        assert answer.status == 429 and int(answer.headers["Retry-After"]) >= 1
        assert json.load(answer) == {"detail": "the queue is full (2 requests wait): try again in a moment"}
        slow_painter.go.set()
        assert [json.load(one.getresponse())["results"][0]["seed"] for one in kept] == [0, 1, 2]


def test_requests_that_still_arrive_hold_places(small_painter, photo):
    app = create_app({"small": small_painter}, Limits(queue=1))
    content, kind = body(photo)
    with serving(app) as address:
        half = socket.create_connection((urlsplit(address).hostname, urlsplit(address).port))
        head = f"POST /v1/inpaint HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
        half.sendall(head.encode() + content[:100])
        until("it is heard of", lambda: send(address, photo).getresponse().status == 429)
        half.sendall(content[100:])
        assert half.recv(12) == b"HTTP/1.1 200"
        half.close()
        assert send(address, photo).getresponse().status == 200


@pytest.mark.parametrize("part", ["arriving", "painting"])
def test_time_is_limited(slow_painter, photo, part):
    with serving(create_app({"small": slow_painter}, Limits(seconds=0.5, arrival=0.5))) as address:
        if part == "painting":
            answer = send(address, photo).getresponse()
            assert answer.status == 504 and "longer than" in json.load(answer)["detail"]
            until("it is given up", lambda: slow_painter.given_up == 1)
            return
        half = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        half.putrequest("POST", "/v1/inpaint")
        half.putheader("Content-Length", "1000")
        half.endheaders(b"--x")
        answer = half.getresponse()
        assert answer.status == 408 and "within 0.5 s" in json.load(answer)["detail"]


def test_a_body_that_is_too_large_is_read_to_be_answered(small_painter, photo):
    with serving(create_app({"small": small_painter}, Limits(max_bytes=10_000_000))) as address:
        answer = send(address, photo, text="x" * 15_000_000).getresponse()
        assert answer.status == 413 and "at most 10,000,000 bytes" in json.load(answer)["detail"]


@pytest.mark.parametrize("headers, status", [
    ({}, 200), ({"Host": "localhost:80"}, 200), ({"Host": "[::1]:80"}, 200), ({"Host": "evil.example"}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403), ({"Host": "["}, 403), ({"Host": ""}, 403),
    ({"Host": "localhost", "Origin": "http://localhost"}, 200), ({"Host": "localhost", "Origin": "null"}, 403),
    ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
    ({"Host": "localhost", "Origin": "https://localhost"}, 200),
    ({"Host": "localhost:7860", "Origin": "http://localhost:3000"}, 403),
])
def test_a_local_server_listens_to_its_own_page_only(small_painter, photo, headers, status):
    content, kind = body(photo)
    with testclient.TestClient(create_app({"small": small_painter}, hosts=LOCAL), "http://localhost") as client:
        answer = client.post("/v1/inpaint", content=content, headers={"Content-Type": kind, **headers})
        assert answer.status_code == status and ("detail" in answer.json()) == (status == 403)
        assert client.get("/", headers=headers).status_code == status


def test_the_end_keeps_nobody_waiting(slow_painter, photo):
    app = create_app({"small": slow_painter}, Limits(batch=1))
    with serving(app) as address:
        painted = send(address, photo)
        assert slow_painter.began.wait(10)
        waiting = send(address, photo)
        until("the second waits", lambda: len(app.state.jobs) == 1)
        told = []
        listening = threading.Thread(target=lambda: told.append(waiting.getresponse().status))
        listening.start()
        threading.Timer(0.5, slow_painter.go.set).start()
    listening.join(10)
    assert told == [503] and painted.getresponse().status == 200


def test_a_taken_port_is_an_error_before_anything_is_loaded():
    bound, address = listen("127.0.0.1", 0)
    with bound, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", urlsplit(address).port)


def test_any_name_may_be_allowed_but_no_other_page(small_painter):
    with testclient.TestClient(create_app({"small": small_painter}), "http://paint.example") as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/healthz", headers={"Origin": "http://evil.example"}).status_code == 403


def test_names_of_hosts_have_no_case(small_painter):
    app = create_app({"small": small_painter}, hosts={"Paint.Example"})
    with testclient.TestClient(app, "http://paint.example") as client:
        assert client.get("/healthz").status_code == 200


def test_a_client_that_does_not_read_holds_its_place_and_then_loses_it(small_painter, photo):
    large = png(np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), dtype=np.uint8))
    app = create_app({"small": small_painter}, Limits(seconds=3))
    with serving(app) as address:
        deaf = send(address, (None, large), variations=3)  # more than the buffers between them hold
        until("it is painted", lambda: len(app.state.jobs) == 0 and app.state.answering.held == 1)
        until("its time is over", lambda: app.state.answering.held == 0, seconds=15)
        assert send(address, photo).getresponse().status == 200
        deaf.close()


def test_a_preview_that_fails_costs_nobody_the_picture(small_painter, photo, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("sb.app.answering._preview", fail)
    with serving(create_app({"small": small_painter}, Limits(seconds=20))) as address:
        answer = send(address, photo, accept="text/event-stream").getresponse()
        assert "event: done" in answer.read().decode()


def test_one_picture_is_not_asked_for_several(small_painter, photo):
    with serving(create_app({"small": small_painter})) as address:
        answer = send(address, photo, accept="image/png", variations=2).getresponse()
        assert answer.status == 422 and "asks for one picture" in json.load(answer)["detail"]
