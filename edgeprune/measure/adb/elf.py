"""Which CPU a program is for, by the head of its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# e_machine of the ELF header, and the name of Android's ABI.
_ABIS = {0xB7: "arm64-v8a", 0x28: "armeabi-v7a", 0x3E: "x86_64", 0x03: "x86", 0xF3: "riscv64"}
_SAME = {"armeabi-v7a": ("armeabi-v7a", "armeabi")}


def abi_of(program: Path) -> str | None:
    """Android's name of what a program runs on, e.g. `arm64-v8a`; None for what is no ELF file, a script say."""
    with program.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return None
    machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    return _ABIS.get(machine, f"machine {machine}")


def fits(abi: str | None, abis: Sequence[str]) -> bool:
    """Whether a device with these ABIs runs a program of one; what is not known is left to the device."""
    return abi is None or not abis or any(name in abis for name in _SAME.get(abi, (abi,)))
