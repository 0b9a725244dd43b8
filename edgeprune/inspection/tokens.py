"""What there is to tell of token inputs: the tables that their ids look up, and what a cut vocabulary saves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.export import ExportedProgram

from edgeprune.graph.tokens import Tokens
from edgeprune.records import CutVocabulary, TokenRow, Vocabulary


def token_rows(program: ExportedProgram) -> tuple[TokenRow, ...]:
    """Every token input of a program."""
    tokens = Tokens(program)
    return tuple(_token_row(tokens, name) for name in tokens.inputs)


def _token_row(tokens: Tokens, name: str) -> TokenRow:
    low, size = tokens.bounds(name)
    found = tokens.of(name)
    readers = (tokens.other_reader(lookup, list(tokens.lookups.values())) for lookup in found)
    reader = next(filter(None, readers), None)
    reason = None if reader is None else f"must stay: a table is also read by {reader}"
    tables = tuple(dict.fromkeys(table for lookup in found for table in lookup.tables))
    params = sum(tensor.numel() for tensor in _held(tokens.program, tables))
    return TokenRow(name, size - low, tables, params, reason)


def cut_vocabularies(
    dense: ExportedProgram, slim: ExportedProgram, vocabularies: Mapping[str, Vocabulary]
) -> tuple[CutVocabulary, ...]:
    """What every cut vocabulary saves; of a table under several names once."""
    found = []
    for name, one in vocabularies.items():
        before, after = (sum(t.numel() * t.element_size() for t in _held(p, one.tables)) for p in (dense, slim))
        tables = tuple(sorted(one.tables))
        found.append(CutVocabulary(name, one.size, len(one.keep), one.unknown, tables, before, after))
    return tuple(found)


def _held(program: ExportedProgram, names: Iterable[str]) -> list[Tensor]:
    """The tensors of these names, each once."""
    tensors = {**program.constants, **program.state_dict}
    held = (tensors[name] for name in names if isinstance(tensors.get(name), Tensor))
    return list({tensor.data_ptr(): tensor for tensor in held}.values())
