"""Folders of sounds: what a network gets of them, beside the same formula computed otherwise; what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.data import first_inputs, open_data
from edgeprune.data.sounds import LogMel, mel_weights, read_sound
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.records import ModelInfo

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
