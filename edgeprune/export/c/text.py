"""A header and a C99 file of steps: kernels that are used, constants, one static arena, and the calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.export.c.graph import SIZES, Argument, Constant, Held, Lowered, View, literal
from edgeprune.export.c.planner import Arena
from edgeprune.export.ctext import MADE
from edgeprune.export.ctext import literal as text_literal

_KERNELS = Path(__file__).parent / "kernels"
_PER_LINE = 10
_MAP = """static void {name}(const float *x, float *y, int32_t n)
{{
    int32_t i;
    for (i = 0; i < n; i++) {{
        const float v = x[i];
        y[i] = {text};
    }}
}}
"""
_BINARY = """static void {name}(const float *a, const float *b, float *y, const walk *s)
{{
    int32_t i, j, k, l, m;
    for (i = 0; i < s->size[0]; i++)
        for (j = 0; j < s->size[1]; j++)
            for (k = 0; k < s->size[2]; k++)
                for (l = 0; l < s->size[3]; l++)
                    for (m = 0; m < s->size[4]; m++) {{
                        const float u = a[i * s->a[0] + j * s->a[1] + k * s->a[2] + l * s->a[3] + m * s->a[4]];
                        const float v = b[i * s->b[0] + j * s->b[1] + k * s->b[2] + l * s->b[3] + m * s->b[4]];
                        *y++ = {text};
                    }}
}}
"""
_TEMPLATES = {"map": _MAP, "binary": _BINARY}


@dataclass(frozen=True, slots=True)
class Part:
    """A function of the file: its steps, where its values lie, and the names of what it is given and gives."""

    made: Lowered
    arena: Arena
    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Program:
    """What both files are made of: the network, and what makes its inputs of raw ones, where something does."""

    prefix: str
    network: Part
    front: Part | None = None

    @property
    def arena_bytes(self) -> int:
        """Static memory that may be written."""
        return max(self.network.arena.n_bytes, self.front.arena.n_bytes if self.front else 0)

    @property
    def constant_bytes(self) -> int:
        """Weights and sizes, which may stay in read-only memory."""
        parts = [self.network, *([self.front] if self.front else [])]
        return sum(one.values.size * SIZES.get(one.type, 4) for part in parts for one in part.made.constants)


def header_text(program: Program) -> str:
    """The header: sizes, names and functions."""
    macro = program.prefix.upper()
    lines = [
        f"{MADE}: a network in C99 that needs no library but that of C.",
        "",
        "   Inputs and outputs lie in the arena: fill every input, run, read the outputs before the next",
        "   input is filled. A run may write over the inputs. One run at a time. */",
        f"#ifndef {macro}_H",
        f"#define {macro}_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define {macro}_ARENA_BYTES {program.arena_bytes} /* static memory that is written */",
        f"#define {macro}_CONSTANT_BYTES {program.constant_bytes} /* constants, for read-only memory */",
        *_described(macro, "INPUT", program.network.made.inputs, program.network.inputs),
        *_described(macro, "OUTPUT", program.network.made.outputs, program.network.outputs),
    ]
    if program.front is not None:
        lines += _described(macro, "RAW", program.front.made.inputs, program.front.inputs)
    lines += ["", "#ifdef __cplusplus", 'extern "C" {', "#endif", ""]
    lines += [f"{signature};" for signature in _signatures(program).values()]
    lines += ["", "#ifdef __cplusplus", "}", "#endif", "", "#endif"]
    return "\n".join(lines) + "\n"


def source_text(program: Program) -> str:
    """The C file: whatever it uses comes before it."""
    writer = _Writer(program.prefix)
    bodies = [_body(program, name, signature, writer) for name, signature in _signatures(program).items()]
    floats = -(-program.arena_bytes // 4)
    return "\n".join(
        [
            f"{MADE}. */",
            "#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n",
            f'#include "{program.prefix}.h"\n',
            *writer.kernels(),
            *writer.constants,
            f"\nstatic float arena[{floats}];\n",
            *bodies,
        ]
    )


def _described(macro: str, kind: str, views: Sequence[View], names: Sequence[str]) -> list[str]:
    """Macros of all inputs, or of all outputs."""
    lines = ["", f"#define {macro}_N_{kind}S {len(views)}"]
    for number, (view, name) in enumerate(zip(views, names, strict=True)):
        start = f"#define {macro}_{kind}{number}"
        lines += [
            f"{start}_NAME {text_literal(name, 'C')}",
            f"{start}_TYPE {view.type}",
            f"{start}_SIZE {view.n_elements}",
            f"{start}_DIMS {{{', '.join(map(str, view.shape)) or '1'}}}",
        ]
    return lines


def _signatures(program: Program) -> dict[str, str]:
    """The functions of the header by what they do: input0, ..., output0, ..., load, run."""
    p, made = program.prefix, program.network.made
    found = {f"input{k}": f"{view.type} *{p}_input{k}(void)" for k, view in enumerate(made.inputs)}
    found |= {f"output{k}": f"const {view.type} *{p}_output{k}(void)" for k, view in enumerate(made.outputs)}
    if program.front is not None:
        raw = ", ".join(f"const {view.type} *raw{k}" for k, view in enumerate(program.front.made.inputs))
        found["load"] = f"/* Fill all inputs from raw ones, by what preprocess.onnx does. */\nvoid {p}_load({raw})"
    return {**found, "run": f"void {p}_run(void)"}


def _body(program: Program, name: str, signature: str, writer: _Writer) -> str:
    """A function: where an input or an output lies, or the calls of a part."""
    network = program.network
    if name == "run":
        lines = writer.calls(network, {})
    elif name == "load" and program.front is not None:
        lines = writer.calls(program.front, {view.value: f"raw{k}" for k, view in enumerate(program.front.made.inputs)})
    else:
        views = network.made.inputs if name.startswith("input") else network.made.outputs
        number = int(re.sub(r"\D", "", name))
        lines = [f"return {_place(views[number], network.arena.offsets)}"]
    return "\n".join([signature, "{", *(f"    {line};" for line in lines), "}\n"])


def _place(view: View, offsets: Mapping[int, int]) -> str:
    """Where a view begins in the arena."""
    start = offsets[view.value] + view.start * SIZES[view.type]
    place = f"arena + {start // SIZES[view.type]}"
    return place if view.type == "float" else f"({view.type} *){place}"


@dataclass(slots=True, eq=False)
class _Writer:
    """What the calls of a file use: kernels by name, constants in their order, each once."""

    prefix: str
    constants: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)  # of constants by their text
    _functions: dict[str, str] = field(default_factory=dict)  # names of kernels by what they were asked for by
    _part: Part | None = None
    _raw: Mapping[int, str] = field(default_factory=dict)

    def calls(self, part: Part, raw: Mapping[int, str]) -> list[str]:
        """Those of a part; `raw` are the values that its function is handed."""
        self._part, self._raw = part, raw
        return [
            f"{self._kernel(call.kernel)}({', '.join(map(self._argument, call.arguments))})"
            for step in part.arena.steps
            for call in step.calls
        ]

    def _kernel(self, name: str) -> str:
        kind, _, text = name.partition(":")
        if name not in self._functions:
            same = sum(one.startswith(f"{kind}:") for one in self._functions)
            self._functions[name] = f"{kind}{same}" if text else name
        return self._functions[name]

    def _argument(self, given: Argument) -> str:
        assert self._part is not None
        if isinstance(given, str):
            return given
        if isinstance(given, Held):
            return self._constant(self._part.made.constants[given.number])
        if given.value in self._raw:
            return f"{self._raw[given.value]} + {given.start}" if given.start else self._raw[given.value]
        return _place(given, self._part.arena.offsets)

    def _constant(self, one: Constant) -> str:
        text = _initial(one)
        declared = f"{one.type} {{}}" if one.type in _STRUCTS else f"{one.type} {{}}[{max(one.values.size, 1)}]"
        key = f"{declared} = {text}"
        if key not in self._names:
            name = self._names[key] = f"c{len(self._names)}"
            self.constants.append(f"static const {declared.format(name)} = {text};")
        return f"&{self._names[key]}" if one.type in _STRUCTS else self._names[key]

    def kernels(self) -> list[str]:
        """The text of all that is called, and before each what it calls."""
        made = {
            name: _TEMPLATES[kind].format(name=name, text=text.replace("{u}", "u").replace("{v}", "v"))
            for (kind, _, text), name in ((key.partition(":"), name) for key, name in self._functions.items())
            if text
        }
        stored = {path.stem: path for path in sorted(_KERNELS.glob("*.c"))}
        found: dict[str, str] = {}

        def put(name: str) -> None:
            if name in found:
                return
            text = made[name] if name in made else stored[name].read_text(encoding="ascii")
            code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
            for used in dict.fromkeys(re.findall(r"\w+", code)):
                if used in stored and used != name:
                    put(used)
            found[name] = text

        for name in self._functions.values():
            put(name)
        return list(found.values())


_STRUCTS = ("window", "walk", "range", "pair", "recurrence")


def _initial(one: Constant) -> str:
    """The initial value of a constant."""
    values = one.values.ravel()
    if one.type == "float":
        texts = [literal(value) for value in values.tolist()]
    else:
        texts = [str(int(value)) for value in values.tolist()]
    if one.type == "walk":
        return "{" + ", ".join("{" + ", ".join(texts[k : k + 5]) + "}" for k in (0, 5, 10)) + "}"
    if len(texts) <= _PER_LINE or one.type in _STRUCTS:
        return "{" + ", ".join(texts or ["0"]) + "}"
    lines = [", ".join(texts[start : start + _PER_LINE]) for start in range(0, len(texts), _PER_LINE)]
    return "{\n    " + ",\n    ".join(lines) + "\n}"
