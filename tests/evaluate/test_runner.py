"""A list in chunks: any number of processes, killed at any moment, gives the same files; other work is refused."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
from tqdm import tqdm

from sb.evaluate import runner
from sb.evaluate.evaluation import evaluate_list, place_list
from sb.evaluate.lists import read_list
from sb.evaluate.runner import Job, measured, run_part

from . import acme_systems

ROOT = Path(__file__).parents[2]
COMPARED = ("report.json", "report.html", "per_request.json")
METRICS = ({"name": "acme_brightness"}, {"name": "acme_gap"})


@pytest.fixture(scope="module")
def list_file(tmp_path_factory):
    from sb.evaluate.protocols import make_list

    place = tmp_path_factory.mktemp("list") / "list.jsonl"
    make_list(place, {"name": "shapes"}, 7, size_px=32)
    return place


def job_in(out, list_file, options=None, **fields):
    """A job with its list in place."""
    place_list(out, list_file)
    system = {"name": "acme_flat", "system": "", "options": options or {}}
    return Job(**{"out": str(out), "data": (), "adapter": system, "metrics": METRICS, "chunk": 3,
                  "plugins": ("acme_systems",), **fields})


@pytest.fixture
def job_at(list_file, tmp_path, monkeypatch):
    """A folder's name, options and fields -> the job there, its list in place."""
    acme_systems.enter()
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # its thread would hold a lock that forked processes wait for
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "acme_systems", acme_systems)

    return lambda name="out", options=None, **fields: job_in(tmp_path / name, list_file, options, **fields)


@pytest.fixture(scope="module")
def undisturbed(list_file, tmp_path_factory):
    """An evaluation that nothing disturbed."""
    acme_systems.enter()
    job = job_in(tmp_path_factory.mktemp("undisturbed") / "whole", list_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "acme_systems", acme_systems)
        evaluate_list(job)
    return Path(job.out)


@pytest.fixture
def whole(undisturbed, tmp_path):
    """The same, in a folder of the test's own."""
    return shutil.copytree(undisturbed, tmp_path / "whole")


def differing(one, other):
    """Names of compared files, and of pictures, that are not equal byte for byte."""
    pictures = sorted(path.relative_to(one) for path in (one / "pictures").iterdir())
    assert len(pictures) == 14 and len(list((other / "pictures").iterdir())) == 14
    return [str(name) for name in (*COMPARED, *pictures) if (one / name).read_bytes() != (other / name).read_bytes()]


def numbers_in(diary):
    return sorted(int(number) for line in diary.read_text().splitlines() for number in line.split())


def test_parts_share_the_chunks_and_the_last_reports(job_at, whole, tmp_path):
    job = job_at("parts", {"diary": str(tmp_path / "diary")})
    assert evaluate_list(job, part=(1, 3)) is None
    assert numbers_in(tmp_path / "diary") == [3, 4, 5, 12, 13]
    assert not (tmp_path / "parts" / "report.json").exists()
    assert evaluate_list(job, part=(2, 3)) is None and evaluate_list(job, part=(0, 3)) is not None
    assert numbers_in(tmp_path / "diary") == list(range(14))
    assert differing(whole, tmp_path / "parts") == []


def test_parts_that_end_at_once_write_one_report(job_at, whole, tmp_path):
    """As those of an array job that was stopped in the last moment and starts again."""
    job = job_at("again")
    evaluate_list(job)
    with ThreadPoolExecutor(4) as several:
        reports = list(several.map(lambda part: evaluate_list(job, part=(part, 4)), range(4)))
    assert all(report == reports[0] for report in reports) and differing(whole, tmp_path / "again") == []
    assert len(list((tmp_path / "again" / "tensorboard").iterdir())) == 1


def test_what_is_finished_is_not_done_again(job_at, whole, tmp_path):
    diary = tmp_path / "diary"
    job = job_at("again", {"diary": str(diary)})
    first = evaluate_list(job)
    (tmp_path / "again" / "rows" / "000002.jsonl").unlink()
    diary.unlink()
    assert evaluate_list(job) == first and numbers_in(diary) == [6, 7, 8]
    assert differing(whole, tmp_path / "again") == []


@pytest.mark.parametrize("written", range(1, 8))
def test_a_chunk_cut_off_after_any_file_is_done_again(job_at, whole, tmp_path, monkeypatch, written):
    """Each chunk writes three pictures, features and rows; it dies after so many files."""
    job, count = job_at("cut"), 0

    def dying(name):
        write = getattr(runner, name)

        def writes(*arguments):
            nonlocal count
            write(*arguments)
            count += 1
            if count == written:
                raise KeyboardInterrupt

        monkeypatch.setattr(runner, name, writes)

    _claim = runner._claim  # what is said of the folder is no part of a chunk
    monkeypatch.setattr(runner, "_claim", lambda *arguments: None)
    _claim(Path(job.out) / runner.ABOUT, json.loads((whole / runner.ABOUT).read_text()))
    with monkeypatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        for name in ("save_png", "write_state", "write_whole"):
            dying(name)
        run_part(job, 0, 1)
    evaluate_list(job)
    assert differing(whole, tmp_path / "cut") == []


