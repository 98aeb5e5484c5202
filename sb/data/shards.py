"""Shard sets: addresses to tars, and any sample of any tar by its number, without reading what lies before it."""

import glob
import json
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec.core
from braceexpand import braceexpand

from sb.data.cache import FileCache
from sb.data.index import index_address, is_remote, open_address, parse_index, read_index
from sb.data.latents import ROWS, TEXTS, Latents, TextTable, same_latents
from sb.data.ledger import Broken
from sb.data.schema import IMAGE_EXTENSIONS, SCHEMA_VERSION, TRUTH

OPEN_FILES = 32
OPEN_INDEXES = 64
RETRY_S = 60.0  # how long a shard that could not be fetched is not asked for again
MANIFEST = "manifest.json"
TOLD = ("images", "source", "licences")  # what a model's card tells of a set, from its manifest


@dataclass
class Shard:
    """One tar: its address, how many samples it holds and, where a manifest says so, its size and checksum."""

    address: str
    samples: int | None = None
    size: int | None = None
    sha256: str = ""

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.address.rpartition("/")[2]


@dataclass
class RawSample:
    """A sample as stored: ``name`` says where it lies (tar/key), ``image`` and ``record`` are the members' bytes.

    variant: which of the image's fixed frames is asked for; of latent shards, ``image`` is that frame's moments. truth:
    the true background (PNG) of a sample that has one.
    """

    name: str
    image: bytes
    record: bytes
    variant: int | None = None
    truth: bytes | None = None


@dataclass
class Listing:
    """What a list of addresses stands for: shards in a fixed order and, where manifests say so, the labels' counts,
    which folders hold no captions of single objects, and what a model's card tells of each; and what made the latents
    of each address that holds some."""

    shards: list[Shard] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    label_only: list[str] = field(default_factory=list)
    latents: list[tuple[str, Latents | None]] = field(default_factory=list)
    sets: list[dict[str, Any]] = field(default_factory=list)


def list_shards(addresses: Sequence[str] | str) -> Listing:
    """Shards behind folders with a manifest, tars, globs and brace patterns, local or remote.

    Raises ValueError that names the address where there is nothing to read, or where it is a ``pipe:``.
    """
    listing = Listing()
    for pattern in [addresses] if isinstance(addresses, str) else addresses:
        if str(pattern).startswith("pipe:"):
            raise ValueError(f"shards: '{pattern}': commands are not run from shard addresses; give a path or a URL")
        for address in braceexpand(str(pattern), escape=False):
            _add(listing, address)
    if not listing.shards:
        raise ValueError("shards: the list of shards is empty; give a folder, a tar or a pattern")
    return listing


def _add(listing: Listing, address: str) -> None:
    address = address.rstrip("/").removesuffix("/" + MANIFEST)
    made: dict[str, Any] | None = None
    if any(sign in address for sign in "*?["):
        found = [Shard(a) for a in _glob(address) if a.endswith(".tar")]
    elif address.endswith(".tar"):
        found = [Shard(address)]
    else:
        manifest = _manifest(address)
        if manifest is not None:
            made = manifest.get("latents")
            listing.labels.update(manifest.get("labels") or {})
            listing.sets.append({"shards": address, **{name: manifest.get(name) for name in TOLD}})
            listing.label_only += [address] * (manifest.get("captions") == "label-only")
            found = [
                Shard(f"{address}/{s['file']}", s["samples"], s.get("bytes"), s.get("sha256") or "")
                for s in manifest["shards"]
            ]
        else:
            found = [Shard(a) for a in _glob(address + "/*.tar")]
    if not found:
        raise ValueError(f"shards: no tar at '{address}'; build some with tools/build_shards.py")
    for shard in found:
        if not is_remote(shard.address) and not os.path.isfile(shard.address):
            listed = "" if shard.samples is None else ", which its manifest lists"
            raise ValueError(f"shards: there is no {shard.address}{listed}")
        if shard.size is None and not is_remote(shard.address):
            shard.size = os.path.getsize(shard.address)
    listing.shards.extend(found)
    latents = Latents(address, made["vae"], made["frames"], made["text"], made["precision"]) if made else None
    listing.latents.append((address, latents))


def _manifest(folder: str) -> dict[str, Any] | None:
    place = f"{folder}/{MANIFEST}"
    try:
        with open_address(place) as file:
            manifest = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"shards: {place} cannot be read: {error}") from None
    if manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version")
        raise ValueError(f"shards: {place} has schema_version {found}, this version reads {SCHEMA_VERSION}")
    return dict(manifest)


def _glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    filesystem, path = fsspec.core.url_to_fs(pattern)
    return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))


