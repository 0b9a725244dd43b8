"""What a strided first layer makes of an image: rows that it never reads, and patches that never matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgeprune.data.inputs import fed
from edgeprune.graph import binding
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.reconstruction.readers import Reader, readers_of
from edgeprune.records import DataSource, Normalization
from edgeprune.search.crop import are_telling, predictions, sample_images
from edgeprune.training import one_float_type
from edgeprune.training.placement import in_eval
from edgeprune.units import ranges

_TOLD = 8  # rows, columns or patches that are named
_PASSED = (Kind.COPY, Kind.CONVERSION, Kind.POINTWISE)
_BATCH = 128


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Which pixels a first layer reads.

    `rows` `(height,)` and `columns` `(width,)` hold the number of the window that reads each, -1 where none does; None
    of both where windows overlap, and `read` `(height,)` and `(width,)` tell of each whether any does.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    read: tuple[Tensor, Tensor]
    rows: Tensor | None
    columns: Tensor | None

    @property
    def n_patches(self) -> int:
        """How many windows there are that share no pixel; 0 where they overlap."""
        if self.rows is None or self.columns is None:
            return 0
        return int(self.rows.max() + 1) * int(self.columns.max() + 1)

    def patches(self) -> Tensor:
        """The number of the patch of each pixel, row by row, -1 for none, `(height, width)`."""
        assert self.rows is not None
        assert self.columns is not None
        numbers = self.rows[:, None] * (self.columns.max() + 1) + self.columns
        return torch.where((self.rows[:, None] < 0) | (self.columns < 0), -1, numbers)


def first_windows(module: fx.GraphModule) -> Windows | None:
    """Those of the convolution that alone reads the images; None where something else does, or it reads every pixel.

    Args:
        module: takes images `(batch, channels, height, width)`.
    """
    reader = _first_reader(module)
    if reader is None or reader.window is None or reader.transposed or len(reader.window.kernel) != 2:
        return None
    window = reader.window
    if all(step == 1 for step in window.stride):
        return None
    sizes = binding.shapes_of(reader.source)[-2:]
    counts = binding.shapes_of(reader.node)[-2:]
    dims = zip(sizes, counts, window.kernel, window.stride, window.dilation, window.before, strict=True)
    (rows, read_rows), (columns, read_columns) = (_owners(*dim) for dim in dims)
    if rows is None or columns is None:
        rows = columns = None
    return Windows(window.kernel, window.stride, (read_rows, read_columns), rows, columns)


def unread(windows: Windows) -> str | None:
    """What is told of rows and columns that no window reads; None where there are none."""
    parts = []
    for what, read in zip(("rows", "columns"), windows.read, strict=True):
        lacking = torch.nonzero(~read).flatten().tolist()
        if lacking:
            parts.append(f"{len(lacking)} of {len(read)} {what} ({_some(lacking)})")
    if not parts:
        return None
    kernel, stride = (" x ".join(map(str, sizes)) for sizes in (windows.kernel, windows.stride))
    return (
        f"leave out {' and '.join(parts)}: the first layer looks at {kernel} pixels in steps of {stride} and never "
        "reads these"
    )


def unneeded_patches(module: nn.Module, windows: Windows, data: DataSource, normalization: Normalization) -> str | None:
    """What is told of patches without which no prediction changes on the validation split; None where there are none.

    Patches are ranked by their effect on the logits, to first order, and as many of the last as can are replaced by the
    mean image, found by bisection.

    Args:
        module: takes normalised images `(batch, channels, height, width)`, gives logits `(batch, n_classes)`.
        normalization: of the inputs.
    """
    if windows.n_patches < 2:
        return None
    images = sample_images(data, normalization).to(one_float_type(module))
    mean, patches = images.mean(0), windows.patches()
    with in_eval(module):
        order = _effects(module, images, mean, patches, windows.n_patches).argsort(stable=True)
        with torch.no_grad():
            expected = predictions(module, images, mean, patches >= -1)
            least, most = 0, len(order) - 1 if are_telling(expected) else 0
            while least < most:
                middle = (least + most + 1) // 2
                inside = ~torch.isin(patches, order[:middle])
                if torch.equal(predictions(module, images, mean, inside), expected):
                    least = middle
                else:
                    most = middle - 1
    if least == 0:
        return None
    size = " x ".join(map(str, windows.kernel))
    return (
        f"fill {least} of the {windows.n_patches} patches of {size} pixels with the mean image, or do not capture "
        f"them: they never matter (numbers {_some(sorted(order[:least].tolist()))}, row by row; without them no "
        f"prediction on {len(images):,} validation images changes); they cannot be cut out of the network, which reads "
        "every patch with the same weights"
    )


def _effects(module: nn.Module, images: Tensor, mean: Tensor, patches: Tensor, n_patches: int) -> Tensor:
    """The squared first-order effect on the logits of what each patch tells beside the mean image, `(n_patches,)`."""
    total = torch.zeros(n_patches + 1, dtype=torch.float64)
    for part in images.split(_BATCH):
        x = part.clone().requires_grad_()
        [grad] = torch.autograd.grad(fed(module, x).amax(dim=1).sum(), x)
        told = ((part - mean) * grad).sum(1).double().flatten(1)
        by_patch = told.new_zeros(len(part), n_patches + 1).index_add_(1, patches.flatten() % (n_patches + 1), told)
        total += by_patch.square().sum(0)
    return total[:-1]


def _first_reader(module: fx.GraphModule) -> Reader | None:
    """The layer that alone reads the one input, changed pixel by pixel at most."""
    readers = {reader.node: reader for reader in readers_of(module).values()}
    inputs = module.graph.find_nodes(op="placeholder")
    node = inputs[0] if len(inputs) == 1 else None
    while node is not None:
        following = _only_user(node)
        if following in readers:
            reader = readers[following]
            return reader if reader.source is node else None
        node = following if following is not None and _passes(following, node) else None
    return None


def _only_user(node: fx.Node) -> fx.Node | None:
    """What alone reads a node's value, not its size; None where several do."""
    users = [user for user in node.users if binding.holds_tensor(user.meta.get("val"))]
    return users[0] if len(users) == 1 else None


def _passes(node: fx.Node, given: fx.Node) -> bool:
    """Whether it changes what is given pixel by pixel."""
    is_mapped = node.op == "call_function" and kind_of(node.target) in _PASSED
    return is_mapped and binding.shapes_of(node) == binding.shapes_of(given)


def _owners(  # noqa: PLR0913 - a window along one dim
    size: int, n_windows: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[Tensor | None, Tensor]:
    """The window that reads each place, `(size,)`, None where two share one; and whether any does."""
    starts = torch.arange(n_windows) * stride - before
    places = starts[:, None] + torch.arange(kernel) * dilation
    inside = (places >= 0) & (places < size)
    counts = torch.bincount(places[inside], minlength=size)
    owners = torch.full((size,), -1)
    owners[places[inside]] = torch.arange(n_windows)[:, None].expand_as(places)[inside]
    return (None if int(counts.max()) > 1 else owners), counts > 0


def _some(numbers: list[int]) -> str:
    """Runs of numbers, as many as are worth telling: "0-3, 7, ..."."""
    told = ranges(numbers)
    return ", ".join([*told[:_TOLD], *(["..."] if len(told) > _TOLD else [])])
