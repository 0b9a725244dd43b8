"""Networks on a device in turn, round by round, so that what slows the device slows all of them."""

from __future__ import annotations

import math
import posixpath
import random
import secrets
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from edgeprune.errors import InputError
from edgeprune.lines import one_line
from edgeprune.measure.adb.networks import Network
from edgeprune.measure.adb.process import Said
from edgeprune.measure.adb.shell import SECONDS, Adb
from edgeprune.measure.adb.tool import Timing, Tool
from edgeprune.measure.adb.tools import TEMPORARY, Program
from edgeprune.progress import Progress
from edgeprune.results.bench import BenchRound, BenchRow

_SEED = 0
_PID = "pid"
_NOT_RUN = (126, 127)  # exit codes of a shell that could not start a program


@dataclass(frozen=True, slots=True)
class Plan:
    """How networks are timed: so many rounds, each so many inferences; `seconds` is what one round may take."""

    timings: Mapping[str, Timing]  # by the name of the runtime
    rounds: int
    seconds: float


def measured(
    adb: Adb, networks: Sequence[Network], programs: Mapping[str, Program], plan: Plan, told: Progress
) -> tuple[BenchRow, ...]:
    """What each network takes on the device; everything that was put there is removed again.

    Args:
        adb: the device.
        networks: the first of each runtime is what others are compared with.
        programs: by the name of the runtime.
        plan: how long, and how often.
        told: told of the progress.

    Raises:
        InputError: the device takes no files, goes away, hangs, or a program fails on a network.
    """
    rounds: list[list[BenchRound]] = [[] for _ in networks]
    with _pushed(adb, networks, programs, told) as bench:
        told.stage("time the networks in turn")
        shuffled = random.Random(_SEED)
        for done in range(plan.rounds):
            for which in shuffled.sample(range(len(networks)), len(networks)):
                network = networks[which]
                rounds[which].append(bench.run(network, which, plan))
            told.advance(done + 1, plan.rounds)
    return tuple(_rows(networks, programs, rounds, plan))


@dataclass(frozen=True, slots=True)
class _Bench:
    """A folder of our own on the device, with the networks by their number and where the programs are."""

    adb: Adb
    place: str
    programs: Mapping[str, str]

    def run(self, network: Network, which: int, plan: Plan) -> BenchRound:
        """One round of one network; its process is known by its number, should it have to be ended."""
        tool, program = network.tool, self.programs[network.tool.runtime]
        arguments = tool.arguments(_remote(network, which), plan.timings[tool.runtime])
        libraries = shlex.quote(posixpath.dirname(program))
        script = (
            f"cd {shlex.quote(self.place)} && "
            f"LD_LIBRARY_PATH={libraries} sh -c 'echo $$ > {_PID}; exec \"$@\"' sh {shlex.join([program, *arguments])}"
        )
        what = f"{tool.names[0]} on {one_line(network.shown, 80)}"
        said = self.adb.shell(script, what, plan.seconds)
        if said.code:
            raise InputError(f"{what}: {_failure(said)}{said.last_words}")
        return tool.read(said)

    def clear(self) -> None:
        """End what may still run, and remove the folder."""
        pid = shlex.quote(posixpath.join(self.place, _PID))
        place = shlex.quote(self.place)
        # A process that is over has given its number back: only one whose name on the command line is ours is ended.
        script = (
            f'p=$(cat {pid} 2>/dev/null); [ -n "$p" ] && [ "$(readlink /proc/$p/cwd)" = {place} ] && kill -9 "$p"; '
            f"rm -rf {place}"
        )
        said = self.adb.shell(script, "the clearing up", SECONDS)
        if said.code:
            raise InputError(f"the clearing up: rm ended with exit code {said.code}{said.last_words}")


@contextmanager
def _pushed(adb: Adb, networks: Sequence[Network], programs: Mapping[str, Program], told: Progress) -> Iterator[_Bench]:
    """Everything in a folder of its own on the device, for as long as the body runs."""
    place = f"{TEMPORARY}/edgeprune-{secrets.token_hex(6)}"
    bench = _Bench(adb, place, {name: _place(program, place) for name, program in programs.items()})
    try:
        told.stage("push the networks")
        made = adb.shell(f"mkdir {shlex.quote(place)}", f"a folder on {adb.shown}")
        if made.code:
            raise InputError(f"{place}: expected a folder that can be made on {adb.shown}{made.last_words}")
        for name, program in programs.items():
            _push_program(adb, program, bench.programs[name])
        for which, network in enumerate(networks):
            adb.push(network.path, posixpath.join(place, _remote(network, which)))
        yield bench
    finally:
        try:
            bench.clear()
        except InputError as error:  # it is gone, or what ended the body says more
            told.say(f"left on {adb.shown}: {place} ({one_line(str(error), 160)})")


