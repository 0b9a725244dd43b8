"""A drawing of the channel groups as DOT or SVG. Names come from model files: nothing of them becomes markup."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from edgeprune.lines import printable

if TYPE_CHECKING:
    from edgeprune.inspection.drawing import Drawing, DrawnLayer

_BOX = (210, 40)  # width and height in pixels
_GAP = (30, 22)  # between columns and between rows
_MARGIN = 20
_HEAD = 74  # pixels for the title and the legend
_MAX_NAME = 34  # characters that fit into a box
_GREY, _WHITE = "#d6d6d6", "#ffffff"
_LEGEND = "same colour: removed together · grey: locked · dashed: removal changes the statistics of a normalisation"


def dot(drawing: Drawing) -> str:
    """The drawing in Graphviz's language, e.g. for `dot -Tpdf`."""
    lines = [
        "digraph groups {",
        f"  label={_quoted(drawing.title)}; labelloc=t; rankdir=TB;",
        '  node [shape=box, style="filled,rounded", fontname="Helvetica", fontsize=10];',
    ]
    for number, layer in enumerate(drawing.layers):
        style = "filled,rounded,dashed" if layer.renormalised else "filled,rounded"
        attributes = {
            "label": "\n".join((layer.name, _below(layer))),
            "fillcolor": _colour(layer),
            "style": style,
            "tooltip": layer.note or layer.name,
        }
        told = ", ".join(f"{key}={_quoted(value)}" for key, value in attributes.items())
        lines.append(f"  n{number} [{told}];")
    lines += [f"  n{source} -> n{target};" for source, target in drawing.arrows]
    return "\n".join((*lines, "}")) + "\n"


def _quoted(text: str) -> str:
    r"""A string of DOT: quotes and backslashes are escaped, a line end is `\n`."""
    lines = (printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'


def svg(drawing: Drawing) -> str:
    """The drawing as a picture for a browser; pointing at a box tells its group, or why it is locked."""
    places = _places(drawing)
    width = max(column for column, _ in places) + 1 if places else 1
    height = max(row for _, row in places) + 1 if places else 1
    size = (
        2 * _MARGIN + max(width * (_BOX[0] + _GAP[0]), 3 * _BOX[0]) + _GAP[0],
        _HEAD + _MARGIN + height * (_BOX[1] + _GAP[1]),
    )
    root = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {size[0]} {size[1]}", width=str(size[0]),
        height=str(size[1]), style="font-family: Helvetica, Arial, sans-serif; background: white",
    )  # fmt: skip
    _define_arrow(root)
    _text(root, (_MARGIN, 28), drawing.title, "16")
    _text(root, (_MARGIN, 50), _LEGEND, "11", "#555555")
    corners = [(_MARGIN + column * (_BOX[0] + _GAP[0]), _HEAD + row * (_BOX[1] + _GAP[1])) for column, row in places]
    for source, target in drawing.arrows:
        path = _path(corners[source], corners[target])
        line = {"fill": "none", "stroke": "#777777", "stroke-width": "1.3", "marker-end": "url(#arrow)"}
        ElementTree.SubElement(root, "path", d=path, attrib=line)
    for layer, corner in zip(drawing.layers, corners, strict=True):
        _box(root, layer, corner)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _places(drawing: Drawing) -> list[tuple[int, int]]:
    """Column and row of every box: a row below all that flows into it, in the column of what comes latest."""
    incoming: list[list[int]] = [[] for _ in drawing.layers]
    for source, target in drawing.arrows:
        incoming[target].append(source)
    places: list[tuple[int, int]] = []
    taken: set[tuple[int, int]] = set()
    for sources in incoming:
        row = max((places[source][1] + 1 for source in sources), default=0)
        column = min((places[source][0] for source in sources if places[source][1] == row - 1), default=0)
        while (column, row) in taken:
            column += 1
        taken.add((column, row))
        places.append((column, row))
    return places


def _path(source: tuple[int, int], target: tuple[int, int]) -> str:
    """From the bottom of one box to the top of the other, round the boxes between them."""
    (x, y), (to_x, to_y) = (source[0] + _BOX[0] / 2, source[1] + _BOX[1]), (target[0] + _BOX[0] / 2, target[1])
    distance = to_y - y
    if x == to_x and distance > _GAP[1] + 1:  # it would run through the boxes of its column
        side = source[0] + _BOX[0]
        bend = side + 14 + min(_GAP[0] + 20, distance / 12)
        return f"M {side} {y - _BOX[1] / 2:g} C {bend:g} {y:g} {bend:g} {to_y:g} {side} {to_y + _BOX[1] / 2:g}"
    if x > to_x and distance > _GAP[1] + 1:  # down its own column, then in from the side
        across, middle = target[0] + _BOX[0], to_y + _BOX[1] / 2
        return f"M {x:g} {y:g} V {middle - _BOX[1]:g} Q {x:g} {middle:g} {x - _BOX[1]:g} {middle:g} H {across:g}"
    down, up = max(y, to_y - distance / 2) + 0.8 * _GAP[1], to_y - 0.8 * _GAP[1]
    return f"M {x:g} {y:g} C {x:g} {down:g} {to_x:g} {up:g} {to_x:g} {to_y:g}"


def _box(root: ElementTree.Element, layer: DrawnLayer, corner: tuple[int, int]) -> None:
    box = ElementTree.SubElement(root, "g")
    ElementTree.SubElement(box, "title").text = printable(f"{layer.name}\n{layer.note}".strip())
    shape = {
        "x": str(corner[0]), "y": str(corner[1]), "width": str(_BOX[0]), "height": str(_BOX[1]), "rx": "6",
        "fill": _colour(layer), "stroke": "#333333",
    }  # fmt: skip
    if layer.renormalised:
        shape["stroke-dasharray"] = "5 3"
    ElementTree.SubElement(box, "rect", shape)
    middle = corner[0] + _BOX[0] // 2
    name = layer.name if len(layer.name) <= _MAX_NAME else "…" + layer.name[1 - _MAX_NAME :]
    _text(box, (middle, corner[1] + 17), name, "11", anchor="middle")
    _text(box, (middle, corner[1] + 32), _below(layer), "10", "#333333", anchor="middle")


def _below(layer: DrawnLayer) -> str:
    """The line under the name, e.g. "conv2d · group 3"."""
    state = "locked" if layer.locked else f"group {layer.group + 1}" if layer.group is not None else ""
    return " · ".join(filter(None, (layer.operator if layer.kind == "layer" else "", state)))


def _colour(layer: DrawnLayer) -> str:
    if layer.group is None:
        return _GREY if layer.locked else _WHITE
    red, green, blue = colorsys.hls_to_rgb(layer.group * 0.618034 % 1, 0.8, 0.65)  # neighbours far apart
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _text(
    parent: ElementTree.Element, at: tuple[int, int], text: str, size: str, fill: str = "#000000", anchor: str = "start"
) -> None:
    element = ElementTree.SubElement(
        parent, "text", {"x": str(at[0]), "y": str(at[1]), "font-size": size, "fill": fill, "text-anchor": anchor}
    )
    element.text = printable(text)


def _define_arrow(root: ElementTree.Element) -> None:
    marker = ElementTree.SubElement(
        ElementTree.SubElement(root, "defs"), "marker",
        {"id": "arrow", "viewBox": "0 0 8 8", "refX": "7", "refY": "4", "markerWidth": "7", "markerHeight": "7",
         "orient": "auto-start-reverse"},
    )  # fmt: skip
    ElementTree.SubElement(marker, "path", d="M 0 0 L 8 4 L 0 8 z", fill="#777777")
