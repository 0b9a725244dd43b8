"""From a training loop of one's own back to a program: with what was learnt, or not at all."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import edgeprune
from edgeprune.errors import InputError
from edgeprune.formats.load import load
from edgeprune.formats.save import save_checkpoint, save_program
from edgeprune.graph.capture import Program
from edgeprune.graph.given import forget_given
from edgeprune.records import ModelInfo
from tests.nets import TiedAutoencoder

SHAPE = (3, 6, 6)


class Net(nn.Module):
    """Convolution, batch norm, dropout, a buffer that no file keeps, and a constant in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        return self.head(x)[:, self.order] * torch.tensor([1.0, 2.0, 3.0, 4.0])


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Program]:
    """A module and a slim program of it, which no test changes."""
    torch.manual_seed(0)
    model = Net()
    program = edgeprune.capture(model, torch.randn(2, *SHAPE))
    return model, edgeprune.cut(program, edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.6, align=2))


@pytest.fixture
def dense(made: tuple[nn.Module, Program]) -> nn.Module:
    return copy.deepcopy(made[0])


@pytest.fixture
def slim(made: tuple[nn.Module, Program]) -> Program:
    """One that has given no module away."""
    fresh = copy.copy(made[1])
    forget_given(fresh)
    return fresh


def trained(module: nn.Module, steps: int = 5) -> nn.Module:
    """A few steps in training mode; the module is left in it."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, *SHAPE, generator=generator) * 2 + 1
        nn.functional.cross_entropy(module(x), x[:, 0, 0, 0].gt(1).long()).backward()
        optimizer.step()
    return module


def answers(network: Any, x: Tensor) -> Tensor:
    """In eval mode, whatever mode a module is in."""
    module = network.module() if isinstance(network, Program) else copy.deepcopy(network).eval()
    with torch.no_grad():
        return module(x)


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_the_program_gets_what_the_module_learnt(slim: Program, dense: nn.Module, tmp_path: Path) -> None:
    """Weights and statistics, into ONNX, into the user's own module and into a file; the module goes on undisturbed."""
    before, x = answers(slim, torch.ones(2, *SHAPE)), torch.randn(5, *SHAPE)
    module = trained(slim.module())
    want = answers(module, x)
    learnt = slim.with_weights(module)
    assert module.training
    torch.testing.assert_close(answers(learnt, x), want)
    assert (answers(slim, x) - want).abs().max() > 0.01
    torch.testing.assert_close(answers(slim, torch.ones(2, *SHAPE)), before)
    statistics = learnt.state_dict["norm.running_mean"]
    assert torch.equal(statistics, module.get_buffer("norm.running_mean")) and bool(statistics.any())
    assert isinstance(learnt.state_dict["conv.weight"], nn.Parameter)

    edgeprune.export_onnx(learnt, tmp_path / "program.onnx", simplify=False)
    edgeprune.export_onnx(module, tmp_path / "module.onnx", simplify=False)
    for name in ("program.onnx", "module.onnx"):
        torch.testing.assert_close(run_onnx(tmp_path / name, x), want, atol=1e-4, rtol=1e-4)
    learnt.apply_to(dense)
    torch.testing.assert_close(answers(dense, x), want, atol=1e-5, rtol=1e-5)
    save_program(tmp_path / "slim.pt2", learnt, ModelInfo(SHAPE))
    torch.testing.assert_close(answers(load(tmp_path / "slim.pt2").program, x), want)

    trained(module, 1)
    torch.testing.assert_close(answers(learnt, x), want)


def _use(name: str, slim: Program, tmp_path: Path) -> None:
    uses: dict[str, Callable[[], object]] = {
        "apply_to": lambda: slim.apply_to(Net()),
        "export_onnx": lambda: edgeprune.export_onnx(slim, tmp_path / "out", simplify=False),
        "save_program": lambda: save_program(tmp_path / "out", slim, ModelInfo(SHAPE)),
        "save_checkpoint": lambda: save_checkpoint(tmp_path / "out", slim, ModelInfo(SHAPE)),
        "cut": lambda: edgeprune.cut(slim, edgeprune.plan(slim, edgeprune.analyze(slim), keep_macs=0.9)),
        "slim_contract": lambda: edgeprune.slim_contract(slim),
    }
    uses[name]()


