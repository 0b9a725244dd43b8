"""`edgeprune methods`."""

import typer

from edgeprune.catalog import ENTRIES
from edgeprune.cli import options as opt
from edgeprune.cli.output import Output


def methods(context: typer.Context, *, as_json: opt.Json = False, debug: opt.Debug = False) -> None:
    from edgeprune.results import MethodsRecord

    record = MethodsRecord(ENTRIES)
    with Output(context, as_json=as_json, debug=debug) as output:
        output.show(record, lambda terminal: terminal.methods(record))
