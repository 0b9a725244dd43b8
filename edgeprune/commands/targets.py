"""The targets of `edgeprune export`: which are written, what happens where one cannot be, and all side by side."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from edgeprune import runtimes
from edgeprune.errors import InputError, ParityError
from edgeprune.export.target import Inputs, Material, Target
from edgeprune.export.targets import ONNXRUNTIME
from edgeprune.measure.targets import Candidate, compare_targets
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile, LeftOutTarget, TargetTable

RUNTIMES = tuple(entry.name for entry in runtimes.TARGETS if entry.is_runtime)
Made = Mapping[str, Sequence[ExportedFile]]  # by the target's name


class Attempts:
    """The targets that are still to be written; where one cannot be, an export that asked for it by name ends.

    One of `--to all` is left out then, and that is said.
    """

    def __init__(self, targets: Sequence[Target], named: Collection[str]) -> None:
        self.targets = tuple(targets)
        self.left_out: list[LeftOutTarget] = []
        self._named = frozenset(named)

    def each(self, does: Callable[[Target], None], of: Collection[Target] | None = None) -> None:
        """Do something with each of them, or each of some; those that it fails with are left out.

        Raises:
            InputError, ParityError: of a target that was asked for by name.
        """
        for target in self.targets if of is None else of:
            try:
                does(target)
            except (InputError, ParityError) as error:
                if target.name in self._named:
                    raise
                self.left_out.append(LeftOutTarget(target.name, str(error)))
                self.targets = tuple(one for one in self.targets if one is not target)

    def written(self, of: Sequence[Target], material: Material, told: Progress) -> dict[str, tuple[ExportedFile, ...]]:
        """The files of these targets; of one that fails nothing stays."""
        made: dict[str, tuple[ExportedFile, ...]] = {}

        def write(target: Target) -> None:
            try:
                made[target.name] = target.write(material, told)
            except (InputError, ParityError):
                _remove([material.folder / name for name in target.files(material.name)])
                raise

        self.each(write, of)
        return made


def _remove(places: Sequence[Path]) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def networks(target: Target, made: Made) -> list[ExportedFile]:
    """Those files of a target that hold the network: the first, and others that were compared with PyTorch."""
    return [file for place, file in enumerate(made.get(target.name, ())) if not place or file.parity is not None]


def side_by_side(
    attempts: Attempts, made: Made, first: ExportedFile, material: Material, samples: Inputs, told: Progress
) -> TargetTable | None:
    """All runtimes' files, the ONNX file first; None where no runtime was asked for.

    Args:
        attempts: which targets there are, and which were left out.
        made: their files.
        first: the ONNX file.
        material: what they were made of.
        samples: what they are timed on, one batch.
        told: told of the progress.
    """
    chosen = [target for target in attempts.targets if target.name in RUNTIMES]
    if not chosen and not attempts.left_out:
        return None
    told.stage("time the runtimes side by side")
    runner = ONNXRUNTIME.runner(Path(first.path), samples)
    candidates = [Candidate(runtimes.ONNX, Path(first.path), first.size_bytes, first.parity, runner)]
    for target in chosen:
        for file in networks(target, made):
            path = Path(file.path)
            runner = None if target.runtime is None else target.runtime.runner(path, samples)
            size = sum(part.size_bytes for part in made[target.name] if Path(part.path).stem == path.stem)
            candidates.append(Candidate(target.name, path, size, file.parity, runner, file.note))
    return compare_targets(candidates, attempts.left_out, told)