def _place(program: Program, folder: str) -> str:
    return program.place or posixpath.join(folder, program.tool.runtime, program.tool.names[0])


def _push_program(adb: Adb, program: Program, place: str) -> None:
    """The program with the libraries beside it, in a folder of its own."""
    if program.host is None:
        return
    folder = posixpath.dirname(place)
    adb.shell(f"mkdir -p {shlex.quote(folder)}", f"a folder on {adb.shown}")
    adb.push(program.host, place)
    for name in program.tool.libraries:
        library = program.host.parent / name
        if library.is_file():
            adb.push(library, posixpath.join(folder, name))
    made = adb.shell(f"chmod 755 {shlex.quote(place)}", f"chmod on {adb.shown}")
    if made.code:
        raise InputError(f"{program.shown}: expected a program that can be run on {adb.shown}{made.last_words}")


def _remote(network: Network, which: int) -> str:
    """Its name on the device, e.g. `0.tflite`: none that anybody else chose."""
    return f"{which}{Path(network.path).suffix.lower()}"


def _failure(said: Said) -> str:
    """Why a program did not end well, as far as its exit code and words tell."""
    if "not executable" in said.text or "Exec format error" in said.text:
        return "the program is for another CPU than the device's"
    if said.code in _NOT_RUN:
        return "the program cannot be started"
    try:
        return f"it was ended by {signal.Signals(said.code - 128).name}"
    except ValueError:
        return f"it ended with exit code {said.code}"


# -- what the rounds come to -----------------------------------------------------------------------------------------


def _rows(
    networks: Sequence[Network], programs: Mapping[str, Program], rounds: Sequence[Sequence[BenchRound]], plan: Plan
) -> Iterator[BenchRow]:
    firsts: dict[str, Sequence[BenchRound]] = {}
    for network, own in zip(networks, rounds, strict=True):
        tool = network.tool
        first = firsts.setdefault(tool.runtime, own)
        yield _row(network, programs[tool.runtime], plan.timings[tool.runtime].delegate, own, first)


def _row(
    network: Network, program: Program, delegate: str, own: Sequence[BenchRound], first: Sequence[BenchRound]
) -> BenchRow:
    tool: Tool = network.tool
    ratio, interval = (None, None) if own is first else ratio_of(first, own)
    deviations = _all(one.std_ms for one in own)
    return BenchRow(
        file=str(network.path),
        runtime=tool.runtime,
        program=program.shown,
        size_bytes=network.size_bytes,
        delegate=delegate,
        mean_ms=fmean(one.mean_ms for one in own),
        p50_ms=_median(_all(one.p50_ms for one in own)),
        p95_ms=_median(_all(one.p95_ms for one in own)),
        std_ms=math.sqrt(fmean(one**2 for one in deviations)) if deviations else None,
        memory_bytes=max((one.memory_bytes for one in own if one.memory_bytes is not None), default=None),
        memory_is=tool.memory_is,
        delegated=own[-1].delegated,
        ratio=ratio,
        ratio_interval=interval,
        rounds=tuple(own),
    )


def ratio_of(first: Sequence[BenchRound], other: Sequence[BenchRound]) -> tuple[float, tuple[float, float] | None]:
    """The time of one network over that of another, and its 95 % interval, None of a single round.

    Each round gives one ratio, of the medians where the program tells them, else of the means; theirs is the geometric
    mean, with Student's t on the logarithms.
    """
    has_medians = all(one.p50_ms is not None for one in (*first, *other))
    pairs = zip(first, other, strict=True)
    logs = [math.log(_figure(b, has_medians) / _figure(a, has_medians)) for a, b in pairs]
    centre = fmean(logs)
    if len(logs) < 2:
        return math.exp(centre), None
    from scipy.special import stdtrit  # takes longer to import than most of this takes to run

    error = math.sqrt(fmean((one - centre) ** 2 for one in logs) / (len(logs) - 1))
    half = float(stdtrit(len(logs) - 1, 0.975)) * error
    return math.exp(centre), (math.exp(centre - half), math.exp(centre + half))


def _figure(one: BenchRound, has_medians: bool) -> float:
    return one.p50_ms if has_medians and one.p50_ms is not None else one.mean_ms


def _all(values: Iterator[float | None]) -> list[float]:
    """The values, or none where one is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else []


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
