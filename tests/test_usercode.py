"""Whatever the user's code raises is one InputError with its file and line; Ctrl-C stays Ctrl-C."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.data import batches, open_data, order, read
from edgeprune.errors import ApplyError, CaptureError, InputError, ProofError
from edgeprune.formats.architectures import build
from edgeprune.usercode import calling_user_code, running_user_code, user_line

# Each raises something that is not to decide how a command ends.
RAISES = """
class Own(BaseException): pass
class Wordless(Exception):
    def __str__(self): raise SystemExit(0)
class Endless(Exception):
    def __str__(self): return "x" * 40_000
class Odd(str): pass
class Subtle(Exception):
    def __str__(self): return Odd("a\\x1b[31m\\u202eb")
class Circle(Exception): pass
class Trap(type):
    @property
    def __name__(cls): raise SystemExit(0)
class Trapped(BaseException, metaclass=Trap):
    @property
    def __class__(self): raise SystemExit(0)
    __cause__ = __traceback__ = __context__ = filename = exit_code = format_message = __class__
def trapped(): raise Trapped("in it")
def circle():
    error = Circle("round")
    error.__cause__ = error
    raise error
def exits(): raise SystemExit(0)
def exits_by_name():
    import sys
    sys.exit()
def interrupts(): raise KeyboardInterrupt
def closes(): raise GeneratorExit
def stops(): raise StopIteration(3)
def own(): raise Own("mine")
def wordless(): raise Wordless
def endless(): raise Endless
def subtle(): raise Subtle
def no_memory(): raise MemoryError
def pipe(): raise BrokenPipeError(32, "gone")
def group(): raise BaseExceptionGroup("two", [KeyboardInterrupt(), SystemExit(0)])
def refuses():
    from edgeprune.errors import InputError
    raise InputError("no such luck")
def passes():
    from edgeprune.errors import BudgetError
    class Fine(BudgetError): exit_code = 0
    raise Fine("all well")
def usage():
    import typer
    raise typer.Exit(0)
"""
CALLS = [
    ("exits", "SystemExit: 0"),
    ("exits_by_name", "SystemExit"),
    ("interrupts", "KeyboardInterrupt"),
    ("closes", "GeneratorExit"),
    ("stops", "StopIteration: 3"),
    ("own", "Own: mine"),
    ("wordless", "Wordless: (its message cannot be read)"),
    ("endless", "Endless: xxx"),
    ("subtle", "Subtle: a\\x1b[31m\\u202eb"),
    ("circle", "Circle: round"),
    ("no_memory", "MemoryError"),
    ("pipe", "BrokenPipeError: [Errno 32] gone"),
    ("group", "BaseExceptionGroup: two (2 sub-exceptions)"),
    ("refuses", "InputError: no such luck"),
    ("passes", "Fine: all well"),
    ("usage", "Exit: 0"),
    ("trapped", "Trapped: in it"),
]


@pytest.fixture
def raising(tmp_path: Path) -> Path:
    path = tmp_path / "raising.py"
    path.write_text(RAISES)
    return path


def _line_of(path: Path, name: str) -> int:
    """Where the function begins: what it raises is raised there or in the lines after."""
    return next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith(f"def {name}("))


@pytest.mark.parametrize(("name", "said"), CALLS, ids=[name for name, _ in CALLS])
def test_a_factory_may_raise_what_it_likes(raising: Path, name: str, said: str) -> None:
    for call in (build, open_data):
        with pytest.raises(InputError) as caught:
            call(f"{raising}:{name}")
        message = str(caught.value)
        assert type(caught.value) is InputError
        assert said in message and f" in {name})" in message
        assert "\n" not in message and len(message) < 700
        at = int(message.rpartition("raising.py:")[2].partition(" ")[0])
        assert 0 <= at - _line_of(raising, name) <= 4


@pytest.mark.parametrize(("name", "said"), CALLS[:-1], ids=[name for name, _ in CALLS[:-1]])  # Python stumbles over it
def test_a_file_may_raise_it_on_import(raising: Path, name: str, said: str) -> None:
    path = raising.with_name("importing.py")
    path.write_text(f"from raising import {name}\n{name}()\n")
    for call in (build, open_data):
        with pytest.raises(InputError) as caught:
            call(f"{path}:anything")
        assert said in str(caught.value) and f" in {name})" in str(caught.value)
    sys.modules.pop("raising", None)


def test_a_file_with_a_wrong_line_names_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ny = x +\n")
    for call in (build, open_data):
        with pytest.raises(InputError, match=rf"SyntaxError: .*\(at {tmp_path / 'broken.py'}:2\)"):
            call(f"{tmp_path / 'broken.py'}:f")


DATA = """
import dataclasses, numpy as np, torch
from raising import *
from edgeprune.data import open_data
class Rows(torch.utils.data.Dataset):
    def __init__(self, n, raising=None, at=0): self.n, self.raising, self.at = n, raising, at
    def __len__(self): return self.n
    def __getitem__(self, i):
        if self.raising and i >= self.at: globals()[self.raising]()
        return torch.zeros(1, 8, 8), i % 10
