"""Checkpoint files: written aside, read back, renamed; the newest that is whole and of this run is resumed.

One file holds a whole training state (weights without the frozen parts, optimizer, averages, counts) as tensors by
name, whatever strategy wrote it; it is read without running code that it may bring.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

FOLDER, LAST = "checkpoints", "last.ckpt"
log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay in the file until they are used.

    Raises ValueError of one line that names the file where it is cut off or no checkpoint of ours.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a broken or foreign file fails in any way there is
        first = (str(error).splitlines() or ["cut off"])[0]
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            first = f"it holds a {code[1]}, where only tensors and plain values are read"
        raise ValueError(
            f"{path} is not a readable checkpoint ({first}); put another one of that folder in its place"
        ) from None
    if not isinstance(found, dict) or not {"state_dict", "images_seen", "loops"} <= found.keys():
        raise ValueError(f"{path} is not a checkpoint of a run of ours; put another one of that folder in its place")
    return found


class StraightToFile(TorchCheckpointIO):
    """Writes where it is told, waits for the disk, and reads the file back; a failure is kept, not raised.

    Lightning's own goes through memory and the system's temporary folder. Only rank zero writes: if it raised, the
    others would wait for it, so whoever asked for the checkpoint looks at ``failed`` and tells all of them.
    """

    failed: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to ``path``; what is wrong is in ``failed`` afterwards, and then there is no file."""
        self.failed = None
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if not os.path.islink(path):  # of a save that was killed, it may be a finished one's second name
                Path(path).unlink(missing_ok=True)
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            read(Path(path))
        except Exception as error:  # of any kind: the other ranks wait to be told
            self.failed = error
            with suppress(OSError):
                Path(path).unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As ``read`` does."""
        return read(Path(path))


def place(aside: Path, folder: Path, names: list[str]) -> None:
    """Give a finished file its names, the last one by moving it; each appears whole or not at all."""
    for name in names[:-1]:
        _place_copy(aside, folder / name)
    os.replace(aside, folder / names[-1])
    with suppress(OSError):  # not every file system lets a folder be synchronised
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def newest(run_dir: Path, fits: Callable[[dict[str, Any], str], None]) -> Path | None:
    """The checkpoint of the most images that can be read and that ``fits(checkpoint, path)`` does not refuse.

    One that is passed over is named in the log. None where there is none at all; ValueError where there are some and
    none can be used: a run that starts anew would write over them.
    """
    found: list[tuple[int, bool, Path]] = []
    refused: list[str] = []
    for path in sorted((run_dir / FOLDER).glob("[!.]*.ckpt"), key=lambda path: (path.name != LAST, path.name)):
        try:
            checkpoint = read(path)
            fits(checkpoint, str(path))
        except ValueError as error:
            refused.append(str(error))
            continue
        found.append((int(checkpoint["images_seen"]), path.name == LAST, path))
    if refused and not found:
        raise ValueError(
            f"resume=auto: none of the {len(refused)} checkpoints in {run_dir / FOLDER} can be resumed, the first: "
            f"{refused[0]}"
        )
    for line in refused:
        log.warning("passed over: %s", line)
    return max(found)[2] if found else None


def size(run_dir: Path) -> int:
    """Bytes on disk of a run's checkpoints; those that share their bytes count once."""
    stats = [path.stat() for path in (run_dir / FOLDER).glob("*.ckpt")]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def _place_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system can, else a copy."""
    aside = target.with_name(".placing.ckpt")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    os.replace(aside, target)
