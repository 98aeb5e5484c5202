"""The sbatch files, with stand-ins for SLURM's commands: a job is queued again when, and only when, it asks for it."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "tools" / "slurm"
STUBS = {
    # skips its own options and runs the rest
    "srun": 'while [[ $1 == --* ]]; do echo "$1" >> "$LOG/options"; shift; done; exec "$@"',
    "scontrol": 'if [ "$1" = requeue ]; then echo "$2" >> "$LOG/requeued"; else echo node-1; fi',
    "pkill": 'echo "$@" > "$LOG/told"',
    "python": """echo "$@" > "$LOG/command"
if [ "$DOES" = waits ]; then until [ -e "$LOG/told" ]; do sleep 0.05; done; fi
case $DOES in preempted|waits) touch "$RUN_DIR/REQUEUE";; esac
exit $CODE""",
}


@pytest.fixture
def job(tmp_path):
    """Starts a file with its stand-ins; ``does`` and ``code`` say what the training does and how srun reports it."""
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "run").mkdir()

    def start(file: str, does: str, code: int) -> subprocess.Popen:
        slurm = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77",
                 "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_CPUS_PER_TASK": "6"}
        return subprocess.Popen(
            ["bash", str(SLURM / file), "configs/coco.yaml", str(tmp_path / "run"), "trainer.accumulate=2"],
            env={**os.environ, **slurm, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "LOG": str(tmp_path),
                 "RUN_DIR": str(tmp_path / "run"), "DOES": does, "CODE": str(code)},
        )

    return start


@pytest.mark.parametrize("file, does, code, requeued", [
    ("train_srun.sbatch", "ends", 0, False),
    ("train_srun.sbatch", "fails", 2, False),
    ("train_srun.sbatch", "leaves", 85, True),
    ("train_srun.sbatch", "preempted", 137, True),  # the others were killed before they could say 85
    ("train_torchrun.sbatch", "ends", 0, False),
    ("train_torchrun.sbatch", "fails", 1, False),
    ("train_torchrun.sbatch", "preempted", 1, True),
])
def test_a_job_is_queued_again_when_it_asks(file, does, code, requeued, job, tmp_path):
    (tmp_path / "run" / "REQUEUE").write_text("of an earlier time")
    assert job(file, does, code).wait(20) == (0 if requeued else code)
    assert (tmp_path / "requeued").exists() is requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "77\n"
    assert "--cpus-per-task=6" in (tmp_path / "options").read_text().split()
    command = (tmp_path / "command").read_text()
    for word in ("tools/train.py configs/coco.yaml", "resume=auto", "trainer.num_nodes=2", "trainer.devices=8",
                 f"run_dir={tmp_path}/run", "trainer.accumulate=2"):
        assert word in command


def test_torchruns_shell_passes_the_signal_on_and_waits(job, tmp_path):
    process = job("train_torchrun.sbatch", "waits", 1)
    deadline = time.monotonic() + 20
    while not (tmp_path / "command").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0 and (tmp_path / "requeued").exists()
    told = (tmp_path / "told").read_text()
    assert told.startswith("-USR1 -f ")
    pattern, words = told.removeprefix("-USR1 -f ").strip(), f"tools/train.py configs/coco.yaml run_dir={tmp_path}/run"
    assert re.search(pattern, f"/usr/bin/python3.12 -u {words} resume=auto")
    for other in (f"srun python -m torch.distributed.run {words}", f"python -m torch.distributed.run {words}",
                  f"python -u {words}_2 resume=auto"):
        assert not re.search(pattern, other)


def test_the_files_ask_slurm_for_what_they_rely_on():
    for file, says in (("train_srun.sbatch", "USR1@"), ("train_torchrun.sbatch", "B:USR1@")):
        text = (SLURM / file).read_text()
        for option in (f"--signal={says}", "--requeue", "--open-mode=append"):
            assert f"#SBATCH {option}" in text