class Lengthless(Rows):
    def __len__(self): exits()
class Wordy:
    def __int__(self): exits()
class Labels(Rows):
    def __getitem__(self, i): return torch.zeros(1, 8, 8), Wordy() if i > 2 else 1
def samples(raising, at=5): return dataclasses.replace(open_data("digits"), val=Rows(20, raising, at))
def first(raising): return dataclasses.replace(open_data("digits"), train=Rows(20, raising))
def length(): return dataclasses.replace(open_data("digits"), test=Lengthless(20))
def labels(): return dataclasses.replace(open_data("digits"), val=Labels(20))
class Mapping(dict):
    def __contains__(self, key): exits()
def mapping(): return Mapping(x=np.zeros((9, 2)), y=np.zeros(9))
def killed(): return dataclasses.replace(open_data("digits"), val=Killed(20))
class Killed(Rows):
    def __getitem__(self, i):
        if i > 2 and torch.utils.data.get_worker_info(): import os; os._exit(3)
        return torch.zeros(1, 8, 8), 1
"""


@pytest.fixture
def data_file(raising: Path) -> Any:
    path = raising.with_name("data.py")
    path.write_text(DATA)
    yield path
    sys.modules.pop("raising", None)


@pytest.mark.parametrize(("name", "said"), CALLS, ids=[name for name, _ in CALLS])
def test_samples_may_raise_it(data_file: Path, name: str, said: str) -> None:
    data = open_data(f"{data_file}:samples?raising={name}")
    with pytest.raises(InputError, match=r"data\.py:samples, val: .*") as caught:
        list(batches(data.val, 4))
    assert said in str(caught.value) and "raising.py:" in str(caught.value)
    with pytest.raises(InputError, match="sample 7 raised"):
        data.val[7]


@pytest.mark.parametrize("name", ["exits", "interrupts", "own", "wordless"])
def test_so_may_the_first_sample_and_the_reading_processes(data_file: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"raising.py:.* in {name}"):
        open_data(f"{data_file}:first?raising={name}")
    data = open_data(f"{data_file}:samples?raising={name}")
    with pytest.raises(InputError, match=f"raising.py:.* in {name}"):
        list(read(data.val, order(20, 4), workers=1))


@pytest.mark.parametrize("name", ["length", "mapping"])
def test_lengths_and_mappings_are_the_users_code_too(data_file: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"SystemExit: 0 \(at .*raising.py:.* in exits\)"):
        data = open_data(f"{data_file}:{name}")
        list(batches(data.val, 4))


def test_a_label_that_is_no_number_is_refused_without_running_it(data_file: Path) -> None:
    data = open_data(f"{data_file}:labels")
    with pytest.raises(InputError, match="targets: expected numbers or arrays of them, got object"):
        list(batches(data.val, 4))


def test_a_reading_process_that_is_gone_is_told(data_file: Path) -> None:
    data = open_data(f"{data_file}:killed")
    assert len(list(batches(data.val, 4))) == 5
    with pytest.raises(InputError, match="expected the 1 processes that read samples to last"):
        list(read(data.val, order(20, 4), workers=1))


def test_plain_splits_stay_what_they_are(data_file: Path) -> None:
    data = open_data(f"{data_file}:samples?raising=own&at=100")
    plain = open_data("digits")
    assert type(data.train) is type(plain.train)
    assert len(data.val) == 20 and [len(y) for _, y in batches(data.val, 16)] == [16, 4]  # type: ignore[arg-type]


NETS = """
from torch import nn
from raising import *
class Net(nn.Module):
    def __init__(self, raising, in_training=False):
        super().__init__()
        self.layer, self.raising, self.in_training = nn.Linear(4, 2), raising, in_training
    def forward(self, x):
        if self.training or not self.in_training: globals()[self.raising]()
        return self.layer(x)
