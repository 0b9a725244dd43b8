"""`export --to c`: what is written, timed and described, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from target_nets import in_pytorch, slim_program
from test_c import COMPILERS, shallow
from torch import Tensor, nn

from edgeprune.commands.export import export
from edgeprune.errors import InputError, ParityError
from edgeprune.export.c import target
from edgeprune.export.c.runtime import Library
from edgeprune.export.target import Inputs
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.measure.peaks import device_peak
from edgeprune.records import ModelInfo
from edgeprune.requests import ExportRequest

pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_program(tmp_path / "2 net.pt2", slim_program(shallow(), torch.randn(2, 1, 4, 6)), ModelInfo((1, 4, 6)))
    return tmp_path / "2 net.pt2"


def exported(net: Path, **changes: Any) -> Any:
    return export(ExportRequest(model=str(net), out=str(net.parent / "out"), targets=("c",), **changes))


def test_an_export_is_checked_timed_and_described(saved: Path) -> None:
    record = exported(saved, dense=str(saved), batch=2)
    out = saved.parent / "out"
    files = {Path(file.path).name: file for file in record.files}
    assert list(files)[-2:] == ["net_2_net.c", "net_2_net.h"]
    source = files["net_2_net.c"]
    assert source.parity is not None and source.parity < 1e-5 and source.ratio is not None
    assert '"net_2_net_input0"' in (out / "features.json").read_text()
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 6), np.float32)
    library = Library.of(out / "net_2_net.c")
    assert record.targets is not None and record.targets.rows[1].target == "c"
    stated = re.search(r"_ARENA_BYTES (\d+)", (out / "net_2_net.h").read_text())
    assert stated and f"arena {int(stated[1]):,} B" in record.targets.rows[1].verdict
    library.fill([x])
    np.testing.assert_allclose(library.run()[0], in_pytorch(saved, x)[0], rtol=1e-4, atol=1e-6)


class TwoGathered(nn.Module):
    """Both inputs have lost features."""

    edgeprune_keep_u: Tensor
    edgeprune_keep_v: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_u", torch.tensor([1, 2]))
        self.register_buffer("edgeprune_keep_v", torch.tensor([0, 3, 8]))
        self.f = nn.Linear(5, 2)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        kept = torch.index_select(u, 1, self.edgeprune_keep_u), torch.index_select(v, 1, self.edgeprune_keep_v)
        return self.f(torch.cat(kept, 1))


def test_of_several_inputs_the_kept_features_are_taken(tmp_path: Path) -> None:
    program = capture(TwoGathered().eval(), (torch.randn(2, 20), torch.randn(2, 30)))
    save_program(tmp_path / "net.pt2", program, ModelInfo(()))
    exported(tmp_path / "net.pt2")
    header, n_bytes = (tmp_path / "out" / "net.h").read_text(), device_peak(program).n_bytes
    assert n_bytes == 4 * 10 and f"_ARENA_BYTES {n_bytes} " in header
    assert "_INPUT0_SIZE 2\n" in header and "_INPUT1_SIZE 3\n" in header


def test_what_no_microcontroller_holds_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_MOST_BYTES", 1500)  # of the slim one 1,340, of the dense one more
    wide = capture(shallow().eval(), torch.randn(2, 1, 4, 6))
    draft, x = target.CRuntime().draft(wide, saved.parent, 1), np.zeros((1, 1, 4, 6), np.float32)
    assert target.CRuntime().runner(draft, Inputs(x, x, x)) is None
    monkeypatch.setattr(target, "_MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"^C: expected at most 1,000 bytes of constants, got 1,340: no micro"):
        exported(saved)


def test_a_file_of_anyone_elses_stays(saved: Path) -> None:
    out = saved.parent / "out"
    out.mkdir()
    (out / "net_2_net.c").write_text("int main(void) { return 0; }\n")
    (out / "net_2_net.h").write_text("/* Made by edgeprune: of an earlier export. */\n")
    with pytest.raises(InputError, match=r"net_2_net\.c: expected a new place"):
        exported(saved)
    export(ExportRequest(model=str(saved), out=str(out), force=True))
    assert (out / "net_2_net.c").exists() and not (out / "net_2_net.h").exists()


def test_without_a_compiler_nothing_is_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(saved.parent / "nowhere"))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(
        InputError, match=r"^C: expected a compiler .*\(cc, gcc or clang, or what CC names\), got none$"
    ):
        exported(saved)
    assert not (saved.parent / "out").exists()


def test_a_wrong_file_and_one_that_does_not_compile_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = target.source_text
    monkeypatch.setattr(target, "source_text", lambda program: text(program).replace("sum = bias[o]", "sum = 1.0f"))
    with pytest.raises(ParityError, match=r"net_2_net\.c compiled.*largest error expected"):
        exported(saved)
    monkeypatch.setattr(target, "source_text", lambda program: text(program) + "int f(void) { return nothing; }\n")
    with pytest.raises(InputError, match=r"^C: net_2_net\.c does not run: .*ended with 1: .*nothing.* undeclared"):
        exported(saved)
    assert not (saved.parent / "out").exists()
