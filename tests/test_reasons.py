"""Every cause of a lock has a message that completes a sentence, and says what would unlock the units."""

from __future__ import annotations

from edgeprune.graph import reasons
from edgeprune.graph.reasons import Cause

CAUSES = [value for value in vars(reasons).values() if isinstance(value, Cause)]


def test_causes_differ_and_complete_a_sentence() -> None:
    assert len(CAUSES) >= 20
    assert len({cause.text for cause in CAUSES}) == len(CAUSES)
    for cause in (*CAUSES, reasons.whole_tensor(0, "t")):
        for part in (cause.text, cause.remedy):
            assert part and part == part.strip(" .") and not part[0].isupper()


def test_a_plain_text_is_a_cause_with_general_advice() -> None:
    assert reasons.cause_of(reasons.OUTPUT) is reasons.OUTPUT
    told = reasons.cause_of("turns channels into sound")
    assert told.text == "turns channels into sound" and "this line" in told.remedy
