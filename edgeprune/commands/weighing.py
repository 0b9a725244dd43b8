"""`--class-weights` beside data that are no classes, which the option alone makes a classification of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.tasks.registry import WHAT


@contextmanager
def weighing(class_weights: str | None, data: str | None) -> Iterator[None]:
    """Around what opens data and their task: a refusal of targets that are no classes names the option.

    Raises:
        InputError: as the body, or for class weights beside other targets than classes, as these look by themselves.
    """
    try:
        yield
    except InputError as error:
        got = None if class_weights is None or data is None else _kind(data)
        if got is None or got == "classes":
            raise
        raise InputError(
            f"--class-weights: expected one class a sample, which has a weight in the loss, got {WHAT[got]} as targets "
            f"in data {data}; leave the option out"
        ) from error


def _kind(data: str) -> str | None:
    """What the targets are as they look; None where the data cannot be read."""
    try:
        return open_data(data).targets.kind
    except InputError:
        return None
