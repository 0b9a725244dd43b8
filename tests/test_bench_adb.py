"""Networks on a phone: an adb whose device is a folder with a real shell replays what real programs print."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import Told

from edgeprune.commands.bench import bench
from edgeprune.cost.device import read_device
from edgeprune.errors import InputError
from edgeprune.measure.adb import process
from edgeprune.measure.adb.benchmark_model import BenchmarkModel
from edgeprune.measure.adb.elf import abi_of
from edgeprune.measure.adb.networks import networks_of
from edgeprune.measure.adb.perf_test import PerfTest
from edgeprune.measure.adb.process import Said
from edgeprune.measure.adb.rounds import ratio_of
from edgeprune.requests import BenchRequest
from edgeprune.results.bench import BenchRecord, BenchRound

DATA = Path(__file__).parent / "data" / "adb"
LITERT, ORT = ((DATA / name).read_text() for name in ("benchmark_model.txt", "perf_test.txt"))
SLIM = LITERT.replace("56265.8", "28132.9").replace("median=56100", "median=28050")
GETPROP = """#!/bin/sh
case $1 in
ro.product.manufacturer) echo Google ;;
ro.product.model) echo "Pixel 6" ;;
ro.soc.model) echo Tensor ;;
ro.build.version.release) echo 14 ;;
ro.product.cpu.abilist) echo arm64-v8a,armeabi-v7a,armeabi ;;
*) echo ;;
esac
"""
THERMAL = "#!/bin/sh\necho 'IsStatusOverride: false'\necho 'Thermal Status: 0'\n"
ARM64, X86_64 = (b"\x7fELF\x02\x01\x01" + bytes(11) + machine + bytes(44) for machine in (b"\xb7\x00", b"\x3e\x00"))


class Phone:
    """What stands for a device: a folder, and files of it that decide what it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("tmp", "bin", "said"):
            (folder / name).mkdir(parents=True)
        self.says("devices", "List of devices attached\n1A2B3C\tdevice\n\n")
        self.program("getprop", GETPROP)
        self.program("dumpsys", THERMAL)
        for name, text in {"dense": LITERT, "slim": SLIM, "dense.ort": ORT}.items():
            self.says(f"said/{name}", text)
        self.says("said/slim.ort", ORT.replace("62.2935", "31.1").replace("0.0603562", "0.0301781"))

    def says(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def program(self, name: str, text: str) -> None:
        self.says(f"bin/{name}", text)
        (self.folder / "bin" / name).chmod(0o755)

    def has(self, name: str) -> Path:
        """The benchmark program lies on the device already."""
        return Path(shutil.copy(DATA / "program", self.folder / "tmp" / name))

    @property
    def left(self) -> list[str]:
        """What is on the device that was not there before."""
        return sorted(path.name for path in (self.folder / "tmp").glob("edgeprune-*"))


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    made = Phone(tmp_path / "phone")
    (tmp_path / "host").mkdir()
    shutil.copy(DATA / "adb", tmp_path / "host" / "adb")
    monkeypatch.setenv("FAKE_ADB", str(made.folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'host'}:/usr/bin:/bin")
    for name in ("ANDROID_SERIAL", "ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return made


def networks(tmp_path: Path, *names: str) -> tuple[str, ...]:
    """Files that name what the program prints of them, by their own stem."""
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.stem if path.suffix == ".tflite" else f"{path.stem}.ort")
    return tuple(str(tmp_path / name) for name in names)


def measured(tmp_path: Path, *names: str, told: Told | None = None, **asked: Any) -> BenchRecord:
    asked = {"rounds": 2, "benchmark_model": str(DATA / "program"), "timeout": 20.0, **asked}
    return bench(BenchRequest(networks(tmp_path, *names or ("dense.tflite", "slim.tflite")), **asked), told)


# -- what is measured ------------------------------------------------------------------------------------------------


def test_dense_and_slim_in_turn(phone: Phone, tmp_path: Path) -> None:
    record = measured(tmp_path, rounds=3, threads=2, runs=40)
    dense, slim = record.rows
    assert (dense.ratio, dense.ratio_interval) == (None, None)
    assert slim.ratio == pytest.approx(0.5) and slim.ratio_interval == pytest.approx((0.5, 0.5))
    assert (dense.mean_ms, dense.p50_ms, dense.p95_ms) == pytest.approx((56.2658, 56.1, 58.4))
    assert dense.std_ms == pytest.approx(0.982) and dense.memory_bytes == round(24.5 * 2**20)
    assert dense.delegated == "TfLiteXNNPackDelegate: 58 of 60 nodes in 2 parts"
    assert len(dense.rounds) == 3 and dense.rounds[0].first_ms == pytest.approx(81.913)
    assert dense.rounds[0].n_runs == 50
    assert (record.phone.model, record.phone.chip, record.phone.android) == ("Google Pixel 6", "Tensor", "14")
    assert record.phone.abis[0] == "arm64-v8a" and record.thermal == ("none", "none")
    asked = (phone.folder / "programs").read_text().splitlines()
    assert sorted(line.split()[0] for line in asked) == ["--graph=0.tflite"] * 3 + ["--graph=1.tflite"] * 3
    assert {tuple(sorted(line.split()[0] for line in asked[k : k + 2])) for k in (0, 2, 4)} == {
        ("--graph=0.tflite", "--graph=1.tflite")
    }
    assert all("--num_threads=2 --num_runs=40" in line and "--use_xnnpack=true" in line for line in asked)
    assert phone.left == []
    document = json.loads((tmp_path / "device.json").read_text())
    assert document["format"] == "edgeprune-bench/1" and document["rows"][1]["ratio"] == pytest.approx(0.5)


def test_onnxruntime(phone: Phone, tmp_path: Path) -> None:
    place = phone.has("onnxruntime_perf_test")
    record = measured(tmp_path, "slim.onnx", "dense.onnx", delegate="xnnpack")
    assert record.notes == () and record.rows[1].ratio == pytest.approx(2)  # the first that was named
    record = measured(tmp_path, "dense.onnx", "slim.onnx", delegate="xnnpack", force=True)
    dense, slim = record.rows
    assert (dense.mean_ms, dense.p50_ms, dense.p95_ms) == pytest.approx((62.2935, 60.3562, 83.7052))
    assert (dense.std_ms, dense.memory_bytes, slim.ratio) == (None, 114634752, pytest.approx(0.5))
    assert dense.program == "/data/local/tmp/onnxruntime_perf_test" and place.exists() and phone.left == []
    assert "-e xnnpack -m times -r 50 -x 1 -I -s 0.onnx" in (phone.folder / "programs").read_text()


def test_a_library_beside_the_program_goes_along(phone: Phone, tmp_path: Path) -> None:
    shutil.copy(DATA / "program", tmp_path / "perf")
    (tmp_path / "libonnxruntime.so").write_bytes(ARM64)
    (tmp_path / "x.onnx").write_text('run:\nls "$LD_LIBRARY_PATH"; exit 9\n')
    with pytest.raises(
        InputError, match=r"ended with exit code 9; its last words: libonnxruntime\.so \| onnxruntime_p"
    ):
        bench(BenchRequest((str(tmp_path / "x.onnx"),), perf_test=str(tmp_path / "perf")))
    assert phone.left == []


def test_a_run_s_folder(phone: Phone, tmp_path: Path) -> None:
    phone.has("benchmark_model")
    run = tmp_path / "run"
    networks(run, "slim.tflite", "slim.onnx", "preprocess.onnx", "full.onnx", "dense/dense.tflite", "web/dense.onnx")
    found = [network.shown for network in networks_of([str(run)])]
    assert found == ["dense/dense.tflite", "slim.tflite", "web/dense.onnx", "slim.onnx"]
    record = bench(BenchRequest((str(run),), rounds=2))
    assert [Path(row.file).name for row in record.rows] == ["dense.tflite", "slim.tflite"]
    assert record.out == str(run / "device.json") and (run / "device.json").exists()
    assert record.notes[0].startswith("left out: onnxruntime_perf_test: expected it on PATH")
    assert len(record.notes) == 1


def test_a_folder_without_the_dense_network(phone: Phone, tmp_path: Path) -> None:
    phone.has("benchmark_model")
    networks(tmp_path / "run", "slim.tflite", "slim.int8.tflite")
    (tmp_path / "run" / "slim.int8.tflite").write_text("slim")
    record = bench(BenchRequest((str(tmp_path / "run"),), rounds=1))
    assert record.notes == ("no dense network for LiteRT: ratios are over slim.tflite",)
    assert record.rows[1].ratio == pytest.approx(1) and record.rows[1].ratio_interval is None


def test_names_never_become_commands(phone: Phone, tmp_path: Path) -> None:
    names = ["dense; touch HIT.tflite", "$(touch HIT) 'slim\" `touch HIT`.tflite", "-x && reboot.tflite"]
    folder = tmp_path / "a 'b\" $(touch HIT)"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("slim")
    program = folder / "my $(touch HIT) program"
    shutil.copy(DATA / "program", program)
    record = bench(BenchRequest(tuple(str(folder / name) for name in names), benchmark_model=str(program), rounds=1))
    assert [Path(row.file).name for row in record.rows] == names and phone.left == []
    there = phone.has("its $(touch HIT) '; program")
    shown = "/data/local/tmp/" + there.name
    assert (
        bench(BenchRequest((str(folder / names[0]),), benchmark_model=shown, rounds=1, force=True)).rows[0].program
        == shown
    )
    assert not list(tmp_path.rglob("HIT*"))


def test_interval_of_the_ratio() -> None:
    def rounds(*ms: float, p50: float | None = None) -> list[BenchRound]:
        return [BenchRound(one, p50, None, None, None, None, None, None) for one in ms]

    # log-ratios -0.1, 0, 0.1: mean 0, standard error 0.1 / sqrt(3), t of 2 degrees of freedom 4.303
    ratio, interval = ratio_of(rounds(1, 1, 1), rounds(0.904837418, 1, 1.105170918))
    assert ratio == pytest.approx(1) and interval == pytest.approx((0.78003, 1.28200), rel=1e-4)
    assert ratio_of(rounds(4), rounds(1)) == (pytest.approx(0.25), None)
    assert ratio_of(rounds(4, p50=4), rounds(1, p50=2))[0] == pytest.approx(0.5)
    assert ratio_of(rounds(4, p50=4), rounds(1))[0] == pytest.approx(0.25)  # one program tells no median


# -- what programs print ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mean_ms", "p50_ms", "memory"),
    [
        (LITERT, 56.2658, 56.1, 25690112),
        (
            "count=7 first=127425 curr=66709 avg=76605.9 std=20944\n\ncount=15 first=66753 avg=66767.6 std=39\n\n"
            "Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6\n",
            66.7676,
            None,
            None,
        ),
        ("Average inference timings in us: Warmup: 83235, Init: 38467, Inference: 79760.9\n", 79.7609, None, None),
        (
            "count=5 curr=4 (all same)\n\nInference timings in us: Init: 855, First inference: 9, Warmup (avg): 8, "
            "Inference (avg): 1.5e+06\nPeak memory footprint (MB): init=0 overall=12.5\n",
            1500,
            None,
            13107200,
        ),
        (LITERT + "INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.25\n", 56.2658, 56.1, 97779712),
    ],
    ids=["2024", "2019", "2020", "all the same", "watched"],
)
def test_benchmark_model_of_all_years(text: str, mean_ms: float, p50_ms: float | None, memory: int | None) -> None:
    read = BenchmarkModel().read(Said(0, text.replace("\n", "\r\n")))
    assert read.mean_ms == pytest.approx(mean_ms) and read.memory_bytes == memory
    assert read.p50_ms == (None if p50_ms is None else pytest.approx(p50_ms))


def test_what_the_delegates_took() -> None:
    unused = "INFO: Though GPU delegate is explicitly applied, the model graph will not be executed by the delegate.\n"
    applied = (
        "INFO: Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.\n"
    )
    plain = "\n".join(line for line in LITERT.splitlines() if "Replacing" not in line)
    assert BenchmarkModel().read(Said(0, unused + plain)).delegated == "GPU: none of it"
    assert BenchmarkModel().read(Said(0, applied + plain)).delegated == "GPU: completely"
    assert BenchmarkModel().read(Said(0, plain)).delegated is None


def test_perf_test_of_other_versions() -> None:
    text = "Total inference requests: 5\nAverage inference time cost total: 98.961997 ms\n"
    read = PerfTest().read(Said(0, text))
    assert (read.mean_ms, read.p50_ms, read.n_runs, read.memory_bytes) == (98.961997, None, 5, None)


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "Inference timings in us: Inference (avg): nan", "Inference timings in us: Inference (avg): -3",
     "Inference timings in us: Inference (avg): 1e999", "Average inference time cost: 0 ms",
     "Average inference time cost: 1.2.3 ms", "Inference timings in us: " * 9000],
)  # fmt: skip
def test_output_that_cannot_be_read(text: str) -> None:
    for tool in (BenchmarkModel(), PerfTest()):
        with pytest.raises(InputError, match="expected a line with") as error:
            tool.read(Said(0, text + "\nlast \x1b[31mwords"))
        assert "last \\x1b[31mwords" in str(error.value) and "\x1b" not in str(error.value)


