"""Requests that mean harm, and crowds: every answer is 2xx or 4xx and a line, memory stays flat, nothing is mixed up.

python tests/app/hostile.py --model runs/quickstart [--requests 2000] [--crowd 200]      prints what it found
"""

import argparse
import base64
import http.client
import io
import json
import math
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LEAKS = re.compile(rb'Traceback|File \\?"|site-packages|\.py\b|/(home|root|usr|tmp|work|opt|etc|proc|var)/')
ODD = [
    "\x00", "\u202e", "e\u0301" * 400, "\ud800", "\U0001f9d1\u200d\U0001f680", "\ufeff", "A" * 5000, "\x1b[31m", "%s%n",
    "<script>alert(1)</script>", "'; DROP TABLE models; --", "\r\nSet-Cookie: a=b", "\u0663", "\u2028", "{{7*7}}", "",
]
PATHS = [
    "../../etc/passwd", "/etc/passwd", "..\\..\\windows", "file:///etc/passwd", "a/../../b", "%2e%2e%2fetc", ".", "..",
    "model\x00.safetensors", "~/.ssh/id_rsa", "http://example.com/a.safetensors", "runs/quickstart",
]
NUMBERS = [
    "-1", "1e400", "9" * 5000, "nan", "inf", "-inf", "0x10", "1_000", "\u0663", "1.5", "", " ", "1e-400", "2" * 30,
    "true",
]
ZEROS = cache(lambda: zlib.compress(b"\0" * 30_000_000))
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


class Sent(NamedTuple):
    """A request; ``raw`` bytes go to the socket as they are."""

    path: str = "/v1/inpaint"
    body: bytes | None = None
    headers: dict = {}
    method: str = "POST"
    raw: bytes | None = None