"""


@pytest.mark.parametrize("name", ["exits", "interrupts", "own", "wordless", "closes", "no_memory"])
def test_a_forward_may_raise_it(raising: Path, name: str) -> None:
    (raising.with_name("nets.py")).write_text(NETS)
    net = build(f"{raising.with_name('nets.py')}:Net?raising={name}")
    try:
        with pytest.raises(CaptureError, match=r"raising\.py:\d+ in ") as caught:
            edgeprune.capture(net, torch.zeros(2, 4))
        assert "\n" not in str(caught.value)
    finally:
        sys.modules.pop("raising", None)


def test_so_may_the_forward_of_a_module_that_is_sliced() -> None:
    class Leaves(nn.Sequential):
        leaves = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.leaves:
                raise SystemExit(0)
            return super().forward(x)

    model = Leaves(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    program = edgeprune.capture(model, torch.zeros(2, 4))
    graph = edgeprune.analyze(program, inputs=False)
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=0.5, align=1))
    model.leaves = True
    with pytest.raises(ApplyError, match=r"SystemExit: 0 \(at .*test_usercode\.py:\d+ in forward\)"):
        slim.apply_to(model)
    assert model[0].out_features == 8


# -- whose error it is -------------------------------------------------------------------------------------------------


def test_what_edgeprune_raises_on_purpose_stays_what_it_is() -> None:
    with pytest.raises(InputError, match="^data: expected digits"), calling_user_code("the factory raised"):
        open_data("digit")
    with pytest.raises(InputError, match="^data: expected digits"), running_user_code():
        open_data("digit")


def test_what_no_line_of_the_users_had_a_part_in_is_not_theirs() -> None:
    import json

    def ours() -> None:
        raise ProofError("differs")

    source = compile("def library(): raise RuntimeError('of a library')", json.__file__, "exec")
    scope: dict[str, Any] = {}
    exec(source, scope)
    guard = running_user_code()
    with pytest.raises(RuntimeError, match="of a library"):
        guard.__enter__()
        try:
            scope["library"]()
        except RuntimeError as error:
            error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
            guard.__exit__(type(error), error, error.__traceback__)
            raise
    with pytest.raises(InputError, match="ProofError: differs"), running_user_code():
        ours()  # a class of edgeprune's, raised here


def test_the_users_own_line_is_told_rather_than_that_of_a_package(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import numpy as np\ndef f():\n    return np.zeros(-1)\n")
    with pytest.raises(InputError, match=r"negative dimensions .*net\.py:3 in f\)"):
        build(f"{tmp_path / 'net.py'}:f")


def test_a_line_of_a_package_is_told_where_there_is_no_other() -> None:
    try:
        torch.nn.functional.linear(torch.zeros(2, 3), torch.zeros(4, 5))
    except RuntimeError as error:
        assert user_line(error).startswith(__file__)
        error.__traceback__ = None
        assert user_line(error) == ""


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

PRESSED = """
import os, signal
def press(): os.kill(os.getpid(), signal.SIGINT)
def plain(): press()
def swallowed():
    try: press()
    except BaseException: pass
def reworded():
    try: press()
    except BaseException: raise SystemExit(0)
"""


@pytest.mark.parametrize("name", ["plain", "swallowed", "reworded"])
def test_ctrl_c_stays_ctrl_c_whatever_the_code_makes_of_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "pressed.py").write_text(PRESSED)
    before = signal.getsignal(signal.SIGINT)
    for call in (build, open_data):
        with pytest.raises(KeyboardInterrupt):
            call(f"{tmp_path / 'pressed.py'}:{name}")
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_does_what_the_program_around_wants() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), calling_user_code("raised"):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_a_data_set_is_a_plain_record_afterwards(data_file: Path) -> None:
    data = open_data(f"{data_file}:samples?raising=own&at=100")
    assert dataclasses.replace(data, name="other").name == "other"
    assert isinstance(nn.Flatten()(next(iter(batches(data.val, 4)))[0]), torch.Tensor)