def test_hostile_output_is_read_in_no_time() -> None:
    hostile = [
        "emory footprint",
        "count=",
        "9",
        "Replacing 1 out of 1",
        "Inference (avg): ",
        "Average inference time cost",
    ]
    started = time.process_time()
    for piece in hostile:
        text = piece * (process.MOST_BYTES // 8 // len(piece)) + "\nInference timings in us: Inference (avg): 5\n"
        text += "Average inference time cost: 5 ms"
        assert BenchmarkModel().read(Said(0, text)).mean_ms == pytest.approx(0.005)
        assert PerfTest().read(Said(0, text)).mean_ms == pytest.approx(5)
    assert time.process_time() - started < 60  # not the square of the length


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "serial", "message"),
    [
        ("", None, "expected a device, got none; plug it in"),
        ("A\tdevice\nB\tdevice\n", None, "expected one device, got 2: A, B; name one with --serial"),
        ("A\tdevice\n", "C", "--serial: expected one of A, got C"),
        ("A\tunauthorized\n", None, "device A: expected it to be ready, got unauthorized; allow USB debugging"),
        ("A\toffline\nB\tdevice\n", "A", "device A: expected it to be ready, got offline; plug it in again"),
        ("A\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n", None, "udev rules"),
        ("A\x1b[31m\trecovery\n", None, r"device A\\x1b\[31m: expected it to be ready, got recovery"),
    ],
)
def test_devices_that_cannot_be_used(
    listed: str, serial: str | None, message: str, phone: Phone, tmp_path: Path
) -> None:
    phone.says("devices", "* daemon started successfully\nList of devices attached\n" + listed)
    with pytest.raises(InputError, match=message):
        measured(tmp_path, serial=serial)


