"""Many requests from a file: each painted once, whole, as if alone; a bad line costs only itself."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sb import bulk
from sb.diversity import diversity
from sb.pictures import image_tensor, mask_tensor, side_by_side
from sb.types import Request, Result
from tests.random_requests import tiny_painter


@pytest.fixture(scope="module")
def painter():
    return tiny_painter()


@pytest.fixture
def folder(tmp_path):
    """Two pictures of different sizes with masks, and a broken one."""
    noise = np.random.default_rng(0)
    for name, size in (("a", (24, 40)), ("b", (33, 35))):
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        mask = np.zeros(size, np.uint8)
        mask[5:15, 10:30] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return tmp_path


def a_line(name="a", **other):
    return {"id": name, "image": f"{name}.png", "mask": f"{name}_mask.png", "text": "red star", **other}


def run(painter, folder, lines, **more):
    file = folder / "requests.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    counts = bulk.paint_file(painter, file, folder / "out", "MODEL", more.pop("common", {}), **more)
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    return dict(counts), rows


def watched(painter, monkeypatch):
    """The sizes of the batches that the painter gets from now on."""
    sizes, paint = [], painter.paint

    def counted(requests, **options):
        sizes.append(len(requests))
        return paint(requests, **options)

    monkeypatch.setattr(painter, "paint", counted)
    return sizes


def test_every_line_is_painted_as_if_alone(painter, folder):
    lines = [a_line(seed=3), a_line("b", steps=1, precision="box"), a_line(id="c", box=[2, 3, 9, 8], mask=None)]
    lines += [{"id": "d", "image": "a.png", "mask": "a_mask.png", "task": "remove"}]
    counts, rows = run(painter, folder, lines, common={"guidance": 1.5})
    assert counts == {"painted": 4} and [row["id"] for row in rows] == ["a", "b", "c", "d"]
    image, mask = image_tensor(folder / "a.png"), mask_tensor(folder / "a_mask.png")
    alone = painter.paint([Request(image, mask, "red star", 0.0, 3)], guidance=1.5)[0]
    written = image_tensor(folder / "out" / "a" / "result.png")
    assert (written.int() - alone.pixels.int()).abs().max() <= 1 and not torch.equal(written, image)
    assert {path.name for path in (folder / "out" / "a").iterdir()} == {*bulk.names(1), "thumbnail.jpg"}
    assert (rows[1]["steps"], rows[1]["level"], rows[0]["steps"], rows[1]["guidance"]) == (1, 2.0, 2, 1.5)
    assert rows[2]["box"] == [2, 3, 9, 8] and (rows[3]["text"], rows[3]["task"]) == ("", "remove")


def test_a_second_call_paints_only_what_is_missing(painter, folder, monkeypatch):
    run(painter, folder, [a_line(), a_line("b")])
    before = (folder / "out" / "a" / "result.png").stat().st_mtime_ns
    sizes = watched(painter, monkeypatch)
    counts, rows = run(painter, folder, [a_line("b"), a_line(), a_line(id="new")])
    assert counts == {"kept": 2, "painted": 1} and sizes == [1]
    assert [row["status"] for row in rows] == ["kept", "kept", "painted"]
    assert (folder / "out" / "a" / "result.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("spoil, says", [
    (lambda folder: {"seed": 1}, r"differs in seed \(0 there, 1 now\): give this line another id, or remove that"),
    (lambda folder: {"steps": 1}, r"differs in steps \(2 there, 1 now\)"),
    (lambda folder: Image.new("RGB", (40, 24)).save(folder / "a.png") or {}, "differs in image_sha256"),
    (lambda folder: Image.new("L", (40, 24), 255).save(folder / "a_mask.png") or {}, "differs in mask_sha256"),
    (lambda folder: (folder / "out/a/result.png").unlink() or {}, "out/a lacks result.png: give this line another"),
    (lambda folder: (folder / "out/a/request.json").unlink() or {}, "out/a is there and holds no finished request"),
])
def test_what_is_there_is_never_painted_over(painter, folder, capsys, spoil, says):
    run(painter, folder, [a_line()])
    counts, rows = run(painter, folder, [a_line(**spoil(folder)), a_line("b")])
    assert counts == {"failed": 1, "painted": 1}
    assert re.search(says, rows[0]["error"]) and f"requests.jsonl:1: {rows[0]['error']}" in capsys.readouterr().err


def test_without_an_id_another_request_is_another_name(painter, folder):
    line = {key: value for key, value in a_line().items() if key != "id"}
    _, first = run(painter, folder, [line])
    counts, rows = run(painter, folder, [{**line, "seed": 1}, line])
    assert counts == {"painted": 1, "kept": 1} and rows[1]["id"] == first[0]["id"] != rows[0]["id"]
    assert all(re.fullmatch(r"a-[0-9a-f]{10}", row["id"]) for row in rows)


BAD = [
    ("{", "this line is not JSON: Expecting property name"),
    ("[1]", "a request is an object of keys, not [1]"),
    (a_line(txt="x"), "a request has no key 'txt'; did you mean 'text'?"),
    ({"image": "a.png", "mask": "a_mask.png"}, "needs a text, if only an empty one"),
    (a_line(box="1,2,3,4"), "needs a mask or a box, and not both"),
    (a_line(mask=None), "needs a mask or a box, and not both"),
    (a_line(mask=None, box=[1, 2, 3]), "must read x,y,w,h"),
    (a_line(mask=None, box=[30, 2, 30, 4]), "does not lie inside the 40x24 px image"),
    (a_line(precision=1.5), "precision 1.5 is outside [0, 1]"),
    (a_line(steps="many"), "a request: steps must be int, not 'many'"),
    (a_line(steps=0), "needs steps >= 1"),
    ('{"image": "a.png", "mask": "a_mask.png", "text": "", "guidance": NaN}', "guidance must be a finite number"),
    (a_line(seed=-1), "seed -1 is outside 0"),
    (a_line(variations=0), "variations must be 1 to 1000, not 0"),
    (a_line(id="../a"), "id '../a' cannot name a folder"),
    (a_line(id="Report.html"), "id 'Report.html' cannot name a folder"),
    (a_line(id="GOOD"), "'GOOD' is line 1 already: give each its own id"),
    (a_line(image="absent.png"), "no image at"),
    (a_line(image="broken.png"), "broken.png cannot be read as an image"),
    (a_line(mask="b_mask.png"), "the mask is 35x33 px and the image 40x24 px"),
    (a_line(task="erase"), "task: this model has no key 'erase'; there are: object, remove"),
    (a_line(task="remov"), "did you mean 'remove'?"),
]


def test_a_bad_line_is_named_and_costs_only_itself(painter, folder, capsys):
    lines = [a_line(id="good"), *(line for line, _ in BAD), "", a_line("b")]
    for number, line in enumerate(lines):
        if isinstance(line, dict) and line.get("id") == "a":
            line["id"] = f"bad{number}"
    counts, rows = run(painter, folder, lines)
    assert counts == {"failed": len(BAD), "painted": 2}
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == len(BAD)
    for number, (_, fault) in enumerate(BAD, 2):
        assert fault in rows[number - 1]["error"] and rows[number - 1]["line"] == number
        assert any(line.startswith(f"error: requests.jsonl:{number}: ") and fault in line for line in said)


def test_alike_requests_share_batches_and_others_do_not(painter, folder, monkeypatch):
    sizes = watched(painter, monkeypatch)
    lines = [a_line(id=f"a{n}", seed=n) for n in range(5)] + [a_line("b", id=f"b{n}") for n in range(2)]
    lines += [a_line(id="other", steps=1)]
    counts, _ = run(painter, folder, lines, batch=4)
    assert counts == {"painted": 8} and sizes == [4, 1, 2, 1]


def test_no_more_than_a_few_batches_are_held(painter, folder, monkeypatch):
    held, sizes = [], watched(painter, monkeypatch)
    take = bulk._Run.take

    def counted(self, *arguments):
        take(self, *arguments)
        held.append(sum(map(len, self._waiting.values())))

    monkeypatch.setattr(bulk._Run, "take", counted)
    run(painter, folder, [a_line(id=f"a{n}", threshold=n / 20) for n in range(12)], batch=2)
    assert max(held) == bulk.WAITING * 2 and sizes == [1] * 12
    monkeypatch.setattr(bulk, "WAITING_PX", 3 * 24 * 40)
    held.clear()
    run(painter, folder, [a_line(id=f"b{n}") for n in range(8)], batch=6)
    assert max(held) == 3 and sizes[12:] == [4, 4]


@pytest.mark.parametrize("error", [RuntimeError("out of memory\nat length"), MemoryError()])
def test_one_that_cannot_be_painted_does_not_take_its_batch_along(painter, folder, monkeypatch, error):
    paint = painter.paint

    def fails(requests, **options):
        if any(request.seed == 7 for request in requests):
            raise error
        return paint(requests, **options)

    monkeypatch.setattr(painter, "paint", fails)
    counts, rows = run(painter, folder, [a_line(), a_line(id="seven", seed=5, variations=4), a_line(id="c")])
    assert counts == {"painted": 2, "failed": 1}
    assert rows[1]["error"] == ("out of memory at length" if str(error) else "MemoryError")
    assert not (folder / "out" / "seven").exists()


def test_a_killed_run_leaves_no_half_a_result(painter, folder, monkeypatch):
    calls = []
    save = bulk.pictures.save_png

    def stop(image, path):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sb.bulk.pictures.save_png", stop)
        run(painter, folder, [a_line()])
    assert len(calls) == 3 and calls[0].exists() and not (folder / "out" / "a").exists()
    counts, _ = run(painter, folder, [a_line()])
    assert counts == {"painted": 1}
    assert {path.name for path in (folder / "out").iterdir()} == {"a", "report.html", "results.jsonl"}


def test_variations_are_numbered_and_their_diversity_is_theirs(painter, folder):
    _, rows = run(painter, folder, [a_line(variations=3, seed=5), a_line(id="one", seed=6)], batch=2)
    out = folder / "out"
    painted = [image_tensor(out / "a" / f"result_{n}.png") for n in (1, 2, 3)]
    assert (painted[1].int() - image_tensor(out / "one" / "result.png").int()).abs().max() <= 1  # the seed of that one
    assert rows[0]["diversity"] == round(diversity(painted, mask_tensor(folder / "a_mask.png")), 2) > 0
    assert "diversity" not in rows[1]
    assert Image.open(out / "a" / "side_by_side.png").size == (5 * 40 + 4 * 4, 24)


def test_a_file_without_requests_is_refused(painter, folder):
    for content in (None, "\n\n"):
        if content:
            (folder / "empty.jsonl").write_text(content)
        with pytest.raises(ValueError, match="empty.jsonl"):
            bulk.paint_file(painter, folder / "empty.jsonl", folder / "out", "MODEL", {})
    assert not (folder / "out").exists()


def test_a_strip_shows_input_mask_and_all_results():
    image = torch.full((3, 40, 20), 100, dtype=torch.uint8)
    mask = torch.ones(1, 40, 20, dtype=torch.uint8)
    results = [Result(torch.full_like(image, level), image, mask.float(), 0) for level in (10, 20, 30)]
    strip = side_by_side(Request(image, mask, ""), results, side_px=20)
    assert strip.size == (5 * 10 + 4 * 4, 20)
    assert [strip.getpixel((5 + 14 * n, 10))[0] for n in range(5)] == [100, 178, 10, 20, 30]
    single = side_by_side(Request(image, mask, ""), results[:1])
    assert single.size == (4 * 20 + 3 * 4, 40) and single.getpixel((50, 20)) == (255, 255, 255)


def test_no_line_is_too_odd_for_the_others(painter, folder):
    whole = "1" + "0" * 400
    odd = [
        json.dumps(a_line("a", id="p"))[:-1] + f', "precision": {whole}' + "}",
        json.dumps(a_line("a", id="g"))[:-1] + f', "guidance": {whole}' + "}",
        a_line(id="\u754c" * 90),
        {"image": "a.png", "box": [1, 1, 5, 5], "text": "half a pair: \ud800"},
    ]
    counts, rows = run(painter, folder, [*odd, a_line("b")])
    assert counts == {"painted": 2, "failed": 3} and [row["status"] for row in rows[:3]] == ["failed"] * 3
    assert "half a pair" in (folder / "out" / "report.html").read_text()


def test_a_picture_of_a_long_name_is_filed(painter, folder):
    name = "\u754c" * 80
    Image.open(folder / "a.png").save(folder / f"{name}.png")
    counts, rows = run(painter, folder, [{"image": f"{name}.png", "box": [1, 1, 5, 5], "text": "x"}])
    assert counts == {"painted": 1} and rows[0]["id"].startswith("\u754c") and len(rows[0]["id"].encode()) < 120


def test_whatever_a_decoder_raises_is_one_line(painter, folder, monkeypatch):
    def fail(*arguments):
        raise NotImplementedError("a header of another kind")

    with monkeypatch.context() as patch:
        patch.setattr("sb.pictures.note_bits", fail)
        counts, rows = run(painter, folder, [a_line()])
    assert counts == {"failed": 1} and "a header of another kind" in rows[0]["error"]


def test_what_ends_a_run_leaves_a_report(painter, folder, monkeypatch):
    run(painter, folder, [a_line()])
    monkeypatch.setattr("sb.bulk.os.rename", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        run(painter, folder, [a_line(), a_line("b")])
    assert "1 kept" in (folder / "out" / "report.html").read_text()


def test_other_weights_are_another_request(painter, folder):
    run(painter, folder, [a_line()])
    other = copy.copy(painter)
    other.denoiser = copy.deepcopy(painter.denoiser)
    next(other.denoiser.parameters()).data.add_(1.0)
    counts, rows = run(other, folder, [a_line()])
    assert counts == {"failed": 1} and "differs in weights" in rows[0]["error"]


def test_the_same_weights_by_another_name_and_words_are_kept(painter, folder):
    run(painter, folder, [a_line(precision="outline")])
    (folder / "requests.jsonl").write_text(json.dumps(a_line(precision=1)) + "\n")
    counts = bulk.paint_file(painter, folder / "requests.jsonl", folder / "out", "MODEL/", {})
    assert counts == {"kept": 1}


def test_a_missing_thumbnail_costs_no_report(painter, folder):
    run(painter, folder, [a_line()])
    (folder / "out" / "a" / "thumbnail.jpg").unlink()
    counts, _ = run(painter, folder, [a_line()])
    assert counts == {"kept": 1} and "1 kept" in (folder / "out" / "report.html").read_text()