def picture(rng, size=None, mode=None, form="PNG") -> bytes:
    width, height = size or (rng.randint(1, 90), rng.randint(1, 90))
    pixels = np.frombuffer(rng.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    image = Image.fromarray(pixels)
    content = io.BytesIO()
    if mode is not None:
        image = image.convert("L").convert(mode) if mode in ("I", "F", "I;16") else image.convert(mode)
    image.save(content, format=form)
    return content.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that claims a size, with next to nothing in it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = (*chunks, chunk(b"IDAT", zlib.compress(b"\0" * 1000)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(rest)


def mutated(rng, content: bytes) -> bytes:
    """A few bytes changed, lost, doubled, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(max(1, len(data)))
        done = rng.randrange(4)
        if done == 0 and data:
            data[at] = rng.randrange(256)
        elif done == 1:
            del data[at: at + rng.randint(1, 20)]
        elif done == 2:
            data[at:at] = data[at: at + rng.randint(1, 200)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 20))
    return bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.4 and data else data)


def multipart(rng, files: dict, fields: dict, kind: str = "multipart/form-data; boundary=zz", name=None) -> Sent:
    parts = []
    for key, value in fields.items():
        text = value if isinstance(value, str) else str(value)
        head = f'--zz\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n'
        parts.append((head + text).encode("utf-8", "surrogatepass"))
    for key, value in files.items():
        head = f'--zz\r\nContent-Disposition: form-data; name="{key}"; filename="{name or key}"\r\n\r\n'
        parts.append(head.encode("utf-8", "surrogatepass") + value)
    rng.shuffle(parts)
    return Sent(body=b"\r\n".join([*parts, b"--zz--\r\n"]), headers={"Content-Type": kind})


def as_json(value) -> Sent:
    text = value if isinstance(value, str) else json.dumps(value)
    return Sent(body=text.encode("utf-8", "surrogatepass"), headers={"Content-Type": "application/json"})


def usual(rng) -> tuple[dict, dict]:
    """A request that is answered with a picture, in one step."""
    fields = {"box": "10,10,20,20", "text": "red star", "steps": 1, "seed": rng.randrange(99)}
    return {"image": picture(rng, (48, 40))}, fields


def accepted(rng) -> Sent:
    sent = multipart(rng, *usual(rng))
    accept = rng.choice(["*/*", "image/png", "image/jpeg", "text/event-stream", "application/json", "a" * 3000, ";;,"])
    return sent._replace(headers={**sent.headers, "Accept": accept})


def fuzzed_multipart(rng) -> Sent:
    sent = multipart(rng, *usual(rng))
    return sent._replace(body=mutated(rng, sent.body))


def broken_picture(rng) -> Sent:
    files, fields = usual(rng)
    files["image"] = mutated(rng, picture(rng, form=rng.choice(FORMATS)))
    return multipart(rng, files, fields)


def bomb(rng) -> Sent:
    side = rng.choice([12_001, 65_535, 2**31 - 1])
    content = rng.choice([
        lambda: png_of(side, side), lambda: png_of(12_000, 11_000), lambda: png_of(0, 0), lambda: png_of(2**31, 1),
        lambda: png_of(40, 40, chunk(b"zTXt", b"Comment\0\0" + ZEROS())),
        lambda: png_of(40, 40, chunk(b"iCCP", b"name\0\0" + ZEROS())),
        lambda: png_of(40, 40, *[chunk(b"tEXt", b"k%d\0v" % n) for n in range(3000)]),
        lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"," + bytes(20),
        lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 1, *[0] * 6),
        lambda: re.sub(rb"(\xff\xc0..)....", lambda m: m[1] + b"\xff\xff" * 2, picture(rng, form="JPEG"), flags=re.S),
    ])()
    files, fields = usual(rng)
    files[rng.choice(["image", "mask"])] = content
    if "mask" in files:
        del fields["box"]
    return multipart(rng, files, fields)


def odd_picture(rng) -> Sent:
    """Of any mode and size, which is legal; and a mask, which may not fit."""
    form, mode = rng.choice([
        ("PNG", "1"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"), ("PNG", "RGBA"), ("TIFF", "F"), ("TIFF", "CMYK"),
        ("TIFF", "LAB"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGBA"), ("TIFF", "I"), ("BMP", "1"),
    ])
    files = {"image": picture(rng, mode=mode, form=form), "mask": picture(rng, mode=rng.choice(["L", "1", "RGBA"]))}
    return multipart(rng, files, {"steps": 1})


def odd_field(rng) -> Sent:
    files, fields = usual(rng)
    name = rng.choice([
        "text", "precision", "box", "seed", "negative", "steps", "guidance", "task", "model", "variations", "format",
        "image", "mask", rng.choice(ODD), rng.choice(PATHS),
    ])
    value = rng.choice([*ODD, *PATHS, *NUMBERS, "1,2,3", "-1,0,5,5", "0,0,0,0", "9,9,99999,9", "1;2;3;4"])
    if rng.random() < 0.5:
        return multipart(rng, files, {**fields, name.replace('"', ""): value}, name=rng.choice([None, *PATHS, *ODD]))
    wild = rng.choice([value, None, [], {}, [value], {"a": value}, True, 1e308, 10**400, float("nan"), -math.inf, 5])
    image = base64.b64encode(files["image"]).decode()
    return as_json({"image": image, **fields, name: wild})


def bad_base64(rng) -> Sent:
    good = base64.b64encode(picture(rng)).decode()
    return as_json({"image": rng.choice([
        good[:-3], good + "=", good.replace("A", "*"), "data:image/png;base64," + good[:40], "data:,", "", " ",
        "=" * 99, good[::-1], "\ud800", [good], {"a": good}, 7, None, good + "\n" * 50,
    ]), "box": "0,0,1,1"})


def bad_json(rng) -> Sent:
    deep = rng.choice([50, 900, 100_000])
    return as_json(rng.choice([
        "[" * deep, '{"a":' * deep, "[" * deep + "]" * deep, '{"image": ' + "[" * deep + "]" * deep + "}", "NaN",
        "Infinity", '{"seed": NaN, "image": ""}', '{"image": "", "image": 3}', "9" * 6000, "null", '"x"', "",
        "\ufeff{}", "{'a': 1}", '{"steps": 1' + "0" * 4000 + "}", "\x00", "{} {}",
        '{"\\ud800": 1}', '{"seed": 1e999, "image": "aa"}',
    ]))


def bad_type(rng) -> Sent:
    sent = multipart(rng, *usual(rng))
    kind = rng.choice([
        "text/plain", "", "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=o",
        f"multipart/form-data; boundary={'b' * 9000}", "multipart/form-data; boundary=zz; charset=utf-7",
        "multipart/form-data; boundary=zz; charset=punycode", "multipart/form-data; boundary=zz; charset=nothing",
        "application/json", "application/x-www-form-urlencoded", "multipart/mixed; boundary=zz", "image/png", ";;;=",
        'multipart/form-data; boundary="zz', "multipart/form-data; boundary=\xe9", "application/json; charset=utf-16",
    ])
    return sent._replace(headers={"Content-Type": kind, **rng.choice([{}, {"Content-Encoding": "gzip"}])})


def elsewhere(rng) -> Sent:
    path = rng.choice([
        "/page/../api.py", "/page/%2e%2e/api.py", "/page/..%2fapi.py", "/swagger/../../../etc/passwd", "//etc/passwd",
        "/page/%00", "/page/" + "a" * 4000, "/v1/models/../../etc", "/v1", "/v1/inpaint/", "/docs/x", "/%ff%fe",
        "/page//", "/page/app.js/..", "/metrics?a=/etc/passwd", "/openapi.json", "/healthz", "/v1/models", "/metrics",
        "/docs", "/", "/page/app.js?" + "a=b&" * 500, "/page/C:/", "/page/.%252e/api.py",
        "/v1/inpaint?model=/etc/passwd",
    ])
    method = rng.choice(["GET", "GET", "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"])
    host = rng.choice(["evil.example", "[", "", "127.0.0.1:99999999", "localhost@evil.example"])
    headers = rng.choice([
        {}, {"Host": host},
        {"Origin": rng.choice(["http://evil.example", "null", "http://[", "file://"])}, {"Range": "bytes=5-1,-0,x"},
        {"Authorization": "Bearer " + "x" * 3000}, {"If-None-Match": '"x"', "If-Modified-Since": "never"},
        {"Cookie": "a=" + "b" * 3000}, {"Accept-Language": "\xe9"}, {"X" * 3000: "1"},
    ])
    return Sent(path, None, headers, method)


def raw(rng) -> Sent:
    whole = multipart(rng, *usual(rng)).body
    head = b"POST /v1/inpaint HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=zz\r\n"
    return Sent(raw=rng.choice([
        b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n" * 50, rng.randbytes(300),
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET " + b"/a" * 50_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
        head + b"Content-Length: -5\r\n\r\n", head + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\n" + whole,
        head + b"Content-Length: %d\r\n\r\n" % (2 * len(whole)) + whole, head + b"Content-Length: 99999999999\r\n\r\nx",
        head + b"Content-Length: 5\r\n\r\n" + whole, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + whole,
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\nx", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole,
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ]))


KINDS = (
    accepted, bomb, odd_picture, bad_base64, bad_json, bad_type, elsewhere, raw, fuzzed_multipart, broken_picture,
    odd_field, fuzzed_multipart, broken_picture, odd_field,
)


def answered(address: str, sent: Sent) -> tuple[int | None, bytes, bytes]:
    """Status (None where the connection broke off without one), headers and body of the answer."""
    place = urlsplit(address)
    if sent.raw is not None:
        with socket.create_connection((place.hostname, place.port), timeout=30) as line:
            try:
                line.sendall(sent.raw)
                line.shutdown(socket.SHUT_WR)
                content = b"".join(iter(lambda: line.recv(65_536), b"")).removeprefix(CONTINUE)
            except OSError:
                return None, b"", b""
        head, _, body = content.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head.startswith(b"HTTP/") else None, head, body
    connection = http.client.HTTPConnection(place.netloc, timeout=60)
    try:
        connection.putrequest(sent.method, sent.path.replace(" ", "%20"), "Host" in sent.headers, True)
        for name, value in sent.headers.items():
            connection.putheader(name, value.encode("latin-1"))
        if sent.body is not None:
            connection.putheader("Content-Length", str(len(sent.body)))
        connection.endheaders(sent.body)
        answer = connection.getresponse()
        return answer.status, str(answer.headers).encode(), answer.read()
    except (OSError, http.client.HTTPException):
        return None, b"", b""
    finally:
        connection.close()


def faults(sent: Sent, status: int | None, head: bytes, body: bytes) -> list[str]:
    """What is wrong with an answer."""
    found = []
    if status is None:
        return [] if sent.raw is not None else ["no answer"]
    if not (200 <= status < 300 or 400 <= status < 500 or status == 307):  # 307: the same address without a slash
        found.append(f"status {status}")
    if said := LEAKS.search(head + body):
        found.append(f"it says {said[0]!r}")
    if status >= 400 and status != 416 and sent.method != "HEAD" and sent.raw is None:
        detail = json.loads(body) if body.startswith(b"{") else {}
        line = detail.get("detail", "") if set(detail) == {"detail"} else ""
        if not line or "\n" in line or len(line) > 300:
            found.append("not one line")
    return found


def resident_mb(pid: int) -> float:
    """Memory that a process holds."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def harass(address: str, count: int, seed: int = 0, measure=None) -> tuple[Counter, list[str], dict[int, float]]:
    """Send ``count`` hostile requests, four at a time: statuses, faults, and what was measured after how many."""
    rng = random.Random(seed)
    statuses: Counter = Counter()
    wrong: list[str] = []
    measured: dict[int, float] = {}
    with ThreadPoolExecutor(4) as clients:
        for begin in range(0, count, 100):
            part = [KINDS[n % len(KINDS)](rng) for n in range(begin, min(begin + 100, count))]
            for one, found in zip(part, clients.map(lambda sent: answered(address, sent), part), strict=True):
                statuses[found[0]] += 1
                wrong += [f"{fault}: {str(one)[:300]} -> {found[2][:200]!r}" for fault in faults(one, *found)]
            if measure:
                measured[begin + len(part)] = measure()
    return statuses, wrong, measured


def crowd(address: str, count: int, seed: int = 0) -> dict:
    """``count`` different requests alone and then all at once: how far the answers are apart, and who had to wait."""
    rng = random.Random(seed)
    bodies = []
    for n in range(count):
        size = rng.choice([(48, 40), (64, 64)])
        fields = {
            "box": f"{rng.randrange(9)},{rng.randrange(9)},25,20", "text": rng.choice(["red star", "blue ring", ""]),
            "steps": rng.choice([2, 3]), "seed": n, "precision": rng.random(),
        }
        bodies.append(multipart(rng, {"image": picture(rng, size)}, fields))
    turned_away = []

    def pixels(sent: Sent) -> np.ndarray:
        while True:
            status, head, body = answered(address, sent)
            if status != 429:
                break
            turned_away.append(1)
            time.sleep(float(re.search(rb"(?i)retry-after: (\d+)", head)[1]) * random.uniform(0.5, 1.5))
        assert status == 200, body[:200]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(json.loads(body)["results"][0]["image"])))).astype(int)

    pixels(bodies[0])
    began = time.monotonic()
    alone = [pixels(sent) for sent in bodies]
    alone_s = time.monotonic() - began
    waiting, over = [], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            text = answered(address, Sent("/metrics", method="GET"))[2].decode()
            waiting.append(float(re.search(r"(?m)^sb_waiting (\S+)", text)[1]))

    watching = threading.Thread(target=look)
    watching.start()
    began = time.monotonic()
    with ThreadPoolExecutor(count) as clients:
        together = list(clients.map(pixels, bodies))
    together_s = time.monotonic() - began
    over.set()
    watching.join()
    neighbours = zip(alone, together[1:] + together[:1], strict=True)
    others = [np.abs(a - b).max() if a.shape == b.shape else 255 for a, b in neighbours]
    return {
        "answers": len(together), "turned_away": len(turned_away), "most_waiting": max(waiting, default=0),
        "apart": max(int(np.abs(a - b).max()) for a, b in zip(alone, together, strict=True)),
        "requests_differ_by": int(min(others)), "times_as_fast": round(alone_s / together_s, 2),
    }


