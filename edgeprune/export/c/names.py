"""Identifiers of C for names of any kind."""

from __future__ import annotations

import re

# Headers of C and of its libraries, which a file of that name in the folder would stand in for where `-I` names it, and
# edgeprune_features.h, which is another target's.
_TAKEN = frozenset(
    "assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdarg stdbool stddef "
    "stdint stdio stdlib string tgmath time wchar wctype alloca endian features strings edgeprune_features".split()
)


def identifier(name: str) -> str:
    """What the functions, macros and files of a model begin with: ASCII letters, digits and underscores.

    Example: `slim` of `slim`, `net_2_fast` of `2-fast`, `net_` and numbers of letters that C has not.
    """
    plain = "".join(
        one if re.match(r"[A-Za-z0-9]", one) else "_" if one.isascii() else f"u{ord(one):x}" for one in name
    )
    plain = re.sub(r"_+", "_", plain).strip("_")
    return plain if re.match(r"[A-Za-z]", plain) and plain.lower() not in _TAKEN else f"net_{plain}".rstrip("_")
