"""Where a run came from: package versions and the git commit."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "torchvision", "lightning", "open-clip-torch", "omegaconf", "webdataset", "pycocotools", "einops")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, and this project's commit (with + where files were changed)."""
    found = {"python": platform.python_version(), "commit": _commit()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def versions_json() -> bytes:
    """The same as a file's content."""
    return json.dumps(versions(), indent=1).encode()


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"