USES = ("apply_to", "export_onnx", "save_program", "save_checkpoint", "cut", "slim_contract")


@pytest.mark.parametrize("use", USES)
def test_untrained_weights_are_not_taken_for_trained_ones(slim: Program, use: str, tmp_path: Path) -> None:
    module = trained(slim.module())
    with pytest.raises(InputError, match=r"'conv.weight' differs\): expected slim.with_weights\(module\)"):
        _use(use, slim, tmp_path)
    assert not list(tmp_path.iterdir())
    del module
    if use not in ("apply_to", "slim_contract"):  # nobody holds the trained module any more
        _use(use, slim, tmp_path)


def test_a_copy_that_was_trained_is_noticed_too(slim: Program, dense: nn.Module) -> None:
    copied = trained(copy.deepcopy(slim.module()))
    with pytest.raises(InputError, match="expected slim.with_weights"):
        slim.apply_to(dense)
    slim.with_weights(copied).apply_to(dense)


def test_statistics_alone_are_something_learnt(slim: Program, dense: nn.Module) -> None:
    module = slim.module().train()
    with torch.no_grad():
        module(torch.randn(8, *SHAPE) + 3)
    with pytest.raises(InputError, match="'norm.running_mean' differs"):
        slim.apply_to(dense)


@pytest.mark.parametrize("change", ["nothing", "half", "inference"])
def test_a_module_that_was_not_trained_is_no_obstacle(change: str, slim: Program, dense: nn.Module) -> None:
    module = slim.module()
    if change == "half":
        module.half()
    if change == "inference":
        answers(module, torch.randn(3, *SHAPE))
    slim.apply_to(dense)
    assert module is not None