def try_specification(address: str) -> list[str]:
    """What schemathesis, where it is installed, finds wrong; it cannot know that not every text is a picture."""
    command = shutil.which("schemathesis", path=Path(sys.executable).parent)
    if command is None:
        print("schemathesis is not installed: the OpenAPI page was not tried", flush=True)
        return []
    done = subprocess.run(
        [command, "run", f"{address}/openapi.json", "--no-color", "--continue-on-failure", "--seed", "1",
         "--exclude-checks", "positive_data_acceptance"], capture_output=True, text=True, cwd=tempfile.gettempdir(),
    )
    print(f"schemathesis: {done.stdout.splitlines()[-1].strip('= ')}", flush=True)
    return [] if done.returncode == 0 else [done.stdout]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--crowd", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from sb.app.benchmark import serving

    with serving(args.model) as (address, pid):
        before, began = resident_mb(pid), time.monotonic()
        statuses, wrong, measured = harass(address, args.requests, args.seed, lambda: resident_mb(pid))
        counts = ", ".join(f"{n} x {status}" for status, n in sorted(statuses.items(), key=str))
        print(f"{args.requests} hostile requests in {time.monotonic() - began:.0f} s: {counts}", flush=True)
        after = [f"{mb:.0f} MB after {n}" for n, mb in measured.items() if n % 500 == 0]
        print(f"{before:.0f} MB before, {', '.join(after)}", flush=True)
        wrong += try_specification(address)
        print(*wrong, f"{len(wrong)} wrong answers", sep="\n", flush=True)
        found = crowd(address, args.crowd, args.seed) if args.crowd else {"apart": 0}
        print(found, f"{resident_mb(pid):.0f} MB")
    return 0 if not wrong and found["apart"] <= 1 else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
