"""The small ONNX file of a network whose weights are mixtures of templates, beside the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeprune.errors import ParityError
from edgeprune.export import ort
from edgeprune.export.feeds import arrays_of, n_rows, repeated, rows
from edgeprune.export.parity import largest_error, outputs_of
from edgeprune.export.sharing import check_folded, with_templates
from edgeprune.export.state import Whole
from edgeprune.export.target import Inputs, Material
from edgeprune.files import write_atomically
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.graph.templates import Mixture
from edgeprune.progress import Progress
from edgeprune.records import Model
from edgeprune.report.formats import size
from edgeprune.results import ExportedFile

_BATCH = 256
_MOST_NAMED = 3


def shared_file(name: str) -> str:
    """That beside the plain file of a model of this name."""
    return f"{name}.shared.onnx"


def write_shared(
    material: Material, inputs: Inputs, told: Progress, leave_out: Callable[[str], None]
) -> tuple[ExportedFile, ...]:
    """Write it, run it beside PyTorch, and check that onnxruntime folds it; nothing where weights are not shared.

    It takes and gives what the plain file does, which is there and right. So where it would not be smaller, gives
    something else than PyTorch, or onnxruntime runs more operators of it, it is left out, and `leave_out` told why.
    """
    if not material.model.shared:
        return ()
    told.stage("make the weights of their templates")
    path = material.folder / shared_file(material.name)
    plain = read_onnx(material.network)
    state = material.model.program.state_dict
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    mixtures = [Mixture.told(own, shapes) for own in material.model.shared]
    weights = {name: state[name].detach().numpy() for own in mixtures for name in own.family.members}
    proto, shared, whole = with_templates(plain, mixtures, weights)
    content, n_plain = proto.SerializeToString(deterministic=True), material.network.stat().st_size
    if whole:
        told.say(f"{path.name}: {_named(whole)} stand in full, as ONNX has them in another form")
    if not shared or len(content) >= n_plain:
        leave_out(f"{path.name}: it would not be smaller than {material.network.name} ({size(n_plain)})")
        return ()
    write_atomically(path, content)
    parity = _checked(material, path, inputs, leave_out)
    if parity is None:
        return ()
    told.say(
        f"{path.name}: {size(len(content))} in place of {size(n_plain)}, {len(content) / n_plain:.0%}; onnxruntime "
        "folds the templates when it loads it"
    )
    return (ExportedFile(str(path), len(content), parity),)


def _named(weights: Sequence[str]) -> str:
    more = f" and {len(weights) - _MOST_NAMED} more" if len(weights) > _MOST_NAMED else ""
    return f"{', '.join(weights[:_MOST_NAMED])}{more}"


def _checked(material: Material, path: Path, inputs: Inputs, leave_out: Callable[[str], None]) -> float | None:
    """The largest error of the file; None where it failed and is gone."""
    try:
        parity = _parity(material, path, inputs)
        check_folded(material.network, path)
    except ParityError as error:
        path.unlink()
        leave_out(str(error))
        return None
    return parity


def _parity(material: Material, path: Path, inputs: Inputs) -> float:
    """The largest error: of a fixed batch on these inputs, of a free one on the whole test split where there is one."""
    session, network = ort.session(path), Whole(material.model.program)
    worst = 0.0
    for part in _batches(material, inputs):
        wanted = network(arrays_of(part.full))
        got = outputs_of(session, arrays_of(part.file))[: len(wanted)]  # what follows is a state
        worst = max(worst, largest_error(wanted, got, path.name, material.answering))
    return worst


def _batches(material: Material, inputs: Inputs) -> Iterator[Inputs]:
    raw = None if material.batch is not None else material.raw("test", None)
    if raw is not None:
        for start in range(0, n_rows(raw), _BATCH):
            yield material.inputs(rows(raw, slice(start, start + _BATCH)))
        return
    size = material.batch or _BATCH
    for start in range(0, n_rows(inputs.full), size):
        parts = [rows(feed, slice(start, start + size)) for feed in (inputs.file, inputs.program, inputs.full)]
        yield Inputs(*(parts if material.batch is None else [repeated(part, size) for part in parts]))


def note_on_shared(model: Model, asked: bool) -> tuple[str, ...]:
    """What is to be known of a file that could be smaller, where the small one was not asked for."""
    if asked or not model.shared:
        return ()
    return ("ONNX with all weights in full; --onnx writes a smaller file beside it, of the templates they share",)


def no_longer_shared(model: Model) -> tuple[str, ...]:
    """What compress does to weights that are shared."""
    n_weights = sum(len(own.coefficients) for own in model.shared)
    if not n_weights:
        return ()
    return (f"what is left of {n_weights} weights of shared templates is stored in full, as each is cut its own way",)