class Counting(nn.Module):
    """Keeps a state of its own while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.fc(x)


def test_a_state_that_inference_keeps_is_no_training() -> None:
    model = Counting()
    program = edgeprune.capture(model, torch.randn(2, 4))
    module = program.module()
    module(torch.randn(3, 4))
    assert bool(module.get_buffer("seen"))
    program.apply_to(model)


def _compiled(module: nn.Module) -> nn.Module:
    return trained(torch.compile(module, backend="eager"))  # type: ignore[arg-type]


def _averaged(module: nn.Module) -> nn.Module:
    average = AveragedModel(module)
    for _ in range(3):
        trained(module, 2)
        average.update_parameters(module)
    return average


def _distributed(module: nn.Module) -> nn.Module:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return trained(nn.parallel.DistributedDataParallel(module))
    finally:
        dist.destroy_process_group()


def _parametrized(module: nn.Module) -> nn.Module:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(module.get_submodule("conv"), "weight", Doubled())
    return trained(module)


def _moved(module: nn.Module) -> nn.Module:
    """Through another type and back, as where a module comes home from a device."""
    return trained(module.double().float())


WRAPPED = [_compiled, _averaged, _distributed, _parametrized, _moved, nn.DataParallel, copy.deepcopy]


@pytest.mark.parametrize("wrap", WRAPPED, ids=lambda wrap: wrap.__name__.strip("_"))
def test_wrappers_and_copies_give_their_weights(wrap: Callable[[nn.Module], nn.Module], slim: Program) -> None:
    module = wrap(slim.module())
    x = torch.randn(5, *SHAPE)
    inner = getattr(module, "_orig_mod", getattr(module, "module", module))
    with torch.no_grad():
        want = inner.eval()(x)
    torch.testing.assert_close(answers(slim.with_weights(module), x), want)


def test_a_wrapped_module_is_exported_with_its_weights(slim: Program, tmp_path: Path) -> None:
    average = _averaged(slim.module())
    edgeprune.export_onnx(average, tmp_path / "average.onnx", simplify=False)
    x = torch.randn(5, *SHAPE)
    torch.testing.assert_close(run_onnx(tmp_path / "average.onnx", x), answers(average.module, x), atol=1e-4, rtol=1e-4)


def test_tied_weights_stay_tied() -> None:
    program = edgeprune.capture(TiedAutoencoder(), torch.randn(2, 8))
    module = program.module()
    with torch.no_grad():
        next(module.parameters()).mul_(0.5)
    learnt = program.with_weights(module)
    before = [id(tensor) for tensor in program.state_dict.values()]
    after = [id(tensor) for tensor in learnt.state_dict.values()]
    assert len(set(before)) < len(before)
    assert [before.index(one) for one in before] == [after.index(one) for one in after]
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    tied = next(name for name in names if name not in dict(module.named_parameters()))
    owner, _, attribute = tied.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(module.get_parameter(tied).detach() + 1))
    with pytest.raises(InputError, match="other values in .*, to which it is tied"):
        program.with_weights(module)


def _lacking(module: nn.Module) -> None:
    del module.get_submodule("head").weight


def _narrower(module: nn.Module) -> None:
    module.get_submodule("head").weight = nn.Parameter(torch.zeros(4, 2))


def _poisoned(module: nn.Module) -> None:
    with torch.no_grad():
        module.get_parameter("conv.bias")[0] = float("nan")


def _endless(module: nn.Module) -> None:
    module.get_buffer("norm.running_var")[0] = float("inf")


def _halved(module: nn.Module) -> None:
    module.half()


def _not_made(module: nn.Module) -> None:
    module.get_submodule("head").weight = nn.UninitializedParameter()


def _without_values(module: nn.Module) -> None:
    module.to("meta")


def _hooked(module: nn.Module) -> None:
    module.register_forward_hook(lambda _, args, output: output + 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lacking, "missing head.weight$"),
        (_narrower, r"head.weight \[4, 2\] instead of \[4, \d\]$"),
        (_poisoned, "NaN in conv.bias$"),
        (_endless, "infinity in norm.running_var$"),
        (_halved, r"conv.weight of torch.float16 on cpu instead of torch.float32, .* and \d more$"),
        (_not_made, "head.weight as a UninitializedParameter$"),
        (_without_values, r"conv.weight of torch.float32 on meta instead of torch.float32"),
        (_hooked, "computes something else than the program with its weights"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_what_does_not_fit_is_refused_by_name(spoil: Callable[[nn.Module], None], message: str, slim: Program) -> None:
    module = slim.module()
    spoil(module)
    with pytest.raises(InputError, match=message):
        slim.with_weights(module)


def test_a_module_around_it_is_told_which_part_fits(slim: Program) -> None:
    with pytest.raises(InputError, match="its part '1.0' fits"):
        slim.with_weights(nn.Sequential(nn.Identity(), nn.Sequential(slim.module())))


def test_the_users_own_module_is_trained_after_it_was_sliced(slim: Program, dense: nn.Module) -> None:
    slim.apply_to(dense)
    x = torch.randn(5, *SHAPE)
    torch.testing.assert_close(answers(slim.with_weights(trained(dense)), x), answers(dense, x), atol=1e-5, rtol=1e-5)


def test_the_dense_module_is_another(slim: Program, dense: nn.Module) -> None:
    with pytest.raises(InputError, match=r"got a Net with conv.weight \[8, 3, 3, 3\] instead of"):
        slim.with_weights(dense)


def test_a_module_of_no_program_is_not_exported(dense: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"got a Net of another origin; use edgeprune.capture\(module, example_inputs\)"
    ):
        edgeprune.export_onnx(dense, tmp_path / "net.onnx")


def test_a_stored_state_comes_back_by_way_of_a_module(slim: Program, tmp_path: Path) -> None:
    module = trained(slim.module())
    torch.save(module.state_dict(), tmp_path / "best.pt")
    torch.save(module, tmp_path / "whole.pt")
    again = slim.module()
    again.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True))
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(answers(slim.with_weights(again), x), answers(module, x))


def test_a_program_does_not_keep_what_it_gave_away(slim: Program) -> None:
    module = slim.module()
    given = weakref.ref(module)
    del module
    gc.collect()
    assert given() is None


def test_a_module_in_training_goes_on_training(made: tuple[nn.Module, Program]) -> None:
    """What is looked at in between follows no other mode afterwards: dropout draws, batch norm learns."""
    _, slim = made
    module = slim.module().train()
    slim.with_weights(module)
    x = torch.randn(4, *SHAPE)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert module.training and not torch.equal(module(x), module(x))
    assert any(not torch.equal(before[name], buffer) for name, buffer in module.named_buffers())


def test_an_operator_in_place_follows_the_mode_too() -> None:
    program = edgeprune.capture(nn.Sequential(nn.Linear(3, 8), nn.RReLU(0.1, 0.9, inplace=True)), torch.randn(2, 3))
    module, x = program.module(), torch.randn(4, 3)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
