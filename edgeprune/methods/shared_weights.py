"""Layers whose weights are learned mixtures of a few templates: fewer numbers to store, the same arithmetic to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.graph.templates import Family, Mixture, Shape, families
from edgeprune.methods.base import Method, Subject
from edgeprune.records import Templates

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)  # rows of a table are looked up, not multiplied with
_MOST_NAMED = 4


class SharedTemplates(Method):
    """Weights are cut into tiles, each a mixture of N templates; templates and coefficients are what is trained.

    Teterwak, Nelson, Dryden, Bashkirova, Saenko and Plummer, Learning to Compose SuperWeights for Neural Parameter
    Allocation Search, WACV 2024 (arXiv 2312.01280). Where the paper finds by gradients which layers are to share, here
    those of one kernel do whose shapes one of theirs divides, see `graph.templates.families`. Templates begin as the
    principal directions of the weights that the network has, so that a trained network is a start as well.

    Options: templates.

    Raises:
        InputError: no two layers can share, or so many templates save nothing.
    """

    name = "shared-weights"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        n_templates = int(subject.options["templates"])
        self.params = _candidates(subject)
        shapes = {name: tuple(param.shape) for name, param in self.params.items()}
        found = families(shapes, n_templates)
        if not found:
            raise InputError(f"--templates: {_refusal(shapes, n_templates, type(subject.module).__name__)}")
        self.mixtures = tuple(_trained(Mixture.of(family, self.params, n_templates)) for family in found)
        members = {name for family in found for name in family.members}
        self.params = {name: param for name, param in self.params.items() if name in members}
        self.begin(training=False)  # also of a training without steps the module has the mixtures

    @property
    def templates(self) -> tuple[Templates, ...]:
        """What the weights are mixtures of now."""
        return tuple(mixture.plain for mixture in self.mixtures)

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Templates and coefficients in the place of the weights that they come to."""
        for name, param in super().trained():
            if name not in self.params:
                yield name, param
        for kind, tensors in self.kept().items():
            for name, tensor in tensors.items():
                assert isinstance(tensor, nn.Parameter)
                yield f"{kind} {name}", tensor

    def begin(self, training: bool) -> None:
        """Put the mixtures into the module."""
        with torch.no_grad():
            for mixture in self.mixtures:
                for name in mixture.family.members:
                    self.params[name].copy_(mixture.weight(name))
        for param in self.params.values():
            param.grad = None

    def end(self, scale: float | None) -> None:
        """Hand the gradients of the weights on to templates and coefficients."""
        if scale is None:
            return
        for mixture in self.mixtures:
            names = [name for name in mixture.family.members if self.params[name].grad is not None]
            with torch.no_grad():
                own, parts = mixture.gradients({name: _gradient(self.params[name]) for name in names})
            mixture.templates.grad = own if names else None
            for name in names:
                mixture.coefficients[name].grad = parts[name]
                self.params[name].grad = None

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Templates and coefficients."""
        templates = {str(number): mixture.templates for number, mixture in enumerate(self.mixtures)}
        coefficients = {name: own for mixture in self.mixtures for name, own in mixture.coefficients.items()}
        return {"templates": templates, "coefficients": coefficients}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """As any method's; what is trained is written into as it is."""
        with torch.no_grad():
            super().load_state_dict(state)


def _candidates(subject: Subject) -> dict[str, nn.Parameter]:
    """The weights that layers multiply with: two dims or more, of which neither of the first two is 1."""
    tables = {id(part.weight) for part in subject.module.modules() if isinstance(part, _EMBEDDINGS)}
    return {
        name: param
        for name, param in subject.parameters().items()
        if param.dim() >= 2 and min(param.shape[:2]) > 1 and param.dtype == torch.float32 and id(param) not in tables
    }


def _trained(mixture: Mixture) -> Mixture:
    """The mixture with its tensors as parameters."""
    own = {name: nn.Parameter(tensor) for name, tensor in mixture.coefficients.items()}
    return Mixture(mixture.family, nn.Parameter(mixture.templates), own)


def _gradient(param: nn.Parameter) -> Tensor:
    assert param.grad is not None
    return param.grad


def _refusal(shapes: Mapping[str, Shape], n_templates: int, network: str) -> str:
    """Why nothing is saved, with the figures of the family that would save most."""
    fewest = families(shapes, 1)
    if not fewest:
        first = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:_MOST_NAMED])
        got = f"{first}{', ...' if len(shapes) > _MOST_NAMED else ''}" if shapes else "none of two dims in float32"
        return (
            "expected two layers whose weights can be cut into the same tiles, that is of one kernel and with sizes "
            f"that one of them divides, in {network}, got {got}"
        )
    best = max(_every(shapes), key=lambda family: family.most_templates)
    return (
        f"expected at most {best.most_templates}, got {n_templates}: with their coefficients they are "
        f"{best.size_of(n_templates):,} numbers in place of the {best.size:,} of {len(best.members)} weights in "
        f"{best.n_tiles} tiles of {'x'.join(map(str, best.tile))}, so that nothing is saved"
    )


def _every(shapes: Mapping[str, Shape]) -> list[Family]:
    """The families of the fewest templates, and of ever more of them as long as any is left."""
    found: list[Family] = []
    n_templates = 1
    while own := families(shapes, n_templates):
        found += own
        n_templates = max(family.most_templates for family in own) + 1
    return found
