"""`edgeprune bench`: how long networks take on a phone, by the benchmark programs of their runtimes."""

from __future__ import annotations

import json
import time
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.files import check_new, write_atomically
from edgeprune.measure.adb.networks import Network, networks_of, without_dense
from edgeprune.measure.adb.phone import phone_of, thermal_status
from edgeprune.measure.adb.rounds import Plan, measured
from edgeprune.measure.adb.shell import Adb, connected
from edgeprune.measure.adb.tool import Timing, Tool
from edgeprune.measure.adb.tools import Program, program_of
from edgeprune.progress import Progress, Silent
from edgeprune.requests import BenchRequest
from edgeprune.results.bench import BenchRecord, Phone
from edgeprune.runrecord import to_dict

FORMAT = "edgeprune-bench/1"
_OUT = "device.json"
_COOL = (None, "none")


def bench(request: BenchRequest, progress: Progress | None = None) -> BenchRecord:
    """Time networks in turn on the device that adb reaches, and write what was measured as a device.json.

    That holds times of whole networks: it is not the profile of layers that `compress --device` reads.

    Raises:
        InputError: no device is ready, a program or a network is missing, or the device fails on the way.
    """
    told, start = progress or Silent(), time.perf_counter()
    networks = networks_of(request.networks)
    out = request.out or str(_folder(request) / _OUT)
    check_new(out, request.force, "file")
    told.stage("find the device")
    adb = connected(request.serial)
    phone = phone_of(adb)
    programs, timings, notes = _runtimes(request, networks, adb, phone)
    networks = [network for network in networks if network.tool.runtime in programs]
    if _has_folder(request):
        notes += without_dense(networks)
    before = thermal_status(adb)
    rows = measured(adb, networks, programs, Plan(timings, request.rounds, request.timeout), told)
    thermal = (before, thermal_status(adb))
    record = BenchRecord(
        out=out,
        phone=phone,
        threads=request.threads,
        runs=request.runs,
        thermal=thermal,
        rows=rows,
        notes=(*notes, *_remarks(timings, thermal)),
        seconds=time.perf_counter() - start,
    )
    document = {"format": FORMAT, **to_dict(record)}
    write_atomically(out, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return record


def _has_folder(request: BenchRequest) -> bool:
    return any(Path(place).is_dir() for place in request.networks)


def _folder(request: BenchRequest) -> Path:
    """The run's folder, where one is all that was named; else the working folder."""
    first = Path(request.networks[0])
    return first if len(request.networks) == 1 and first.is_dir() else Path()


def _runtimes(
    request: BenchRequest, networks: list[Network], adb: Adb, phone: Phone
) -> tuple[dict[str, Program], dict[str, Timing], list[str]]:
    """The program of each runtime and how it is asked; what of a folder cannot be run is left out, with the reason."""
    programs: dict[str, Program] = {}
    timings: dict[str, Timing] = {}
    left_out: list[InputError] = []
    must_run = not _has_folder(request)
    for tool in {network.tool.runtime: network.tool for network in networks}.values():
        given = {"--benchmark-model": request.benchmark_model, "--perf-test": request.perf_test}[tool.option]
        try:
            timing = _timing(request, tool)
            programs[tool.runtime] = program_of(tool, given, adb, phone.abis)
            timings[tool.runtime] = timing
        except InputError as error:
            if must_run or given is not None:
                raise
            left_out.append(error)
    if not programs:
        raise left_out[0]
    return programs, timings, [f"left out: {error}" for error in left_out]


def _timing(request: BenchRequest, tool: Tool) -> Timing:
    delegate = request.delegate or next(iter(tool.delegates))
    if delegate not in tool.delegates:
        raise InputError(f"--delegate: expected one of {', '.join(tool.delegates)} for {tool.names[0]}, got {delegate}")
    return Timing(request.threads, request.runs, delegate)


def _remarks(timings: dict[str, Timing], thermal: tuple[str | None, str | None]) -> list[str]:
    remarks = []
    if any(timing.delegate == "nnapi" for timing in timings.values()):
        remarks.append("NNAPI is legacy: Android 15 and later advise against it")
    if any(status not in _COOL for status in thermal):
        remarks.append(f"the device is warm ({thermal[0]} before, {thermal[1]} after) and may have slowed down")
    return remarks
