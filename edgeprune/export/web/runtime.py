"""onnxruntime-web as npm packs it: fetched by version, or read from a package that is already here.

The package holds every flavour of the runtime, 130 MB of them; the page needs three files, and nothing else of the
package is ever written anywhere. Whatever the package claims is checked first: it may come from anywhere.
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import parse_json

PACKAGE = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
# By their place in the package. In the folder the modules end in .js: many a static host knows no .mjs.
MODULES = {
    "dist/ort.wasm.min.mjs": "ort.wasm.min.js",
    "dist/ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.js",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
_DESCRIPTION = "package.json"
_WANTED = (_DESCRIPTION, *MODULES)
_VERSION = re.compile(r"\d{1,4}\.\d{1,4}(\.\d{1,4}(-[0-9A-Za-z.-]{1,60})?)?")
_FULL_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}(-[0-9A-Za-z.-]{1,60})?")
_MIB = 2**20
_MAX_FILE = 64 * _MIB  # 1.30.0 has 13.6 MiB of .wasm
_MAX_ARCHIVE = 256 * _MIB  # 31.6 MiB
_MAX_UNPACKED = 1024 * _MIB  # 140 MiB
_MAX_MEMBERS = 10_000  # 300
_FETCH_SECONDS = 600
_ADVICE = (
    f"give --web-runtime the path of an unpacked {PACKAGE} package, of its .tgz or of a node_modules folder that has it"
)


@dataclass(frozen=True, slots=True, eq=False)
class WebRuntime:
    """The runtime's version, e.g. "1.30.0", and its files by the name they get in the folder."""

    version: str
    files: Mapping[str, bytes]


def web_runtime(source: str | Path = RUNTIME_VERSION) -> WebRuntime:
    """The files of onnxruntime-web that a page needs.

    Args:
        source: a version ("1.30.0", or "1.30" for its newest), which npm fetches; or the path of an unpacked package,
            of its .tgz, or of a node_modules folder.

    Raises:
        InputError: no npm, no registry or no such version; or what is there is not such a package.
    """
    if isinstance(source, Path) or not _VERSION.fullmatch(source):
        return _from_path(Path(source))
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        found = _from_archive(_fetched(source, Path(folder)), f"{PACKAGE}@{source}")
    if found.version != source and not found.version.startswith(f"{source}."):
        raise InputError(f"{PACKAGE}: expected version {source}, got {found.version}")
    return found


# --- from npm


