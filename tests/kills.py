"""Runs of the real training command that are killed and continued, beside one that was left alone.

python tests/kills.py --runs 20 --out kills [--worlds shapes coco]     prints a line per run
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT.parent / "shared/data/coco-mini-256"
IMAGES, WORLDS = 320, ("shapes", "coco")
SMALL = [  # 2 gloo ranks x 2 workers, a network of next to nothing, saves every other step
    "image_size=32", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp",
    "trainer.precision=32-true", "trainer.progress_bar=false", "data.batch_size=4", "data.workers=2",
    "data.val_images=8", "data.min_area=0.0", "data.max_area=1.0", "vae.widths=8", "vae.blocks=1", "vae.weights=null",
    "denoiser.widths=[16,32]", "denoiser.blocks=1", "denoiser.attention=[false,true]", "denoiser.heads=2",
    "denoiser.groups=8", "text={name: tiny, width: 16, layers: 1, heads: 2}", "callbacks.sample_log=null",
    "callbacks.save.every_images=16", "callbacks.ema.every_images=0", "plugins=[tests.batch_trace]",
    f"trainer.images={IMAGES}", f"trainer.val_every_images={IMAGES // 4}",
]


@dataclass
class Command:
    """One training run: where it lies, and how it is started."""

    folder: Path
    overrides: list[str]
    run_file: str = "configs/quickstart.yaml"
    launcher: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self, *more: str) -> subprocess.Popen:
        """In a process group of its own, its output in ``folder/log.txt``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, *self.launcher, "tools/train.py", self.run_file, *SMALL, *self.overrides,
            f"run_dir={self.run_dir}", f"+callbacks.trace={{name: batch_trace, folder: {self.folder}/trace}}", *more,
        ]
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )

    def finish(self, *more: str, timeout: float = 240) -> int:
        """Run to the end: the exit code."""
        process = self.start(*more)
        try:
            return process.wait(timeout)
        finally:
            end_group(process)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def lines(self, rank: int) -> list[dict]:
        """What a rank has written down so far."""
        path = self.folder / "trace" / f"rank-{rank}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_batch(self, process: subprocess.Popen, images: int, rank: int = 0, timeout: float = 120) -> None:
        """Until ``rank`` has begun a batch at ``images`` or later, or the process has ended."""
        deadline = time.monotonic() + timeout
        before = len(self.lines(rank))
        while process.poll() is None and time.monotonic() < deadline:
            if any(line["images"] >= images for line in self.lines(rank)[before:]):
                return
            time.sleep(0.02)

    def pids(self, ranks: int = 2) -> list[int]:
        return [self.lines(rank)[-1]["pid"] for rank in range(ranks)]


def end_group(process: subprocess.Popen, seconds: float = 0) -> float:
    """Seconds until no process of the group is left; after ``seconds`` all are killed."""
    started = time.monotonic()
    while True:
        process.poll()
        try:
            if time.monotonic() - started >= seconds:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.killpg(process.pid, 0)
        except ProcessLookupError:
            process.wait()
            return time.monotonic() - started
        time.sleep(0.05)


def once(lines: list[dict]) -> list[dict]:
    """The sequence without what was repeated after a kill; AssertionError where a repetition differs."""
    sequence: dict[int, dict] = {}
    for line in lines:
        line = {key: value for key, value in line.items() if key != "pid"}
        assert sequence.setdefault(line["images"], line) == line, f"another batch at {line['images']} images"
    return list(sequence.values())


def weights(run_dir: Path) -> dict[str, bytes | torch.Tensor]:
    """Every weight that a run ended with, by name: the model folder's files, and the checkpoint's tensors."""
    found: dict[str, bytes | torch.Tensor] = {
        path.name: path.read_bytes() for path in (run_dir / "model").glob("*.safetensors")
    }

    def collect(name: str, value) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{name}.{key}", inner)

    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    for part in ("state_dict", "optimizer_states", "callbacks"):
        value = checkpoint.get(part, {})
        collect(part, dict(enumerate(value)) if isinstance(value, list) else value)
    return found


def differences(one: Command, other: Command, ranks: int = 2) -> list[str]:
    """What two finished runs differ in: batches by rank, weights by name; empty where they are equal bit for bit."""
    found = [f"rank {rank}: other batches" for rank in range(ranks) if once(one.lines(rank)) != once(other.lines(rank))]
    ours, theirs = weights(one.run_dir), weights(other.run_dir)
    assert len(ours) > 20 and any("ema" in name for name in ours)
    found += sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
            found.append(name)
    return found


