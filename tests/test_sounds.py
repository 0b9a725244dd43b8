"""Folders of sounds: what a network gets of them, beside the same formula computed otherwise; what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.data import first_inputs, normalize, open_data
from edgeprune.data.sounds import LogMel, mel_weights, read_sound
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.sound import LARGEST, sound_bytes
from edgeprune.records import DataSource, ModelInfo

RATE = 8000


def soundfile():
    return pytest.importorskip("soundfile", reason="in the extra audio")


def tone(hertz: float, n: int = RATE // 2, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(n) / rate)).astype(np.float32)


def written(path: Path, sound: np.ndarray, rate: int = RATE, **how: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile().write(path, sound, rate, **how)
    return path


def read(path: Path, mel: LogMel) -> np.ndarray:
    return read_sound(path, path.parent, mel)


def folder(root: Path, n: int = 30) -> Path:
    rng = np.random.default_rng(0)
    for name, hertz in (("high", 2500), ("low", 300)):
        for number in range(n):
            sound = tone(hertz * (1 + 0.1 * rng.random())) + rng.normal(0, 0.05, RATE // 2)
            written(root / name / f"{number}.wav", sound.astype(np.float32), subtype="FLOAT")
    return root


def refused(spec: str, *said: str) -> None:
    with pytest.raises(InputError) as caught:
        open_data(spec)
    text = str(caught.value)
    assert all(part in text for part in said) and "\n" not in text, text


# -- the formula -------------------------------------------------------------------------------------------------------


def test_log_mel_is_what_features_json_states() -> None:
    mel = LogMel(RATE, RATE // 2, 20)
    sound = np.random.default_rng(0).normal(0, 0.1, RATE // 2).astype(np.float32)
    said = mel.stated
    window, hop, n_fft = said["window"], said["hop"], said["n_fft"]
    frames = torch.from_numpy(sound).unfold(0, window, hop)
    assert len(frames) == said["n_frames"] == mel.n_frames
    hann = torch.hann_window(window, periodic=True)
    # As a device would: the DFT by its definition.
    angle = 2 * np.pi * torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(window) / n_fft
    real, imaginary = (frames * hann) @ angle.cos().T.float(), (frames * hann) @ angle.sin().T.float()
    bands = (real**2 + imaginary**2) @ torch.from_numpy(mel_weights(RATE, n_fft, 20)).float()
    np.testing.assert_allclose(mel.of(sound), (bands + 1e-6).log().T.numpy(), atol=1e-3)


def test_mel_weights_are_triangles_that_add_up_between_the_outer_centres() -> None:
    weights = mel_weights(16_000, 512, 40)
    assert weights.shape == (257, 40) and weights.min() == 0 and weights.max() <= 1
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    hertz = np.arange(257) * 16_000 / 512
    inside = (hertz >= edges[1]) & (hertz <= edges[-2])
    np.testing.assert_allclose(weights[inside].sum(axis=1), 1)


def test_a_tone_is_in_its_band() -> None:
    mel = LogMel()
    bands = mel.of(tone(1000, 16_000, 16_000))
    assert bands.shape == (40, 98)
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)[1:-1] / 2595) - 1)
    assert (bands.argmax(axis=0) == abs(centres - 1000).argmin()).all()
    assert mel.of(np.zeros(16_000, np.float32)).max() == pytest.approx(np.log(1e-6))


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_of_that_rate_and_length_is_read_as_it_is(tmp_path: Path) -> None:
    sound = tone(440)
    mel = LogMel(RATE, len(sound))
    np.testing.assert_array_equal(read(written(tmp_path / "a.wav", sound, subtype="FLOAT"), mel), sound)
    np.testing.assert_allclose(read(written(tmp_path / "a.flac", sound), mel), sound, atol=2e-4)
    both = np.stack([sound, np.zeros_like(sound)], axis=1)
    np.testing.assert_allclose(read(written(tmp_path / "b.wav", both, subtype="FLOAT"), mel), sound / 2, atol=1e-7)


def test_longer_sounds_are_read_in_their_middle_and_shorter_ones_end_in_zeros(tmp_path: Path) -> None:
    sound = np.arange(1000, dtype=np.float32) / 1000
    path = written(tmp_path / "a.wav", sound, subtype="FLOAT")
    np.testing.assert_array_equal(read(path, LogMel(RATE, 400)), sound[300:700])
    np.testing.assert_array_equal(read(path, LogMel(RATE, 1200)), [*sound, *[0] * 200])


@pytest.mark.parametrize("rate", [4000, 11_025, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    path = written(tmp_path / "a.wav", tone(440, rate, rate), rate, subtype="FLOAT")
    found = read(path, LogMel(RATE, RATE))
    assert len(found) == RATE
    np.testing.assert_allclose(found[500:-500], tone(440, RATE)[500:-500], atol=0.02)


def test_a_folder_is_read_and_its_bands_are_features_that_can_go(tmp_path: Path) -> None:
    soundfile()
    spec = f"audiofolder:{folder(tmp_path / 'sounds', 12)}?rate=8000&seconds=0.5&mels=20"
    data = open_data(spec)
    assert data.classes == ("high", "low") and data.input_shape == (20, 48) and data.notes == ()
    assert len(data.normalization.mean) == 20 and data.byte_scale is None
    assert open_data(f"{spec}&layout=image").input_shape == (1, 20, 48)
    levels = torch.stack([data.train[0][0].mean(dim=1), data.train[len(data.train) - 1][0].mean(dim=1)])
    assert (levels.argmax(dim=1)[0] > levels.argmax(dim=1)[1]).item()  # the high tone lies in a higher band
    net = nn.Sequential(nn.Conv1d(20, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    program = edgeprune.capture(net, torch.zeros(2, 20, 48))
    graph = edgeprune.analyze(program, inputs=True)
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=None, n_features=7), graph)
    info = ModelInfo((20, 48), classes=data.classes, normalization=data.normalization)
    raw = first_inputs(data.test, None)
    write_contracts(slim, info, tmp_path, raw, simplify=False, preparation=data.preparation)
    stated = json.loads((tmp_path / "features.json").read_text(encoding="utf-8"))
    assert stated["preparation"] == json.loads(json.dumps(dict(data.preparation)))
    assert (stated["size"], stated["dim"], len(stated["indices"])) == (20, 1, 7)


# -- the file that takes samples ---------------------------------------------------------------------------------------


def samples_of(data: DataSource, n: int) -> tuple[np.ndarray, Tensor]:
    """The samples of the first test sounds, and what the pipeline makes of them."""
    split = data.test
    files = split.dataset
    sounds = [read_sound(files.paths[int(i)], files.paths.root, files.mel) for i in split.index[:n]]
    return np.stack(sounds), torch.stack([split[i][0] for i in range(n)])


NETS: dict[str, tuple[str, Callable[[int, int], nn.Module], int | None]] = {
    "bands": ("bands", lambda m, t: nn.Sequential(nn.Conv1d(m, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), 7),
    "all bands": (
        "bands",
        lambda m, t: nn.Sequential(nn.Conv1d(m, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)),
        None,
    ),
    "image": ("image", lambda m, t: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), None),
    "flat": ("image", lambda m, t: nn.Sequential(nn.Flatten(), nn.Linear(m * t, 8), nn.ReLU(), nn.Linear(8, 2)), 99),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("preprocess", ["apart", "fold"])
@pytest.mark.parametrize(("layout", "made", "n_features"), NETS.values(), ids=NETS)
def test_a_file_takes_samples_and_gives_what_the_network_takes(
    tmp_path: Path, layout: str, made: Callable[[int, int], nn.Module], n_features: int | None, preprocess: Any
) -> None:
    soundfile()
    data = open_data(f"audiofolder:{folder(tmp_path / 'sounds', 6)}?rate=8000&seconds=0.25&mels=20&layout={layout}")
    torch.manual_seed(0)
    net, x = made(*data.input_shape[-2:]), torch.zeros(2, *data.input_shape)
    net(x)
    program = edgeprune.capture(net.eval(), x)
    if n_features is not None:
        graph = edgeprune.analyze(program, inputs=True)
        program = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=None, n_features=n_features), graph)
    info = ModelInfo(data.input_shape, classes=data.classes, normalization=data.normalization)
    out, raw = tmp_path / "out", first_inputs(data.test, None)
    files = write_contracts(program, info, out, raw, preprocess=preprocess, preparation=data.preparation)
    [sound_file] = [file for file in files if Path(file.path).name == "sound.onnx"]
    assert sound_file.parity is not None and sound_file.parity < 1e-2
    sounds, prepared = samples_of(data, 2)
    sessions = [onnxruntime.InferenceSession(out / name) for name in ("sound.onnx", "slim.onnx")]
    [taken] = sessions[0].run(None, {"samples": sounds})
    [got] = sessions[1].run(None, {sessions[1].get_inputs()[0].name: taken})
    wanted = program.module()(normalize(prepared, data.normalization)).detach().numpy()
    np.testing.assert_allclose(got, wanted, atol=2e-3)
    stated = json.loads((out / "features.json").read_text(encoding="utf-8"))["contracts"]["sound"]
    assert (stated["file"], stated["inputs"][0]["shape"]) == ("sound.onnx", ["batch", 2000])
    assert stated["inputs"][0]["unit"] == "a sample, -1 to 1, 8000 a second"
    model = onnx.load(out / "sound.onnx")
    own = {entry.key.removeprefix("edgeprune."): json.loads(entry.value) for entry in model.metadata_props[1:]}
    assert own["input_shape"] == [2000] and not {"normalization", "folded_normalization", "preprocess"} & own.keys()
    operators = {node.op_type for node in model.graph.node}
    assert operators <= {"Reshape", "Conv", "Mul", "Log", "Flatten", "Gather", "Sub", "Div", "Identity"}


@pytest.mark.parametrize("mel", [LogMel(), LogMel(44_100, 44_100, 128), LogMel(8000, 800, 8, "image")])
def test_samples_are_taken_at_any_rate(tmp_path: Path, mel: LogMel) -> None:
    """Checked on sounds of all kinds as it is written; a file that is off is refused."""
    shape = tuple(mel.stated["layout"])
    network = edgeprune.capture(nn.ReLU().eval(), torch.zeros(2, *shape))
    write_contracts(network, ModelInfo(shape), tmp_path, preparation=mel.stated)
    [taken] = onnxruntime.InferenceSession(tmp_path / "sound.onnx").run(
        None, {"samples": np.zeros((1, mel.n_samples), np.float32)}
    )
    np.testing.assert_allclose(taken, np.full((1, *shape), np.log(1e-6)), atol=1e-5)
    left_out: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeprune.export.sound.hann", lambda window: np.ones(window))
        files = write_contracts(network, ModelInfo(shape), tmp_path, preparation=mel.stated, leave_out=left_out.append)
    [why] = left_out
    assert why.startswith("sound.onnx: expected the logarithms of a click within 0.01 of the data's, got")
    names = {"slim.onnx", "features.json"}
    assert {Path(file.path).name for file in files} == names == {file.name for file in tmp_path.iterdir()}
    assert "sound" not in json.loads((tmp_path / "features.json").read_text(encoding="utf-8"))["contracts"]


def test_a_file_that_would_be_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sound_bytes(LogMel(96_000, 96_000, 64).stated) > LARGEST > sound_bytes(LogMel(48_000, 48_000, 64).stated)
    mel, left_out = LogMel(192_000, 192_000, 64), list[str]()
    network = edgeprune.capture(nn.ReLU().eval(), torch.zeros(2, *mel.stated["layout"]))
    info = ModelInfo(tuple(mel.stated["layout"]))
    files = write_contracts(network, info, tmp_path, preparation=mel.stated, leave_out=left_out.append)
    assert left_out == ["sound.onnx: expected at most 32 MB, got 157 MB at this rate"]
    with pytest.warns(UserWarning, match="left out: sound.onnx: expected at most 32 MB"):
        write_contracts(network, info, tmp_path, preparation=mel.stated)
    assert "sound.onnx" not in {Path(file.path).name for file in files}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("rate=10", "expected rate from 1000 to 192000, got '10'"),
        ("seconds=inf", "expected seconds from 0.03 to 60, got 'inf'"),
        ("seconds=x", "got 'x'"),
        ("mels=1", "expected mels from 2 to 512"),
        ("mels=300", "each band holds a frequency of the 257 there are, got 300"),
        ("layout=wide", "expected layout=bands or image"),
        ("size=3", "expected options rate, seconds, mels, layout"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: str, said: str) -> None:
    refused(f"audiofolder:{tmp_path}?{options}", said)


def test_files_that_are_no_sounds_are_refused(tmp_path: Path) -> None:
    soundfile()
    root = folder(tmp_path / "s", 6)
    bad = root / "low" / "0.wav"
    whole = bad.read_bytes()
    for content in (b"RIFF", b"x" * 500, whole[:30]):
        bad.write_bytes(content)
        refused(f"audiofolder:{root}?rate=8000", str(bad), "expected")
    bad.unlink()
    bad.symlink_to("/etc/passwd")
    refused(f"audiofolder:{root}?rate=8000", "0.wav", "got a link to")
    bad.unlink()
    bad.symlink_to(bad)
    refused(f"audiofolder:{root}?rate=8000", "0.wav: expected a sound file, got a ring of links")
    bad.unlink()
    (root / "empty").mkdir()
    refused(f"audiofolder:{root}?rate=8000", "expected sounds in every class folder, got none in empty")
    for name in ("empty",):
        (root / name).rmdir()
    written(bad, np.full(4000, np.nan, np.float32), subtype="FLOAT")
    with pytest.raises(InputError, match=r"0\.wav: expected 4,000 finite samples"):
        read(bad, LogMel(RATE, 4000))


def test_what_was_not_installed_is_told_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    for module, spec, extra in (
        ("soundfile", f"audiofolder:{tmp_path}", "audio"),
        ("pyarrow.parquet", f"parquet:{tmp_path / 'd.parquet'}?target=y", "arrow"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        refused(spec, f"is not installed: pip install 'edgeprune[{extra}]'")
