"""What messages advise can be done: every option that a message names is one of the command that says it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import edgeprune
from edgeprune.cli.app import app

PACKAGE = Path(edgeprune.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w_-])")
# Options of npm, of onnxruntime's build, of LiteRT's benchmark program, and of Flower's commands.
OTHERS = {
    "export/web/runtime.py",
    "export/ortformat.py",
    "measure/adb/benchmark_model.py",
    "integrations/flower.py",
}

LOADING = {"compress", "export", "inspect", "profile"}
# The commands that may say what stands in a module; for modules that are not named here, all that load a network.
SAID_BY = {
    "federated/simulation.py": {"federate"},
    "federated/split.py": {"federate"},
    "commands/finetuning.py": {"compress"},
    "commands/featurerules.py": {"compress"},
    "commands/int8run.py": {"compress"},
    "commands/gauges.py": {"compress"},
    "commands/opening.py": {"compress"},
    "commands/preparing.py": {"compress"},
    "commands/scripted.py": {"compress"},
    "search/ownscript.py": {"compress"},
    "search/step.py": {"compress"},
    "search/structure.py": {"compress"},
    "search/datatrainer.py": {"compress"},
    "commands/resolve.py --data": {"compress", "export", "certify"},
    "commands/resolve.py --task": {"compress", "export"},
    "commands/resolve.py --class-weights": {"compress"},
    "measure/chance.py": {"compress", "export"},
    "formats/normalizing.py": {"compress", "export", "certify"},
    "formats/pretrained.py": {"compress", "export", "certify"},
    "formats/trust.py": {"compress", "export", "certify"},
    "commands/budgets.py": {"compress"},
    "commands/vocabulary.py": {"compress"},
    "search/checks.py": {"compress"},
    "search/descent.py": {"compress"},
    "search/effort.py": {"compress"},
    "graph/apply.py": {"compress"},
    "graph/refusals.py --dynamic": {"compress", "export", "inspect"},
    "graph/refusals.py --dynamic-size": {"compress", "export", "inspect"},
    "commands/dense.py --dense": {"export", "certify"},
    "commands/bench.py": {"bench"},
    "commands/dense.py": {"export"},
    "commands/variants.py": {"export"},
    "commands/validate.py": {"validate"},
    "measure/keptids.py": {"compress"},
    "measure/namedfile.py": {"validate"},
    "measure/networkfile.py": {"validate"},
    "measure/validation.py": {"validate"},
    "data/batching.py": {"train"},
    "search/refusals.py": {"compress"},
    "search/replay.py": {"compress"},
    "pruning/choosing.py": {"compress"},
    "search/landing.py": {"compress"},
    "units.py": {"compress"},
    "commands/outcome.py": {"compress"},
    "pruning/feature_rules.py": {"compress"},
    "pruning/feature_prices.py": {"compress", "train"},
    "training/channels.py": {"train"},
    "importance/criteria.py": {"compress", "train"},
    "commands/export.py": {"export"},
    "commands/sharing.py": {"export"},
    "methods/shared_weights.py": {"train"},
    "commands/certify.py": {"certify"},
    "certify/equivalence.py": {"certify"},
    "certify/judging.py": {"certify"},
    "certify/ranges.py": {"certify"},
    "report/formats.py --int8-for": {"compress", "export"},
    "report/exported.py": {"export"},
    "catalog.py": {"export"},
    "settings.py --clients": {"federate"},
    "settings.py --per-round": {"federate"},
    "report/terminal.py --attention": {"inspect"},
    "report/terminal.py --device": {"compress"},
    "report/terminal.py --onnx": {"export"},
    "runtimes.py": {"export"},
    "serving.py": {"serve"},
    "commands/resuming.py": {"train"},
    "commands/gate.py": {"compress"},
    "commands/gatefile.py": {"compress"},
    "commands/widths.py": {"compress"},
    "widths/gate.py": {"compress"},
    "widths/gating.py": {"compress"},
    "widths/planning.py": {"compress"},
    "commands/train.py": {"train"},
    "commands/unfinished.py": {"compress"},
    "journal/journal.py": {"compress"},
    "journal/kept.py": {"compress"},
    "journal/place.py": {"compress"},
    "tasks/budget.py": {"compress", "export", "validate"},
    "commands/weighing.py": {"compress", "federate", "train"},
    "tasks/wanted.py": {"compress", "export", "federate", "train", "validate"},
    "tasks/weights.py": {"compress", "train"},
    "training/loop.py": {"train"},
    "files.py": {"compress", "export", "inspect", "profile", "train"},
}
# What is said only where the option itself was given, or where another of the same command was.
GIVEN = {
    ("formats/architectures.py", "--module"), ("formats/load.py", "--module"), ("formats/load.py", "--unsafe-pickle"),
    ("commands/featurerules.py", "--module"), ("formats/recapture.py", "--dynamic"),
    ("formats/recapture.py", "--dynamic-size"), ("formats/recapture.py", "--module"),
}  # fmt: skip


@cache
def options() -> dict[str, set[str]]:
    """Command -> its options."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {
            option for parameter in command.whole().params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for name, command in commands.items()
    }


