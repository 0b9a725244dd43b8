"""Foreign text made fit to be shown: what comes from files and from other libraries' errors may be long, or hostile."""

from __future__ import annotations

import re
import reprlib

MAX_LINE = 300  # characters of an error, with all that stands before it
_LONGEST_NAME = 60
_CUT = " ... "
_MAX_READ = 20_000  # of a text of which MAX_LINE characters are shown
# Control characters but tabs and line ends, what turns the direction of reading or is not seen, and halves of
# surrogate pairs, which no encoding takes: a name in a file must not steer the reader's terminal or browser.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """`text` with every control character but tabs and line ends escaped: ESC becomes the four characters `\\x1b`."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """`text` as one printable line of at most `limit` characters; of a longer one the middle is left out."""
    if len(text) > 2 * _MAX_READ:
        text = text[:_MAX_READ] + _CUT + text[-_MAX_READ:]
    line = printable(" ".join(text.split()))
    if len(line) <= limit:
        return line
    tail = (limit - len(_CUT)) * 2 // 5
    return line[: limit - len(_CUT) - tail] + _CUT + line[-tail:]


def is_name(text: str) -> bool:
    """Whether a text can stand in a line, a heading or a cell of a table: not empty, printable, and short enough."""
    return bool(text.strip()) and one_line(text, _LONGEST_NAME) == text.strip()


def shown(value: object, limit: int = 60) -> str:
    """A value as Python writes it, in at most `limit` characters, whatever it holds and however deep it is nested."""
    return one_line(_Short().repr(value), limit)


class _Short(reprlib.Repr):
    """Two levels and some items of each: a few bytes of a pickle can stand for a list that would fill the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = 200

    def repr_int(self, x: int, level: int) -> str:
        """As the parent's, but without writing out thousands of digits, which Python refuses."""
        return super().repr_int(x, level) if x.bit_length() <= 512 else f"a number of {x.bit_length()} bits"

    def repr_instance(self, x: object, level: int) -> str:
        """Objects of other classes by their class alone: what they say of themselves may take any time."""
        plain = (float, complex, bool, bytes, type(None), type(Ellipsis))
        return super().repr_instance(x, level) if type(x) in plain else f"a {type(x).__name__}"


def error_line(error: BaseException, limit: int = 200) -> str:
    """The first line of what a foreign error says, with its type, e.g. "KeyError: 'lost'"."""
    return _with_type(error, first_line(error), limit)


def said(error: BaseException, limit: int = 200) -> str:
    """An error's type and all that it says, in one line of bearable length, even where its own methods fail."""
    return _with_type(error, error_text(error), limit)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, which is the one that tells, where PyTorch writes many."""
    return next((line.strip() for line in error_text(error).splitlines() if line.strip()), "")


def error_reason(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return first_line(error) or type(error).__name__


def error_text(error: BaseException) -> str:
    """What an error says of itself: one of a user's code may fail to say it, or say it at any length."""
    try:
        return str.__getitem__(str(error), slice(_MAX_READ))  # `str` may hand over a class of the user's
    except BaseException:
        return "(its message cannot be read)"


def _with_type(error: BaseException, text: str, limit: int) -> str:
    name = type.__dict__["__name__"].__get__(type(error))  # whatever its class says of itself
    return one_line(f"{name}: {text}" if text else name, limit)
