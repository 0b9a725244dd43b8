"""The errors edgeprune raises; the command line turns each into one line and an exit code.

EdgepruneError
├── InputError          exit 2   bad usage or bad input: a file, an option, data that does not fit
│   ├── UnsafeFileError          a file that would have to be unpickled or names unknown operators
│   ├── CaptureError             a model that torch.export cannot trace
│   ├── PlanError                a plan that does not fit its model
│   └── ApplyError               a module that a slim program cannot be put back into
├── CheckError          exit 1   a stated budget or a check was not met
│   ├── BudgetError              MACs, accuracy or latency asked for could not be reached
│   │   └── OutOfReachError          so little of a cost cannot be planned for
│   ├── ProofError               slim and masked dense disagree
│   ├── ParityError              an exported file disagrees with the network it came from
│   │   └── NotFiniteError           it gives NaN or infinity where the network does not
│   └── TrainingError            training diverged (NaN or infinite loss)
│       └── LostProcessError     one of the processes that work together has ended
└── InternalError       exit 3   a fault of edgeprune itself, met inside a public function

What is none of these is told in one line as well. An OSError or a want of memory has exit 2, and so has whatever the
user's own code raises, which becomes an InputError, see `usercode.py`; Ctrl-C has 130. Anything else is a fault of
edgeprune itself: exit 3.
"""

from __future__ import annotations


class EdgepruneError(Exception):
    """Base of every error that edgeprune raises."""

    exit_code = 2


class InputError(EdgepruneError):
    """Bad usage or bad input: says what, where, expected, got."""


class UnsafeFileError(InputError):
    """A file that could only be read by running what it carries."""


class CaptureError(InputError):
    """A model that `torch.export` cannot trace; `fact` is what the message says without its advice."""

    def __init__(self, fact: str, advice: str = "") -> None:
        super().__init__(f"{fact}; {advice}" if advice else fact)
        self.fact = fact


class PlanError(InputError):
    """A pruning plan that does not fit the model it is applied to."""


class ApplyError(InputError):
    """A module that a slim program cannot be put back into."""


class CheckError(EdgepruneError):
    """A stated budget or a check was not met."""

    exit_code = 1


class BudgetError(CheckError):
    """A budget (MACs, accuracy, latency) could not be met."""


class OutOfReachError(BudgetError):
    """A share of a cost that cannot be planned for: the least that can is so many times that, for what is `in_the_way`.

    `cost` is macs, latency, size or ram.
    """

    def __init__(self, fact: str, in_the_way: str, cost: str, times: float) -> None:
        super().__init__(f"{fact}; {in_the_way}")
        self.in_the_way, self.cost, self.times = in_the_way, cost, times


class ProofError(CheckError):
    """The slim network and the masked dense network disagree."""


class ParityError(CheckError):
    """An exported file disagrees with the network it was made from."""


class NotFiniteError(ParityError):
    """An exported file gives NaN or infinity where the network it was made from does not."""


class TrainingError(CheckError):
    """Training diverged."""


class LostProcessError(TrainingError):
    """One of the processes that work together has ended before the others: its own message says why."""


class InternalError(EdgepruneError):
    """A fault of edgeprune itself: says at which stage, at which node and line of the model, and what was raised."""

    exit_code = 3


def came_from_outside(error: BaseException) -> bool:
    """Whether a run was stopped rather than came to an end that it would come to again: a disk may be made free."""
    if not isinstance(error, EdgepruneError) or isinstance(error, LostProcessError):
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return True
        cause = cause.__cause__
    return False
