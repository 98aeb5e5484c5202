"""From nothing to a painted picture: draw the shapes world, train a VAE and SmartBrush on it, measure, show.

Each stage is one of the project's own commands, printed before it runs; a second call skips what is done.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = """example:
  make quickstart                    installs and runs this
  python tools/quickstart.py         continue where it stopped"""
RUN = Path("runs/quickstart")
STAGES = {
    "train shards": "build_shards.py --source shapes --out {run}/shards/train num_images=20000",
    "val shards": "build_shards.py --source shapes --out {run}/shards/val num_images=512 split=val",
    "vae": "train.py configs/quickstart_vae.yaml resume=auto",
    "smartbrush": "train.py configs/quickstart.yaml resume=auto",
    "evaluation": "evaluate.py {run} --requests 256 --seconds {run}/seconds.json --out {run}",
}


def main() -> int:
    """Run the stages that are not done yet; the exit code of the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    from sb.config import write_whole

    os.chdir(Path(__file__).parents[1])
    seconds_file = RUN / "seconds.json"
    seconds = json.loads(seconds_file.read_text()) if seconds_file.is_file() else {}
    seconds = with_evaluation(seconds)
    for number, (stage, command) in enumerate(STAGES.items(), 1):
        command = f"python tools/{command.format(run=RUN)}"
        if stage in seconds:
            print(f"[{number}/{len(STAGES)}] {stage}: done before, in {seconds[stage]:.0f} s", flush=True)
            continue
        print(f"\n[{number}/{len(STAGES)}] {stage}: {command}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, *command.split()[1:]]).returncode
        if code:
            print(f"error: stage '{stage}' ended with {code}; the same command continues from here", file=sys.stderr)
            return code
        seconds[stage] = round(time.monotonic() - started, 1)
        write_whole(seconds_file, json.dumps(seconds, indent=1).encode())
    print(closing(seconds))
    return 0


def with_evaluation(seconds: dict[str, float]) -> dict[str, float]:
    """The stages done, with the evaluation where its results are there although it was stopped before it was noted."""
    results = RUN / "metrics.json"
    if "evaluation" in seconds or not results.is_file():
        return seconds
    measured = json.loads(results.read_text())["seconds"]
    return {**seconds, "evaluation": round(sum(s for stage, s in measured.items() if stage not in seconds), 1)}


def closing(seconds: dict[str, float]) -> str:
    """What to open and what to type next."""
    return f"""
done in {sum(seconds.values()) / 60:.1f} minutes. Open
  {RUN}/contact_sheet.png   what it paints, from the outline to the box
  {RUN}/report.md           how well, in numbers
Next, after source .venv/bin/activate:
  python tools/inpaint.py --model {RUN} --image {RUN}/examples/scene.png --mask {RUN}/examples/box.png \\
      --precision box --text "striped blue star"
  tensorboard --logdir {RUN}
  python tools/train.py configs/quickstart_random_masks.yaml       the usual inpainting recipe, for comparison"""


if __name__ == "__main__":
    sys.exit(main())
