"""The index of a tar: where each member's bytes lie, so that any sample can be read without reading what precedes it.

``shard-000000.tar`` has ``shard-000000.index.json`` beside it::

    {"schema_version": 1, "tar_bytes": N, "samples": [{"key": "...", "members": {"jpg": [offset, size], ...}}, ...]}

An offset is that of the data, not of its header. Keys and extensions are WebDataset's: a member's name up to the
first dot of its last part, and what follows that dot in lower case; consecutive members of one key are one sample.
"""

import json
import tarfile
from pathlib import Path
from typing import IO, Any

import fsspec

from sb.config import write_whole
from sb.data.schema import SCHEMA_VERSION

Index = dict[str, Any]


def is_remote(address: str | Path) -> bool:
    """Whether an address is a URL for fsspec rather than a path."""
    return "://" in str(address)


def open_address(address: str | Path) -> IO[bytes]:
    """Open a path or anything fsspec opens for reading; OSError where it is not there."""
    if is_remote(address):
        return fsspec.open(str(address), "rb").open()  # type: ignore[no-any-return]
    return open(address, "rb")


def index_address(tar_address: str | Path) -> str:
    """Where a tar's index lies: ``a/b.tar`` -> ``a/b.index.json``."""
    return str(tar_address).removesuffix(".tar") + ".index.json"


def split_name(name: str) -> tuple[str, str] | None:
    """A member's (key, extension) as WebDataset splits them; None for names without either."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot and extension else None


def index_tar(tar_address: str | Path) -> Index:
    """Scan a tar's headers. A tar that ends early is indexed as far as its headers go; ValueError if it is no tar."""
    samples: list[dict[str, Any]] = []
    with open_address(tar_address) as file:
        end = file.seek(0, 2)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in _members(tar):
                    split = split_name(member.name)
                    if split is None or not member.isfile():
                        continue
                    key, extension = split
                    if not samples or samples[-1]["key"] != key:
                        samples.append({"key": key, "members": {}})
                    samples[-1]["members"][extension] = [member.offset_data, member.size]
        except tarfile.TarError as error:
            raise ValueError(f"{tar_address} is not a tar that can be read: {error}") from None
    return {"schema_version": SCHEMA_VERSION, "tar_bytes": end, "samples": samples}


def write_index(tar_path: str | Path) -> Index:
    """Scan a local tar and write its index beside it, whole or not at all; returns the index."""
    index = index_tar(tar_path)
    _write(index, index_address(tar_path))
    return index


def read_index(tar_address: str | Path) -> Index:
    """The index beside a tar, or one made by scanning it, saved beside it where that is writable.

    A damaged index is made again, and so is that of a local tar that was replaced or has grown; a tar that was cut
    keeps its index, so that what it lost can be counted. Raises FileNotFoundError where there is neither index nor
    tar, ValueError for an index of another schema.
    """
    place, index = index_address(tar_address), None
    try:
        with open_address(place) as file:
            index = parse_index(file.read(), place)
        if index is not None and (is_remote(tar_address) or _fits(index, tar_address)):
            return index
    except FileNotFoundError:
        pass
    try:
        index = index_tar(tar_address)
    except ValueError:
        if index is None:
            raise
        return index  # a header is damaged: what the index says is the best that is known
    if not is_remote(tar_address):
        try:
            _write(index, place)
        except OSError:
            pass  # a folder that cannot be written: the scan is repeated next time
    return index


def _write(index: Index, place: str) -> None:
    write_whole(place, json.dumps(index, separators=(",", ":")).encode())


def parse_index(body: bytes, place: str) -> Index | None:
    """The index that a file holds, None where it is damaged; ValueError where it is of another schema."""
    try:
        index = json.loads(body)
    except ValueError:
        return None
    version = index.get("schema_version") if isinstance(index, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise ValueError(f"{place} has schema_version {version}, this version reads {SCHEMA_VERSION}; delete it")
    try:
        sound = isinstance(index["tar_bytes"], int) and all(
            isinstance(sample["key"], str) and all(
                type(offset) is type(size) is int and offset >= 0 and size >= 0
                for offset, size in sample["members"].values()
            )
            for sample in index["samples"]
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return index if sound else None


def _fits(index: Index, tar_path: str | Path) -> bool:
    """Whether an index is that of a tar or of what is left of it, by its size and the first and last headers."""
    with open(tar_path, "rb") as file:
        left = file.seek(0, 2)
        for sample in index["samples"][:1] + index["samples"][-1:]:
            for extension, (offset, size) in sample["members"].items():
                if offset > left:
                    continue
                file.seek(max(offset - tarfile.BLOCKSIZE, 0))
                try:
                    header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    return False
                name = f"{sample['key']}.{extension}".lower()
                if header.size != size or not name.startswith(header.name.lower()):  # long names are cut off there
                    return False
    return left <= int(index["tar_bytes"])


def _members(tar: tarfile.TarFile) -> Any:
    """The tar's members up to its end or to where it was cut."""
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:
            return
        if member is None:
            return
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
        yield member
