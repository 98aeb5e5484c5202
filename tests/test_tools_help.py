"""Every tool answers --help at once: with a worked example, and without importing torch to do it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted((ROOT / "tools").glob("*.py"))
# a module that is None in sys.modules cannot be imported
WITHOUT_HEAVY = """
import runpy, sys
for name in ("torch", "torchvision", "lightning", "open_clip", "transformers", "gradio"):
    sys.modules[name] = None
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("tool", TOOLS, ids=lambda p: p.name)
def test_help_is_light_and_shows_an_example(tool):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEAVY, str(tool)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout.lower() and f"tools/{tool.name}" in done.stdout
    named = re.findall(r"configs/\w+\.yaml", done.stdout)
    assert all((ROOT / name).is_file() for name in named), named


def test_there_are_tools():
    assert TOOLS