def texts(source: str) -> Iterator[str]:
    """The strings of a module that are no docstrings; a message that is put together is one text."""
    tree = ast.parse(source)
    bodies = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    documentation = {id(node.body[0].value) for node in bodies if isinstance(node.body[0], ast.Expr)}
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if isinstance(part, ast.Constant)}
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation | inside:
            yield node.value


MESSAGES = [
    (name, text)
    for path in sorted(PACKAGE.rglob("*.py"))
    if not (name := str(path.relative_to(PACKAGE))).startswith("cli/") and name not in OTHERS
    if OPTION.search(source := path.read_text(encoding="utf-8"))
    for text in texts(source)
    if OPTION.search(text)
]


def commands_of(name: str, before: str, option: str) -> set[str]:
    """Who says this: the command that the message names ahead of the option, or the module's; of pip's nobody."""
    if re.search(r"pip install [^;:]*$", before):
        return set()
    named = re.search(r"edgeprune (\w+) (?:(?!edgeprune )[^`;:])*$", before)
    if named:
        return {named.group(1)}
    if name.startswith("export/"):
        return {"export"}
    if name.startswith("measure/adb/"):
        return {"bench"}
    return SAID_BY.get(f"{name} {option}", SAID_BY.get(name, LOADING))


def test_there_are_messages_to_look_at() -> None:
    assert len(MESSAGES) > 60
    assert {"compress", "export", "inspect", "profile", "serve", "train", "validate"} <= set(options())


@pytest.mark.parametrize("name", sorted({name for name, _ in MESSAGES}))
def test_a_message_names_options_of_its_command_alone(name: str) -> None:
    wrong = []
    hits = [(found, text) for module, text in MESSAGES if module == name for found in OPTION.finditer(text)]
    for found, text in hits:
        option = found.group()
        commands = commands_of(name, text[: found.start()], option)
        lacking = sorted(command for command in commands if option not in options()[command])
        if lacking and (name, option) not in GIVEN:
            wrong.append(f"{option} is none of {', '.join(lacking)}: {text[:90]!r}")
    assert not wrong


# What a keyword of the Python interface is to who sits at the command line: its option, or that it is Python's.
KEYWORD = re.compile(r"\bdynamic_(batch|size)\b|\bdynamic=")
AT_THE_COMMAND_LINE = re.compile(r"--dynamic|in Python")


def test_a_message_on_capturing_says_what_to_do_at_the_command_line() -> None:
    paths = [PACKAGE / "formats" / "load.py", *sorted((PACKAGE / "graph").rglob("*.py"))]
    told = [text for path in paths for text in texts(path.read_text(encoding="utf-8")) if " " in text]
    said = [text for text in told if KEYWORD.search(text)]
    assert len(said) >= 3
    assert not [text for text in said if not AT_THE_COMMAND_LINE.search(text)]


def test_the_commands_that_a_message_names_exist() -> None:
    called = {word for _, text in MESSAGES for word in re.findall(r"edgeprune ([a-z]+) -", text)}
    assert called and called <= set(options())
