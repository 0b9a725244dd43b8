"""Data in shards, tables and sounds, recipes, and what a run that was stopped has left: good files, and odd ones."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from edgeprune.commands import compress
from mutants.command import folder_of, run_in
from mutants.documents import JSON
from mutants.edits import ODD_NAMES, Edit

_BLOCK = 512
_NUMBERS = (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
RECIPE = b'augment = "none"\nlabel-smoothing = 0.1\nwarmup = 0\nema = 0.9\nclip-norm = 1.0\nlr = 0.001\n'


# --- shards


def shard(start: int = 0, n: int = 30) -> bytes:
    """A tar file of images and classes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(start, start + n):
            for suffix, content in (("png", _picture(number)), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _picture(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _headers(content: bytes) -> list[int]:
    """Where the headers begin."""
    found, at = [], 0
    while at + _BLOCK <= len(content) and content[at : at + 1] != b"\0":
        found.append(at)
        try:
            size = int(content[at + 124 : at + 135], 8)
        except ValueError:
            break
        at += _BLOCK * (1 + -(-size // _BLOCK))
    return found


def odd_header(content: bytes, choose: random.Random) -> bytes:
    """A header says another name, size, kind or form of itself, under a checksum that is right."""
    headers = _headers(content)
    if not headers:
        return content
    at = choose.choice(headers)
    header = bytearray(content[at : at + _BLOCK])
    start, width, values = choose.choice(
        (
            (0, 100, [name.encode("utf-8", "surrogatepass")[:100] for name in ODD_NAMES]),
            (
                124,
                12,
                [b"77777777777\0", b"\x80" + b"\0" * 10 + b"\1", b"\xff" * 12, b"-0000000001\0", b"zzz", b"", b"0"],
            ),
            (156, 1, [bytes([kind]) for kind in b"0123456LKxgXSVDN\0\xff"]),
            (157, 100, [b"/etc/passwd", b"../up", b"0000.png"]),
            (257, 8, [b"ustar  \0", b"", b"\xff" * 8]),
            (345, 155, [b"/etc", b"../..", b"x" * 155]),
        )
    )
    header[start : start + width] = choose.choice(values)[:width].ljust(width, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
    return content[:at] + bytes(header) + content[at + _BLOCK :]


def odd_members(content: bytes, choose: random.Random) -> bytes:
    """Members that hold something else, come twice, lack their other half, or follow a record of a large size."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as old:
        members = [(member, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    odd = choose.randrange(len(members))
    what = choose.randrange(5)
    form = choose.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number, (member, held) in enumerate(members):
            if number == odd:
                held = choose.choice(
                    (b"", b"\xff" * 5000, b"9" * 5000, b"cos\nsystem\n(S'true'\ntR.", held * 3, b"nan", b"[[[[")
                )
                if what == 0:
                    continue
                if what == 1:
                    member.name = choose.choice(ODD_NAMES).encode("utf-8", "replace").decode().replace("\0", "?") or "x"
                if what == 2:
                    member.pax_headers = {
                        "size": str(choose.choice(_NUMBERS)),
                        "path": choose.choice(("../x.png", "x" * 5000)),
                    }
            member.size = len(held)
            for _ in range(2 if number == odd and what == 3 else 1):
                tar.addfile(member, io.BytesIO(held))
    return buffer.getvalue()


TAR: Sequence[Edit] = (odd_header, odd_header, odd_members)


# --- sounds


def sound(number: int = 0) -> bytes:
    """A WAV file of a quarter of a second."""
    buffer = io.BytesIO()
    tone = 9000 * np.sin(2 * np.pi * (300 + 900 * (number % 3)) * np.arange(2000) / 8000)
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(tone.astype("<i2").tobytes())
    return buffer.getvalue()


def odd_format(content: bytes, choose: random.Random) -> bytes:
    """A WAV header with another code, number of channels, rate, block or size."""
    start, form = choose.choice(
        ((4, "<I"), (16, "<I"), (20, "<H"), (22, "<H"), (24, "<I"), (28, "<I"), (32, "<H"), (34, "<H"), (40, "<I"))
    )
    value = choose.choice(_NUMBERS) % 256 ** struct.calcsize(form)
    return content[:start] + struct.pack(form, value) + content[start + struct.calcsize(form) :]


def odd_chunk(content: bytes, choose: random.Random) -> bytes:
    """A chunk more, of a size that it may not have; or floats that are no numbers."""
    if choose.random() < 0.3:
        values = np.full(2000, choose.choice((np.nan, np.inf, 1e30)), "<f4").tobytes()
        form = struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32)
        body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(values)) + values
        return b"RIFF" + struct.pack("<I", len(body)) + body
    name = choose.choice((b"LIST", b"fact", b"data", b"fmt ", b"cue ", b"\0\0\0\0", b"PEAK", b"bext"))
    return (
        content[:36]
        + name
        + struct.pack("<I", choose.choice(_NUMBERS))
        + b"\1" * choose.choice((0, 16, 600))
        + content[36:]
    )


WAV: Sequence[Edit] = (odd_format, odd_format, odd_chunk)


# --- recipes


def odd_setting(text: bytes, choose: random.Random) -> bytes:
    """A recipe with an odd value, key, table or line."""
    lines = text.decode().splitlines()
    place = choose.randrange(len(lines))
    name = lines[place].split(" ")[0]
    values = (
        "nan", "-inf", "1e400", "9" * 5000, "-1", "true", '""', "[1, 2]", "{a = 1}", "1979-05-27", '"rand"', "'''x",
        "[" * 50_000, "{a=" * 20_000, "0x" + "f" * 4000, "1_0", '"\\u0000"', '"\\ud800"', "1e-320", "0.99999999999",
    )  # fmt: skip
    odd = choose.choice(ODD_NAMES)
    lines[place] = choose.choice(
        (
            f"{name} = {choose.choice(values)}",
            f"{name} = {choose.choice(values)}",
            f"{json.dumps(odd)} = 1",
            f"{odd} = 1",
            f"[{name}]\n{name} = 1",
            f"{lines[place]}\n{lines[place]}",
            f"{'.'.join(['a'] * 5000)} = 1",
            f"[[{name}]]",
            'optimizer = "xrda"',
        )
    )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


TOML: Sequence[Edit] = (odd_setting,)


# --- what a run that was stopped has left


def odd_line(text: bytes, choose: random.Random) -> bytes:
    """A results file in which one line is odd, gone, doubled or somewhere else."""
    lines = text.splitlines(keepends=True)
    place = choose.randrange(len(lines))
    what = choose.randrange(4)
    if what == 0:
        lines[place] = choose.choice(JSON)(lines[place], choose) + b"\n"
    elif what == 1:
        del lines[place]
    elif what == 2:
        lines.insert(place, choose.choice(lines))
    else:
        choose.shuffle(lines)
    return b"".join(lines)


LINES: Sequence[Edit] = (odd_line,)


def stopped(files: Mapping[str, bytes], arguments: Sequence[str], out: str) -> dict[str, bytes]:
    """What lies in `OUT.compressing` of a compress run that was stopped before its folder was written."""
    write = compress._written

    def stop(*given: Any) -> Any:
        raise KeyboardInterrupt

    compress._written = stop
    try:
        with folder_of(files) as folder:
            _, _, said = run_in(folder, arguments)
            left = sorted((folder / f"{out}.compressing").glob("*"))
            if not left:
                raise SystemExit(f"nothing was left of {' '.join(arguments)}: {said}")
            return {f"{out}.compressing/{path.name}": path.read_bytes() for path in left}
    finally:
        compress._written = write


# --- tables


def tables(n: int = 60) -> dict[str, bytes]:
    """The same rows as Parquet, and as the Arrow file of a saved data set; empty where pyarrow is not installed."""
    try:
        import pyarrow as arrow
        from pyarrow import ipc, parquet
    except ImportError:
        return {}
    rng = np.random.default_rng(0)
    table = arrow.table({**{name: rng.standard_normal(n) for name in "abcd"}, "kind": np.arange(n) % 3})
    whole, streamed = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, whole)
    with ipc.new_stream(streamed, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    features = {name: {"dtype": "float64", "_type": "Value"} for name in "abcd"}
    info = {"features": {**features, "kind": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}}
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "x", "_format_type": None}
    return {
        "d.parquet": whole.getvalue(),
        "h/data-00000-of-00001.arrow": streamed.getvalue(),
        "h/dataset_info.json": json.dumps(info).encode(),
        "h/state.json": json.dumps(state).encode(),
    }