def _fetched(version: str, folder: Path) -> Path:
    """The .tgz that npm puts into `folder`."""
    npm = shutil.which("npm")
    what = f"{PACKAGE}@{version}"
    if npm is None:
        raise InputError(
            f"{what}: expected npm to fetch it with, got none on this machine; install Node.js, or {_ADVICE}"
        )
    command = [npm, "pack", what, "--pack-destination", str(folder), "--ignore-scripts", "--loglevel", "error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"{what}: npm did not finish within {_FETCH_SECONDS} s; {_ADVICE}") from None
    except OSError as error:
        raise InputError(f"{what}: npm cannot be started: {error.strerror}; {_ADVICE}") from error
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise InputError(f"{what}: npm cannot fetch it: {_npm_reason(done.stderr)}; {_ADVICE}")
    return archives[0]


def _npm_reason(log: str) -> str:
    """What went wrong, in npm's words, without addresses: e.g. "E404, No matching version found"."""
    lines = [line.removeprefix("npm error").removeprefix("npm ERR!").strip() for line in log.splitlines()]
    lines = [re.sub(r"\b\w+://\S+", "the registry", line) for line in filter(None, lines)]
    code = next((line.removeprefix("code ") for line in lines if line.startswith("code ")), "")
    lines = [re.sub(r"^(notarget|network|404|enoent) +", "", line) for line in lines]
    told = next(itertools.filterfalse(re.compile(r"code |errno |syscall |A complete log").match, lines), "")
    return ", ".join(filter(None, (code, told.rstrip("."))))[:300] or "it gave no reason"


# --- from a path


def _from_path(path: Path) -> WebRuntime:
    if path.is_file():
        return _from_archive(path, str(path))
    if not path.is_dir():
        raise InputError(
            f"{path}: expected a version such as {RUNTIME_VERSION} or a path, got nothing there; {_ADVICE}"
        )
    package = path / PACKAGE if (path / PACKAGE / _DESCRIPTION).is_file() else path
    return _checked(dict(_of_folder(package.resolve())), str(path))


def _of_folder(package: Path) -> Iterator[tuple[str, bytes]]:
    """The wanted files that an unpacked package has; none is read through a link out of it."""
    for name in _WANTED:
        file = package / name
        if not file.is_file():
            continue
        if not file.resolve().is_relative_to(package):
            raise InputError(f"{file}: expected a file of the package, got a link that leaves it")
        _check_size(str(file), file.stat().st_size)
        yield name, file.read_bytes()


def _from_archive(path: Path, where: str) -> WebRuntime:
    if path.stat().st_size > _MAX_ARCHIVE:
        raise InputError(f"{where}: expected an archive of at most {_MAX_ARCHIVE // _MIB} MiB, got a larger one")
    with _damage(where), _Bounded(path, "rb") as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
        found = dict(_of_archive(tar, where))
        while unpacked.read(_MIB):  # the checksum comes last
            pass
    return _checked(found, where)


def _of_archive(tar: tarfile.TarFile, where: str) -> Iterator[tuple[str, bytes]]:
    """The wanted files of a packed package. Members are read by their exact name, never unpacked to a place."""
    wanted = {f"package/{name}": name for name in _WANTED}
    for count, member in enumerate(tar):
        if count >= _MAX_MEMBERS:
            raise InputError(f"{where}: expected at most {_MAX_MEMBERS:,} files, got more")
        name = wanted.pop(member.name, None)
        if name is None:
            continue
        file = tar.extractfile(member) if member.isreg() else None
        if file is None:
            raise InputError(f"{where}: {member.name}: expected a file, got a link or something else")
        _check_size(f"{where}: {member.name}", member.size)
        yield name, file.read()


class _Bounded(gzip.GzipFile):
    """An unpacked stream that ends before a small archive has become a large one, in one piece or in all."""

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes; a header that claims more than any file may have is refused."""
        _check_size(str(self.name), _MAX_FILE + 1 if size is None or size < 0 else size)
        self._check_position(self.tell())
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, by unpacking what lies before it."""
        self._check_position(offset)
        return super().seek(offset, whence)

    def _check_position(self, position: int) -> None:
        if position > _MAX_UNPACKED:
            raise InputError(f"{self.name}: expected at most {_MAX_UNPACKED // _MIB} MiB unpacked, got more")


@contextmanager
def _damage(where: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, OverflowError) as error:
        raise InputError(
            f"{where}: expected the .tgz of an npm package, got a damaged or other file: {error}"
        ) from error


# --- whatever it came from


def _check_size(where: str, size: int) -> None:
    if size > _MAX_FILE:
        raise InputError(f"{where}: expected a file of at most {_MAX_FILE // _MIB} MiB, got a larger one")


def _checked(found: Mapping[str, bytes], where: str) -> WebRuntime:
    version = _version(found.get(_DESCRIPTION, b""), where)
    for name in MODULES:
        if not found.get(name):
            raise InputError(f"{where}: expected {name} in {PACKAGE} {version}, got none; {RUNTIME_VERSION} has it")
        if name.endswith(".wasm") and not found[name].startswith(b"\0asm"):
            raise InputError(f"{where}: {name}: expected WebAssembly, got something else")
    return WebRuntime(version, {MODULES[name]: found[name] for name in MODULES})


def _version(description: bytes, where: str) -> str:
    """The version in a package.json, once it is one of onnxruntime-web."""
    try:
        document = parse_json(description, _DESCRIPTION)
    except InputError:  # it says nothing then
        document = None
    if not isinstance(document, dict) or document.get("name") != PACKAGE:
        raise InputError(f"{where}: expected the npm package {PACKAGE}, got no package.json that says so; {_ADVICE}")
    version = document.get("version")
    if not isinstance(version, str) or not _FULL_VERSION.fullmatch(version):
        raise InputError(
            f"{where}: package.json: version: expected one such as {RUNTIME_VERSION}, got {shown(version)}"
        )
    return version