def test_one_ready_device_of_two(phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone.says("devices", "List of devices attached\nA\tunauthorized\nB\tdevice\n")
    assert measured(tmp_path).phone.serial == "B"
    phone.says("devices", "List of devices attached\nA\tdevice\nB\tdevice\n")
    monkeypatch.setenv("ANDROID_SERIAL", "A")
    assert measured(tmp_path, force=True).phone.serial == "A"
    asked = (phone.folder / "asked").read_text().splitlines()
    assert {line.split()[0] for line in asked if "{ " in line} == {"A", "B"}


def test_no_adb(phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="adb: expected the program on PATH.*install Android's platform-tools"):
        measured(tmp_path)
    (tmp_path / "sdk" / "platform-tools").mkdir(parents=True)
    shutil.copy(DATA / "adb", tmp_path / "sdk" / "platform-tools" / "adb")
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    with pytest.raises(InputError, match="adb devices: it ended with exit code 127"):  # found: it has no `cat` here
        measured(tmp_path)


def test_no_space(phone: Phone, tmp_path: Path) -> None:
    phone.says("push", "adb: error: failed to copy 'x' to '/y': remote write failed: No space left on device\n")
    with pytest.raises(InputError, match=r"adb push of program to device 1A2B3C: no space left for its \d+ bytes"):
        measured(tmp_path)
    assert phone.left == []


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("echo 'sh: ./p: not executable: 64-bit ELF file'; exit 126", "the program is for another CPU than the device"),
        ('echo \'CANNOT LINK EXECUTABLE "p": library "libX.so" not found\'; exit 1', "exit code 1; .*libX.so"),
        ("echo 'p: inaccessible or not found'; exit 127", "the program cannot be started; .*inaccessible"),
        ("kill -9 $$", "it was ended by SIGKILL"),
        ("echo 'ERROR: Op builtin_code out of range'; echo 'ERROR: Benchmarking failed.'; exit 1", "builtin_code"),
        (
            "printf '\\033]0;owned\\007done'",
            r"expected a line with 'Inference timings in us:', got none; its last w.*\\x1b",
        ),
    ],
    ids=["abi", "library", "missing", "killed", "network", "unreadable"],
)
def test_programs_that_fail(network: str, message: str, phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_text(f"run:\n{network}\n")
    request = BenchRequest((str(tmp_path / "x.tflite"),), benchmark_model=str(DATA / "program"))
    with pytest.raises(InputError, match=message) as error:
        bench(request)
    assert "benchmark_model on x.tflite: " in str(error.value) or "unreadable" in message or "Inference" in message
    assert str(error.value).isprintable()
    assert phone.left == [] and not (tmp_path / "device.json").exists()


def test_a_device_that_goes_away(phone: Phone, tmp_path: Path) -> None:
    phone.says("gone", "adb: device '1A2B3C' not found\n")
    with pytest.raises(InputError, match="device 1A2B3C went away; its last words: adb: device '1A2B3C' not found"):
        measured(tmp_path)
    assert phone.left == []


def test_a_device_that_is_gone_for_good(phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_text(
        'run:\necho \'error: closed\' > "$FAKE_ADB/bin/gone"; mv "$FAKE_ADB/bin" "$FAKE_ADB/x"\nkill -9 $PPID\n'
    )
    told = Told()
    adb = tmp_path / "host" / "adb"
    adb.write_text(adb.read_text().replace("shell)\n", 'shell)\n    [ -d "$FAKE_ADB/bin" ] || exit 1\n'))
    with pytest.raises(InputError, match=r"benchmark_model on x\.tflite: "):
        bench(BenchRequest((str(tmp_path / "x.tflite"),), benchmark_model=str(DATA / "program")), told)
    assert any(line.startswith("left on device 1A2B3C: /data/local/tmp/edgeprune-") for line in told.lines)


def test_a_program_that_hangs_is_ended(phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LEFT_OPEN", 0.5)
    (tmp_path / "x.tflite").write_text('run:\necho still here; echo $$ > "$FAKE_ADB/hung"; exec sleep 600\n')
    request = BenchRequest((str(tmp_path / "x.tflite"),), benchmark_model=str(DATA / "program"), timeout=4)
    with pytest.raises(InputError, match="it took more than 4 s; its last words: still here"):
        bench(request)
    assert phone.left == []
    hung = Path(f"/proc/{(phone.folder / 'hung').read_text().strip()}")
    end = time.monotonic() + 60
    while hung.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not hung.exists()


def test_a_program_that_prints_without_end(phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_BYTES", 2**16)
    (tmp_path / "x.tflite").write_text("run:\nyes edgeprune\n")
    with pytest.raises(InputError, match="expected at most 65,536 bytes of output, got more"):
        bench(BenchRequest((str(tmp_path / "x.tflite"),), benchmark_model=str(DATA / "program")))
    assert phone.left == []


def test_properties_that_are_hostile(phone: Phone, tmp_path: Path) -> None:
    phone.program("getprop", "#!/bin/sh\nprintf '\\033[2J%0500d' 7\n")
    phone.program("dumpsys", "#!/bin/sh\necho 'Thermal Status: 99999999999999999999'\n")
    record = measured(tmp_path)
    assert record.phone.model.startswith("\\x1b[2J000") and len(record.phone.model) < 200
    assert record.thermal == (None, None)


def test_a_warm_device(phone: Phone, tmp_path: Path) -> None:
    phone.program("dumpsys", "#!/bin/sh\necho 'Thermal Status: 3'\n")
    assert measured(tmp_path).notes == ("the device is warm (severe before, severe after) and may have slowed down",)


# -- programs, files and places --------------------------------------------------------------------------------------


def test_a_program_for_another_cpu(phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "host" / "benchmark_model").write_bytes(X86_64)
    (tmp_path / "host" / "benchmark_model").chmod(0o755)
    given = str(tmp_path / "host" / "benchmark_model")
    with pytest.raises(InputError, match=r"expected a program for arm64-v8a, armeabi-v7a, armeabi, got one for x86_64"):
        measured(tmp_path, benchmark_model=given)
    with pytest.raises(
        InputError, match=r"got none \(.*benchmark_model is for x86_64, the device for arm64.*nothing is"
    ):
        measured(tmp_path, benchmark_model=None)
    phone.has("benchmark_model")
    assert measured(tmp_path, benchmark_model=None).rows[0].program == "/data/local/tmp/benchmark_model"


def test_kinds_of_programs(tmp_path: Path) -> None:
    for content, abi in ((ARM64, "arm64-v8a"), (X86_64, "x86_64"), (b"#!/bin/sh", None), (b"", None)):
        (tmp_path / "p").write_bytes(content)
        assert abi_of(tmp_path / "p") == abi


def test_a_program_that_is_not_there(phone: Phone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a program on this machine or on device 1A2B3C, got nothing there"):
        measured(tmp_path, benchmark_model="/data/local/tmp/none")
    phone.has("benchmark_model").chmod(0o644)
    with pytest.raises(InputError, match="expected a program that can be run.*chmod 755"):
        measured(tmp_path, benchmark_model=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "expected a model file, got nothing there"),
        (lambda path: path.write_bytes(b""), "expected a model file, got an empty file"),
        (lambda path: path.mkdir(), "expected a network in .tflite, .onnx, .ort, got none"),
    ],
    ids=["nothing", "empty", "folder"],
)
def test_files_that_are_no_networks(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x.tflite")
    with pytest.raises(InputError, match=message):
        networks_of([str(tmp_path / "x.tflite")])


def test_a_file_of_another_runtime(tmp_path: Path) -> None:
    (tmp_path / "x.pte").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected a network with the suffix \.tflite, \.onnx, \.ort, got \.pte"):
        networks_of([str(tmp_path / "x.pte")])


def test_a_delegate_of_another_runtime(phone: Phone, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="--delegate: expected one of cpu, xnnpack, nnapi, qnn for onnxruntime_perf_te"
    ):
        measured(tmp_path, "dense.onnx", delegate="gpu")
    assert measured(tmp_path, delegate="nnapi").notes == ("NNAPI is legacy: Android 15 and later advise against it",)


def test_what_is_there_stays(phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text("a profile")
    with pytest.raises(InputError, match="--force"):
        measured(tmp_path)
    assert (tmp_path / "device.json").read_text() == "a profile"


def test_it_is_no_profile_of_layers(phone: Phone, tmp_path: Path) -> None:
    measured(tmp_path)
    with pytest.raises(InputError, match="it has times of whole networks.*edgeprune profile"):
        read_device(tmp_path / "device.json")


# -- the command line ------------------------------------------------------------------------------------------------


def command(*arguments: str) -> SimpleNamespace:
    code = (
        "import sys; from edgeprune.cli.app import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "bench", *arguments], capture_output=True, text=True, env=dict(os.environ)
    )
    return SimpleNamespace(code=run.returncode, out=run.stdout, err=run.stderr)


def test_the_command_needs_no_torch(phone: Phone, tmp_path: Path) -> None:
    files = networks(tmp_path, "dense.tflite", "slim.tflite")
    ran = command("--adb", *files, "--benchmark-model", str(DATA / "program"), "--rounds", "2")
    assert ran.code == 0, ran.err
    slim = next(line for line in ran.out.splitlines() if "slim.tflite" in line)
    assert "28.1 ms" in slim and "0.50×" in slim and "0.50 to 0.50" in slim and "Google Pixel 6" in ran.out
    assert "LiteRT with xnnpack" in ran.out and "58 of 60 nodes in 2 parts" in ran.out
    assert ran.err.splitlines()[-1] == "False"


def test_the_command_without_a_device(phone: Phone, tmp_path: Path) -> None:
    files = networks(tmp_path, "dense.tflite")
    ran = command(*files)
    assert (ran.code, ran.out) == (2, "") and "expected --adb" in ran.err
