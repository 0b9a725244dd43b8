"""`edgeprune serve`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli import options as opt
from edgeprune.cli import values
from edgeprune.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Group

    from edgeprune.serving import Serving


def serve(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder that edgeprune export --web wrote.")],
    host: Annotated[
        str,
        typer.Option(
            metavar="HOST",
            help="The address to listen on; the default is for this machine alone. 0.0.0.0 lets phones on the same "
            "network in, and shows a QR code.",
            rich_help_panel=opt.HOW,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="The port; 0 takes any that is free.",
            parser=values.count("0 to 65535", 0, 65535),
            rich_help_panel=opt.HOW,
        ),
    ] = 8000,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """[bold]edgeprune serve run/web --host 0.0.0.0[/bold]"""
    with Output(context, as_json=as_json, debug=debug) as output:
        from edgeprune import serving

        serving.serve(folder, host, port, lambda ready: output.show(ready, lambda _: _shown(ready)))


def _shown(ready: Serving) -> Group:
    """The address, and for other devices a QR code of it, where there is a terminal to draw it on."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(ready.url, "bold cyan")]
    if not ready.loopback:
        lines += [Text(_qr_code(ready.url), "bright_white on black")] if sys.stdout.isatty() else []
        lines.append(Text("Anyone on the same network can open it. Over http a phone gives the networks one thread."))
    lines.append(Text(f"Ctrl-C ends it. Serving {ready.folder}", "dim"))
    return Group(*lines)


def _qr_code(url: str) -> str:
    """`url` as a QR code of half blocks, two rows of it a line, e.g. for a phone's camera."""
    import io

    import segno

    drawn = io.StringIO()
    segno.make(url, micro=False).terminal(drawn, compact=True)
    return drawn.getvalue()