def shards(world: str, folder: Path) -> tuple[str, list[str]]:
    """The run file and overrides of a world, its small shards built below ``folder``."""
    if world == "coco" and not MINI.is_dir():
        raise FileNotFoundError(f"real photos are not here ({MINI})")
    for split, shard in (("train", 24), ("val", 24)):
        photos = MINI / split
        source = (
            ["shapes", f"num_images={96 if split == 'train' else 24}", "size_px=32", f"split={split}"]
            if world == "shapes" else
            ["coco", f"images={photos}/images", f"instances={photos}/annotations/instances.json",
             f"captions={photos}/annotations/captions.json", f"split={split}"]
        )
        if not (folder / world / split / "manifest.json").exists():
            subprocess.run(
                [sys.executable, "tools/build_shards.py", "--source", source[0], "--out", str(folder / world / split),
                 "--images-per-shard", str(shard), *source[1:]],
                cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
    spec = [f"data.{split}=[{{shards: {folder / world / split}}}]" for split in ("train", "val")]
    return f"configs/{'quickstart' if world == 'shapes' else 'coco'}.yaml", spec


def kill(
    command: Command, process: subprocess.Popen, rng: random.Random, seconds: float, starting: float
) -> str | None:
    """Kill everything or one rank at a random moment of a run that takes ``seconds``, ``starting`` of them before its
    first batch; what was done, None where it had ended before."""
    in_a_save, moment = rng.random() < 0.3, rng.uniform(0, seconds)
    if rng.random() < 0.7:  # half of a short run is imports: look more often at the training
        moment = rng.uniform(starting, seconds)
    if moment < starting:
        time.sleep(moment)
        who = "all"
    else:
        command.wait_for_batch(process, 0)
        time.sleep(moment - starting)
        who = rng.choice(["all", "all", "rank 0", "rank 1"])
    aside = command.run_dir / "checkpoints"
    deadline = time.monotonic() + 2
    while in_a_save and moment > starting and time.monotonic() < deadline and not list(aside.glob(".writing*")):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.01) if in_a_save else 0)
    saving = bool(list(aside.glob(".*"))) if aside.exists() else False
    if process.poll() is not None:
        return None
    if who == "all":
        end_group(process)
        ended = 0.0
    else:
        os.kill(command.pids()[int(who[-1])], signal.SIGKILL)
        ended = end_group(process, 60)
        assert ended < 60, f"{who} was killed and the others went on for a minute"
        if process.returncode == 0:  # the other rank had nothing left to do
            assert "done: " in command.log(), f"{who} was killed, and the exit code is 0"
            return None
    images = max((line["images"] for line in command.lines(0)[-1:]), default=0)
    at = "starting" if moment < starting else f"{images} images{', in a save' if saving else ''}"
    return f"{who} at {moment:.1f} s ({at}){f', the rest ended after {ended:.1f} s' if ended else ''}"


def uninterrupted(world: str, folder: Path) -> tuple[Command, float, float]:
    """A run left alone, how long it took, and how long until its first batch."""
    run_file, spec = shards(world, folder)
    command = Command(folder / f"{world}-whole", spec, run_file)
    started = time.monotonic()
    process = command.start()
    command.wait_for_batch(process, 0)
    starting = time.monotonic() - started
    code = process.wait(240)
    end_group(process)
    assert code == 0, command.log()[-2000:]
    assert [line["images"] for line in command.lines(1)] == list(range(0, IMAGES, 8))
    return command, time.monotonic() - started, starting


def killed(whole: tuple[Command, float, float], number: int, kills: int | None = None) -> str:
    """Run number ``number``: kill it once or twice, continue it each time, compare it; what happened, in a line."""
    reference, seconds, starting = whole
    rng = random.Random(number)
    command = Command(reference.folder.with_name(f"{reference.folder.name}-{number}"), reference.overrides,
                      reference.run_file)
    events: list[str] = []
    wanted = kills or rng.choice([1, 1, 2])
    while len(events) < wanted:
        process = command.start("resume=auto")
        done = kill(command, process, rng, seconds, starting)
        end_group(process)
        if done is not None:
            events.append(done)
        elif not events:
            shutil.rmtree(command.folder)  # it was quicker than the one before it: a run that ended is no test
        else:
            break
    code = command.finish("resume=auto")
    assert code == 0, f"exit code {code} after {events}\n{command.log()[-2000:]}"
    found = differences(command, reference)
    repeated = sum(len(command.lines(rank)) - len(once(command.lines(rank))) for rank in (0, 1))
    verdict = "equal" if not found else f"DIFFERENT: {', '.join(found[:4])}"
    return f"{reference.folder.name} {number}: {verdict}; {repeated} batches repeated; {'; '.join(events)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=WORLDS)
    args = parser.parse_args()
    whole, equal = {}, 0
    for number in range(args.first, args.first + args.runs):
        world = args.worlds[number % len(args.worlds)]
        if world not in whole:
            whole[world] = uninterrupted(world, args.out)
            print(f"{world}: left alone {whole[world][1]:.1f} s, {whole[world][2]:.1f} to its first batch", flush=True)
        try:
            line = killed(whole[world], number)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            line = f"{world} {number}: FAILED: {error}"
        equal += ": equal;" in line
        print(line, flush=True)
    print(f"{equal} of {args.runs} equal")
    return 0 if equal == args.runs else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
