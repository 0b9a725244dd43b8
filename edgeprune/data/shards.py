"""Images in tar shards, as WebDataset lays them out: files of one name side by side, `000.jpg` and `000.cls`.

All headers are read once, for where each image lies, and all targets with them; images when they are needed, in any
order. Nothing but images and small texts is ever decoded: what only a pickle could tell is refused.
"""

from __future__ import annotations

import glob
import io
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edgeprune.data.contained import ContainedImages
from edgeprune.data.folders import check_inside
from edgeprune.data.framing import Framing
from edgeprune.data.images import EXTENSIONS, decoded
from edgeprune.data.places import split_folders
from edgeprune.data.splits import LazySplit, build, by_hash
from edgeprune.data.tar import Member, members, name_at
from edgeprune.data.targets import FoundTargets
from edgeprune.data.texts import Texts
from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import LIMITS, open_file, parse_json
from edgeprune.records import CLASSES, DataSource, Targets
from edgeprune.tasks.wanted import WantedTargets

OPTIONS = ("input", "target", "val", "test")
_MOST_SHARDS = 100_000
_MOST_TEXT = 65_536  # bytes of a target
_KEY = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<field>[^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_PICKLED = ("pyd", "pkl", "pickle", "pth", "pt", "joblib", "npy", "npz")
_REMOTE = re.compile(r"(?:pipe|[a-z][a-z0-9+.-]+):", re.IGNORECASE)
_TARGET = "cls"


def shards_of(pattern: str) -> list[Path]:
    """The shards that a pattern names, e.g. `train-{000..009}.tar`, `*.tar` or a folder of them; each is a file here.

    Raises:
        InputError: none, too many, on another machine, or a link that leaves its folder.
    """
    if _REMOTE.match(pattern):
        raise InputError(f"webdataset: expected shards on this machine, got {shown(pattern)}; fetch them first")
    if Path(pattern).is_dir():
        pattern = f"{glob.escape(pattern)}/*.tar"
    found: list[Path] = []
    for name in _expanded(pattern):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        found += map(Path, matches)
        if len(found) > _MOST_SHARDS:
            raise InputError(f"webdataset: expected at most {_MOST_SHARDS:,} shards, got more by {shown(pattern)}")
    if not found:
        raise InputError(f"webdataset: expected tar shards at {shown(pattern, 120)}, got nothing there")
    for path in found:
        check_inside(path, path.parent)
    return list(dict.fromkeys(found))


def _expanded(pattern: str) -> Iterator[str]:
    """Each name that braces stand for: `{0..2}`, `{08..11}` with its zeros, `{a,b}`."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    bounds = _RANGE.fullmatch(braces[1])
    if bounds:
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        parts: Any = (f"{number:0{width}d}" for number in range(int(bounds[1]), int(bounds[2]) + 1))
    else:
        parts = braces[1].split(",")
    for part in parts:
        yield from _expanded(pattern[: braces.start()] + part + pattern[braces.end() :])


@dataclass(frozen=True, slots=True)
class Fields:
    """Which files of a sample hold what: the image's suffix, and the target's, with the key of a JSON object."""

    image: str | None
    target: str | None
    key: str | None = None

    @classmethod
    def asked(cls, options: Mapping[str, str], wanted: WantedTargets) -> Fields:
        image, target = options.get("input"), options.get("target")
        for name in filter(None, (image, target)):
            _check_readable(name)
        if image is not None and not _is_image(image):
            raise InputError(f"webdataset: expected ?input= with the suffix of an image, got {shown(image)}")
        if target is None and wanted.kind != "none":
            target = _TARGET
        field, _, key = (target or "").partition(":")
        return cls(image.lower() if image else None, field.lower() or None, key or None)


def _check_readable(field: str) -> None:
    if _suffix(field) in _PICKLED:
        raise InputError(f"webdataset: expected images and texts, got {shown(field)}, which may need unpickling")


class _Index:
    """Where each image lies, and what its target is, of all shards that were read."""

    def __init__(self, fields: Fields, texts: Texts) -> None:
        self.fields, self.texts = fields, texts
        self.shards: list[Path] = []
        self.shard, self.start, self.size = array("i"), array("q"), array("q")
        self.hashes = array("Q")

    def read(self, path: Path) -> None:
        """Take in a shard."""
        self.shards.append(path)
        with open_file(path, "shard") as file:
            for key, files in _samples(path):
                self._add(path, key, files, file)

    def _add(self, path: Path, key: str, files: Mapping[str, Member], file: io.BufferedReader) -> None:
        suffix = self.fields.image or next((name for name in files if _is_image(name)), None)
        target = self.fields.target
        wanted = [suffix or "an image", *filter(None, [target])]
        if not set(wanted) <= set(files):
            raise InputError(
                f"{path}, sample {shown(key)}: expected {' and '.join(wanted)}, got {', '.join(files):.80}"
            )
        image = files[wanted[0]]
        limit = LIMITS["image"].max_bytes
        if image.size > limit:
            raise InputError(
                f"{path}, {shown(image.name)}: expected an image of at most {limit:,} bytes, got {image.size:,}"
            )
        if target is not None:
            self.texts.append(self._text(path, files[target], file), f"{path}, {shown(files[target].name)}")
        self.shard.append(len(self.shards) - 1)
        self.start.append(image.start)
        self.size.append(image.size)
        told = f"{path.name}/{key}".encode("utf-8", "surrogateescape")
        self.hashes.append(int.from_bytes(blake2b(told, digest_size=8).digest(), "little"))

    def _text(self, path: Path, member: Member, file: io.BufferedReader) -> str:
        where = f"{path}, {shown(member.name)}"
        if member.size > _MOST_TEXT:
            raise InputError(f"{where}: expected a target of at most {_MOST_TEXT:,} bytes, got {member.size:,}")
        file.seek(member.start)
        content = file.read(member.size)
        try:
            text = content.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected a text as target, got bytes that are no UTF-8") from error
        if self.fields.key is not None:
            document = parse_json(text, f"{where}: expected a JSON object")
            value = document.get(self.fields.key) if isinstance(document, dict) else None
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise InputError(f"{where}: expected a text or number at {shown(self.fields.key)}, got {shown(value)}")
            text = str(value)
        if not text:
            raise InputError(f"{where}: expected a target, got nothing")
        return text


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Files of one name that lie side by side, by their suffixes; what has no suffix is passed over."""
    key, files = "", dict[str, Member]()
    for member in members(path):
        match = _KEY.fullmatch(member.name)
        if match is None:
            continue
        if match["key"] != key and files:
            yield key, files
            files = {}
        key, field = match["key"], match["field"].lower()
        if field in files:
            raise InputError(f"{path}, {shown(member.name)}: expected each file of a sample once, got it twice")
        files[field] = member
    if files:
        yield key, files


def _suffix(field: str) -> str:
    return field.lower().rpartition(".")[2]


def _is_image(field: str) -> bool:
    return f".{_suffix(field)}" in EXTENSIONS


class ShardImages(ContainedImages):
    """Images in shards."""

    def __init__(self, index: _Index, targets: Tensor | None, framing: Framing) -> None:
        self.shards = index.shards
        self._shard, self._start, self._size = (np.array(one) for one in (index.shard, index.start, index.size))
        super().__init__(targets, framing)

    def __len__(self) -> int:
        return len(self._shard)

    def name(self, index: int) -> str:
        """The shard and the file of a sample, for messages."""
        path = self.shards[self._shard[index]]
        return f"{path}, {shown(name_at(path, int(self._start[index])))}"

    @contextmanager
    def opened(self, index: int) -> Iterator[Any]:
        """The image of a sample, as `images.opened`."""
        path, size = self.shards[self._shard[index]], int(self._size[index])
        with open_file(path, "shard") as file:
            file.seek(int(self._start[index]))
            content = file.read(size)
        if len(content) < size:
            raise InputError(f"{path}: expected the shard as it was at the start, got a shorter one")
        with decoded(io.BytesIO(content), lambda: self.name(index)) as image:
            yield image


def open_shards(
    pattern: str, options: Mapping[str, str], framing: Framing, wanted: WantedTargets | None = None
) -> DataSource:
    """Shards of images with targets; see docs/DATA.md.

    Which samples are in which split goes by a hash of the shard's and the sample's names: each stays where it is when
    shards are added. With `val` or `test` these are shards of their own.

    Raises:
        InputError: shards that are missing, cut off or no tar files, samples without an image or a target, targets that
            are not what is wanted.
    """
    wanted = wanted or WantedTargets()
    fields = Fields.asked(options, wanted)
    texts = Texts(wanted, f"webdataset:{pattern}")
    index = _Index(fields, texts)
    ends = []
    for shards in _groups(pattern, options):
        for path in shards:
            index.read(path)
        ends.append(len(index.shard))
        if ends[-1] == (ends[-2] if len(ends) > 1 else 0):
            raise InputError(f"{shards[0]}: expected samples in the shards, got none")
    found = texts.found() if fields.target else FoundTargets({"all": None}, Targets("none"))
    images = ShardImages(index, found.values["all"], framing)
    parts = _parts(images, np.array(index.hashes), ends, found)
    splits = [LazySplit(images, part) for part in parts]
    notes = (*images.notes, *found.notes)
    return build(
        f"webdataset:{pattern}", splits, found.classes, notes=notes, targets=found.info, preparation=framing.stated
    )


def _groups(pattern: str, options: Mapping[str, str]) -> list[list[Path]]:
    """The shards of train, and those of val and test where they are named or lie in folders of these names."""
    named = {name: options[name] for name in ("val", "test") if name in options}
    folder = Path(pattern)
    if named:
        root = folder if folder.is_dir() else folder.parent
        return [shards_of(pattern), *(shards_of(_below(root, name, text)) for name, text in named.items())]
    return [shards_of(str(place)) for place in split_folders(folder)]


def _below(root: Path, name: str, pattern: str) -> str:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"webdataset: expected ?{name}= below the folder of the others, got {shown(pattern)}")
    return str(root / pattern)


def _parts(images: ShardImages, hashes: np.ndarray, ends: Sequence[int], found: FoundTargets) -> list[np.ndarray]:
    """Which samples are in train, val and test."""
    labels = images.labels if found.info == CLASSES and images.labels is not None else np.zeros(len(images), np.int64)
    train = slice(0, ends[0])
    if len(ends) == 3:
        parts = [np.arange(start, end) for start, end in zip((0, *ends[:-1]), ends, strict=True)]
    elif len(ends) == 2:
        parts = [*by_hash(labels[train], hashes[train], (0.9, 0.1)), np.arange(*ends)]
    else:
        parts = by_hash(labels, hashes, (0.6, 0.2, 0.2))
    lacking = sorted(set(np.unique(labels)) - set(np.unique(labels[parts[0]])))
    if lacking:
        raise InputError(
            f"{images.shards[0]}: expected samples of every class to train on, got none of "
            f"{shown(found.classes[lacking[0]])}"
        )
    return parts
