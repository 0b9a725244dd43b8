"""What the tables of all records are made of."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from edgeprune.lines import printable


class Sheet(Group):
    """Renderables below each other, with control characters in names made harmless."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self.renderables:
            for segment in console.render(part, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)


def titled_table(title: str) -> Table:
    """A table without columns yet."""
    return Table(title=Text(title, "bold"), title_justify="left", box=box.ROUNDED, border_style="dim", show_edge=True)


def check_mark(text: str) -> Text:
    """What was checked, and is right."""
    return Text.assemble(("✓ ", "green"), text)


def assumptions(assumed: Iterable[str]) -> list[RenderableType]:
    """What was not given, a line each."""
    return [labelled("assumed", assumption, "yellow") for assumption in assumed]


def labelled(label: str, text: str, style: str = "cyan") -> RenderableType:
    """A label and what it says, whose further lines stand below the first."""
    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(f"  {label:<7} ", style), Text(text))
    return grid


def unbroken(label: str, text: str, style: str) -> Text:
    """A line that is copied from the terminal, so it must not be wrapped."""
    line = Text.assemble((label, "dim"), (text, style))
    line.no_wrap, line.overflow = True, "ignore"
    return line