class ShardStore:
    """Random access to the samples of a list of shards; picklable, files are opened where they are first read."""

    def __init__(
        self, addresses: Sequence[str] | str, cache_dir: str | Path | None = None, cache_gib: float = 20.0,
    ) -> None:
        listing = list_shards(addresses)
        self.shards, self.labels, self.label_only = listing.shards, listing.labels, listing.label_only
        self.sets = listing.sets
        self.latents = same_latents(listing.latents)
        self.remote = any(is_remote(shard.address) for shard in self.shards)
        self.cache = FileCache(cache_dir, cache_gib)
        if self.remote:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
        with_texts = [made for _, made in listing.latents if made and made.text]
        self.texts = [TextTable(self._beside(made, TEXTS), self._beside(made, ROWS)) for made in with_texts]
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        self._ahead: threading.Thread | None = None
        self._failed: dict[int, float] = {}  # remote shards that could not be fetched, and when
        self.counts = [
            shard.samples if shard.samples is not None else len(self._index(number))
            for number, shard in enumerate(self.shards)
        ]
        if not sum(self.counts):
            raise ValueError(f"shards: {len(self.shards)} shards from '{self.shards[0].address}' on hold no sample")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_indexes": OrderedDict(), "_ahead": None,
                "_failed": {}}

    def read(self, shard: int, sample: int, variant: int | None = None, truth: bool = False) -> RawSample:
        """The bytes of one sample, of latent shards with one frame's moments; Broken says why there are none.

        truth: also the true background, where the sample has one.
        """
        name = f"{self.shards[shard].name}/#{sample}"
        if shard in self._failed and time.monotonic() - self._failed[shard] < RETRY_S:
            raise Broken("unreachable", name)
        try:
            entry = self._index(shard)[sample]
            name = f"{self.shards[shard].name}/{entry['key']}"
            members = entry["members"]
            if entry.get("lost"):
                raise Broken("truncated", name)
            known = IMAGE_EXTENSIONS if self.latents is None else (f"{variant}.npy",)
            extension = next((e for e in known if e in members), None)
            if self.latents is None and "0.npy" in members:
                raise ValueError(f"shards: {name} holds latents; give its folder, whose manifest says what made them")
            if extension is None or "json" not in members:
                raise Broken("missing_key", name)
            file = self._open(shard)
            asked = (extension, "json", TRUTH) if truth else (extension, "json")
            wanted = [members[name] for name in asked if name in members]
            found = [os.pread(file, size, offset) for offset, size in wanted]
        except OSError:
            if is_remote(self.shards[shard].address):
                self._failed[shard] = time.monotonic()
            raise Broken("unreachable", name) from None
        if any(len(body) < size for body, (_, size) in zip(found, wanted, strict=True)):
            raise Broken("truncated", name)
        return RawSample(name, found[0], found[1], variant, *found[2:])

    def fetch_ahead(self, shards: Sequence[int]) -> bool:
        """Fetch remote shards in the background, so that the block that needs them does not wait.

        False where the fetching of the block before is not done yet: ask again.
        """
        wanted = [n for n in shards if is_remote(self.shards[n].address)]
        if not wanted:
            return True
        if self._ahead is not None and self._ahead.is_alive():
            return False

        def fetch() -> None:
            for number in wanted:
                try:
                    self._local(number)
                except (OSError, ValueError):
                    continue  # whoever reads the shard meets the same error and reports it

        self._ahead = threading.Thread(target=fetch, daemon=True)
        self._ahead.start()
        return True

    def close(self) -> None:
        """Close every open tar."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _beside(self, made: Latents, name: str) -> Path:
        address = f"{made.where}/{name}"
        return self.cache.get(address, str(made.text)) if is_remote(address) else Path(address)

    def _open(self, number: int) -> int:
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        for last in (False, True):
            try:
                file = os.open(self._local(number), os.O_RDONLY)
                break
            except FileNotFoundError:  # another process made room in the cache between fetching and opening
                if last:
                    raise
        self._files[number] = file
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return file

    def _local(self, number: int) -> Path:
        shard = self.shards[number]
        if not is_remote(shard.address):
            return Path(shard.address)
        return self.cache.get(shard.address, shard.sha256, shard.size)

    def _index(self, number: int) -> list[dict[str, Any]]:
        if number in self._indexes:
            self._indexes.move_to_end(number)
            return self._indexes[number]
        shard = self.shards[number]
        samples = self._read_index(number)
        if shard.samples is not None:
            if len(samples) > shard.samples:
                raise ValueError(
                    f"{shard.address} holds {len(samples)} samples, its manifest says {shard.samples}; "
                    "rebuild the shards or delete the stale index and manifest"
                )
            lost = range(len(samples), shard.samples)
            samples = samples + [{"key": f"#{i}", "members": {}, "lost": True} for i in lost]
        self._indexes[number] = samples
        if len(self._indexes) > OPEN_INDEXES:
            self._indexes.popitem(last=False)
        return samples

    def _read_index(self, number: int) -> list[dict[str, Any]]:
        shard = self.shards[number]
        if is_remote(shard.address):
            try:
                beside = self.cache.get(index_address(shard.address), shard.sha256)
                index = parse_index(beside.read_bytes(), index_address(shard.address))
                if index is not None:
                    return list(index["samples"])
            except FileNotFoundError:
                pass
        try:
            return list(read_index(self._local(number))["samples"])
        except ValueError:
            if shard.samples is None:
                raise
            return []  # its samples are counted as lost, for the manifest says how many there were