def command(job, *more):
    return [
        sys.executable, str(ROOT / "tools" / "evaluate.py"), "", "--adapter", "acme_flat", "--list",
        str(Path(job.out) / "list.jsonl"), "--metrics", "acme_brightness", "acme_gap", "--batch", "3", "--plugins",
        "acme_systems", "--out", job.out, *more,
    ]


def environment():
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_tool_killed_and_started_again_with_two_processes_gives_the_report_of_one(job_at, whole, tmp_path):
    job, diary = job_at("two"), tmp_path / "diary"
    asked = command(job, "--processes", "2", "--set", f"diary={diary}", "seconds=0.2")
    running = subprocess.Popen(asked, cwd=tmp_path, env=environment(), start_new_session=True)
    rows, end = tmp_path / "two" / "rows", time.monotonic() + 120
    while not list(rows.glob("0*.jsonl")):
        assert time.monotonic() < end and running.poll() is None
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    done = len(list(rows.glob("0*.jsonl")))
    assert 1 <= done < 5 and not (tmp_path / "two" / "report.json").exists()
    diary.write_text("")
    ended = subprocess.run(asked, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert "brightness" in ended.stdout and f"open {job.out}/report.html" in ended.stdout
    assert len(diary.read_text().splitlines()) == 5 - done
    assert differing(whole, tmp_path / "two") == []


def alone(job):
    """In a process that may be killed: with a lock for its bar that no other waits for."""
    tqdm.set_lock(threading.RLock())
    run_part(job, 0, 1)


def test_killed_at_any_moment_it_goes_on_to_the_same_report(job_at, whole, tmp_path):
    moments = random.Random(0)
    job, fork = job_at("killed", {"seconds": 0.1}), multiprocessing.get_context("fork")
    kills = 0
    for _ in range(6):
        process = fork.Process(target=alone, args=(job,))
        process.start()
        process.join(moments.uniform(0, 0.3))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    assert kills >= 1
    evaluate_list(job)
    assert differing(whole, tmp_path / "killed") == []


def test_two_processes_give_the_report_of_one(job_at, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "START", "fork")  # what they do is the same, and they start at once
    job = job_at("both", {"diary": str(tmp_path / "diary")})
    evaluate_list(job, processes=2)
    assert numbers_in(tmp_path / "diary") == list(range(14))
    assert differing(whole, tmp_path / "both") == []


def test_a_process_that_cannot_go_on_says_why_or_is_named(job_at, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(acme_systems.Flat, "paint", mock.Mock(side_effect=torch.OutOfMemoryError("tried 9 GiB")))
        with pytest.raises(ValueError, match="out of memory: tried 9 GiB; lower --batch"):
            evaluate_list(job_at("large"))
    monkeypatch.setattr(runner, "START", "fork")
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        evaluate_list(job_at("bad", {"seconds": -1}), processes=2)
    monkeypatch.setattr(acme_systems.Flat, "paint", lambda *told: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ChildProcessError, match="SIGKILL.*the same command goes on"):
        evaluate_list(job_at("killed"), processes=2)


def test_another_evaluation_in_the_same_folder_is_refused(job_at, list_file, whole, tmp_path):
    for fields, says in (
        ({"chunk": 4}, "differs in chunk"), ({"metrics": METRICS[:1]}, "differs in metrics"),
        ({"threads": 2}, "differs in threads"),
    ):
        with pytest.raises(ValueError, match=f"holds another evaluation, which {says}"):
            run_part(job_at("whole", **fields), 0, 1)
    with pytest.raises(ValueError, match="another list"):
        place_list(whole, protocol={"name": "shapes"}, count=3, size_px=32)
    place_list(whole, protocol={"name": "shapes"}, count=7, size_px=32)
    assert (whole / "list.jsonl").read_bytes() == list_file.read_bytes()


def test_what_was_found_comes_back_in_the_lists_order(job_at, tmp_path):
    job = job_at("found", metrics=({"name": "acme_brightness", "blind": "star"}, METRICS[1]))
    for part in (1, 0):
        run_part(job, part, 2)
    found, cases = measured(job), read_list(Path(job.out) / "list.jsonl").cases
    assert found.values["level_told"].tolist() == [case.level for case in cases]
    assert found.values["brightness"].isnan().tolist() == [case.label == "star" for case in cases]
    assert found.features["acme_gap.fake"].shape == (14, 3)


def test_a_systems_level_is_on_its_own_ladder():
    from sb.evaluate.lists import Case

    case = Case("a", "0", "cat", "a cat", 2.0, 5, 7, (0, 0, 4, 4), (4, 4), {"size": [4, 4], "counts": "0`0"}, None)
    request = runner.request_of(case, torch.zeros(3, 4, 4, dtype=torch.uint8), 10)
    assert request.level == 4 and request.seed == 7 and bool(request.mask.all())


def test_threads_are_given_back(job_at):
    before = torch.get_num_threads()
    run_part(job_at("threads", threads=before + 1), 0, 1)
    assert torch.get_num_threads() == before


def test_processes_take_turns_on_the_gpus(job_at, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runner, "find_device", torch.device)
    assert [job_at().device_of(part) for part in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert job_at(device="cpu").device_of(1) == "cpu" and job_at(device="cuda:1").device_of(0) == "cuda:1"


def test_a_device_that_is_not_here_is_said(job_at, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "nonsense") if not torch.cuda.is_available() else ("nonsense",):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
            run_part(job_at(device, device=device), 0, 1)
