"""A bounded local cache of remote files, shared by a machine's processes: whole files or none, oldest out first."""

import errno
import hashlib
import os
import time
from pathlib import Path

import fsspec.core

from sb.config import locked

TRIES = 3
LOCKS = 64
ABANDONED_S = 3600.0


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/sb/shards`` or ``~/.cache/sb/shards``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sb" / "shards"


class FileCache:
    """Fetches what fsspec opens into a folder that is kept under ``limit_gib`` (a newer file pushes out older ones)."""

    def __init__(self, folder: str | Path | None, limit_gib: float) -> None:
        if limit_gib <= 0:
            raise ValueError(f"cache_gib must be above 0, not {limit_gib}")
        self.folder = Path(folder) if folder is not None else default_cache_dir()
        self.limit_bytes = int(limit_gib * 2**30)

    def get(self, address: str, version: str = "", size: int | None = None) -> Path:
        """The local copy of a remote file, fetched if it is not here; another version or size is another file.

        Raises FileNotFoundError where the address has none, OSError where it cannot be fetched in three tries.
        """
        digest = hashlib.sha256(f"{address} {version} {size}".encode()).hexdigest()[:16]
        path = self.folder / f"{digest}-{address.rpartition('/')[2]}"
        if _touch(path):
            return path
        with locked(self.folder / f".lock-{int(digest, 16) % LOCKS:02d}"):
            if not _touch(path):
                _fetch(address, path, size)
                self._trim(keep=path)
        return path

    def _trim(self, keep: Path) -> None:
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if not path.name.startswith("."):
                found.append((stat.st_mtime, stat.st_size, path))
            elif path.name.startswith(".part-") and time.time() - stat.st_mtime > ABANDONED_S:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


def _touch(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _fetch(address: str, path: Path, size: int | None) -> None:
    aside = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                filesystem, place = fsspec.core.url_to_fs(address)
                filesystem.get_file(place, str(aside))
                if size is not None and aside.stat().st_size != size:
                    raise OSError(f"{aside.stat().st_size} bytes came, the manifest says {size}")
                os.replace(aside, path)
                return
            except FileNotFoundError:
                raise
            except Exception as error:  # each file system has its own network errors
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise ValueError(f"the disk of cache_dir {path.parent} is full; lower cache_gib") from None
                if last:
                    raise OSError(f"{address} cannot be fetched: {error}") from error
                time.sleep(0.5)
    finally:
        aside.unlink(missing_ok=True)
