"""Lines of the user's own code."""

from __future__ import annotations

from torch import fx


def source_line(node: fx.Node) -> str:
    """The innermost line of the user's own code that made a node, `file:line`, or the empty string."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    own = [line for line in lines if "/torch/" not in line.replace("\\", "/") and not line.startswith('File "<')]
    if not own:
        return ""
    path, _, rest = own[-1].removeprefix("File ").partition(", line ")
    return f"{path.strip(chr(34))}:{rest.partition(',')[0]}"
