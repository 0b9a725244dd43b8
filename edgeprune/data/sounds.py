"""Folders of sound files, one folder a class; a network gets the logarithm of mel bands, made here by one formula.

    mono       the mean of the channels, samples in -1..1
    rate       resampled by scipy.signal.resample_poly where a file has another
    length     of longer files the middle, shorter ones end in zeros
    frames     `window` samples every `hop`, times a periodic Hann window, no padding
    power      |DFT of n_fft points|^2, n_fft the power of two from `window` on
    mel        triangles, evenly spaced on the mel scale 2595 log10(1 + f/700) from 0 to rate/2, of height 1
    log        ln(mel + 1e-6)

features.json states it all under `preparation`. Bands are the first dim: each has its own mean and std, and can go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.data.folders import ClassFiles, FileKind, PathList, check_inside, left_out, open_class_folder
from edgeprune.data.limits import need
from edgeprune.errors import InputError
from edgeprune.lines import error_line
from edgeprune.reading import open_file
from edgeprune.records import DataSource

OPTIONS = ("rate", "seconds", "mels", "layout")
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".aif", ".aiff"})
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "AIFF")
_LAYOUTS = ("bands", "image")
_MAX_RATE, _MAX_CHANNELS = 384_000, 64
_WINDOW_S, _HOP_S = 0.025, 0.010
FLOOR = 1e-6
_MOST_LOOKED = 200


@dataclass(frozen=True, slots=True)
class LogMel:
    """How sounds become inputs: `rate` in samples a second, `n_samples` of each file, `n_mels` bands.

    Inputs are `(n_mels, n_frames)`, or as an image `(1, n_mels, n_frames)`.
    """

    rate: int = 16_000
    n_samples: int = 16_000
    n_mels: int = 40
    layout: str = "bands"

    @classmethod
    def asked(cls, options: Mapping[str, str], where: str) -> LogMel:
        """From options such as `{"rate": "8000", "seconds": "0.5"}`.

        Raises:
            InputError: numbers out of range, a layout that is none, or less than a window of sound.
        """
        rate = _whole(options, "rate", (1000, 192_000), 16_000, where)
        mels = _whole(options, "mels", (2, 512), 40, where)
        text = options.get("seconds", "1")
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0.03 <= seconds <= 60:
            raise InputError(f"{where}: expected seconds from 0.03 to 60, got {text[:40]!r}")
        layout = options.get("layout", _LAYOUTS[0])
        if layout not in _LAYOUTS:
            raise InputError(f"{where}: expected layout={' or '.join(_LAYOUTS)}, got {layout[:40]!r}")
        made = cls(rate, round(rate * seconds), mels, layout)
        if not bool(mel_weights(made.rate, made.n_fft, made.n_mels).any(axis=0).all()):
            raise InputError(
                f"{where}: expected mels so few that each band holds a frequency of the {made.n_fft // 2 + 1} there "
                f"are, got {mels}"
            )
        return made

    @classmethod
    def of_stated(cls, stated: Mapping[str, Any]) -> LogMel:
        """That which says so of itself, see `stated`."""
        layout = _LAYOUTS[len(stated["layout"]) - 2]
        return cls(stated["rate"], stated["n_samples"], stated["n_mels"], layout)

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return round(_WINDOW_S * self.rate)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return round(_HOP_S * self.rate)

    @property
    def n_fft(self) -> int:
        """Points of the DFT."""
        return 1 << (self.window - 1).bit_length()

    @property
    def n_frames(self) -> int:
        """Frames of a sound."""
        return 1 + (self.n_samples - self.window) // self.hop

    def of(self, sound: np.ndarray) -> np.ndarray:
        """The features of samples float32 `(n_samples,)`, float32 `(n_mels, n_frames)`."""
        frames = np.lib.stride_tricks.sliding_window_view(sound, self.window)[:: self.hop]
        power = np.abs(np.fft.rfft(frames * hann(self.window), self.n_fft, axis=1)) ** 2
        return np.log(power @ mel_weights(self.rate, self.n_fft, self.n_mels) + FLOOR).T.astype(np.float32)

    @property
    def stated(self) -> dict[str, Any]:
        """What is done to a sound, as features.json says it."""
        return {
            "kind": "log-mel",
            "rate": self.rate,
            "n_samples": self.n_samples,
            "mono": "mean of the channels, samples in -1 to 1",
            "length": "the middle of longer sounds; zeros after shorter ones",
            "resampling": "scipy.signal.resample_poly(x, rate / g, file_rate / g), g the greatest common divisor",
            "window": self.window,
            "hop": self.hop,
            "window_function": "0.5 - 0.5 cos(2 pi n / window)",
            "n_fft": self.n_fft,
            "n_frames": self.n_frames,
            "n_mels": self.n_mels,
            "mel_scale": "2595 log10(1 + f / 700)",
            "mel_range_hz": [0.0, self.rate / 2],
            "mel_weights": "triangles of height 1 between neighbours, edges evenly spaced on the mel scale",
            "formula": f"ln(sum_f weights[f, band] |DFT(frame * window_function)[f]|^2 + {FLOOR:g})",
            "layout": [self.n_mels, self.n_frames] if self.layout == "bands" else [1, self.n_mels, self.n_frames],
        }


def hann(window: int) -> np.ndarray:
    """The periodic Hann window, float64 `(window,)`."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window))


@cache
def mel_weights(rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Triangles over the frequencies of a DFT, float64 `(n_fft // 2 + 1, n_mels)`."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    hertz = np.arange(n_fft // 2 + 1)[:, None] * rate / n_fft
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    return np.asarray(np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)).clip(min=0))


class SoundFiles(ClassFiles):
    """Sound files and their labels; a sample is x float32 as `LogMel` says and y."""

    byte_scale = None

    def __init__(self, mel: LogMel, paths: PathList, labels: np.ndarray, skipped: Mapping[str, int]) -> None:
        self.mel, self.paths, self.labels = mel, paths, labels
        self.notes = (*self._looked(), *left_out(skipped, "sounds"))

    def _looked(self) -> tuple[str, ...]:
        """What is told of these files, by the headers of some."""
        notes: dict[str, str] = {}
        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), _MOST_LOOKED)).astype(int)):
            path = self.paths[int(index)]
            with _opened(path, self.paths.root) as sound:
                seconds = sound.frames / sound.samplerate
                wanted = self.mel.n_samples / self.mel.rate
                for is_so, text in (
                    (sound.samplerate != self.mel.rate, f"sounds are resampled to {self.mel.rate} samples a second"),
                    (sound.channels > 1, "of several channels the mean is taken"),
                    (seconds > wanted * 1.001, f"of longer sounds the middle {wanted:g} s are taken"),
                    (seconds < wanted * 0.999, f"shorter sounds end in zeros up to {wanted:g} s"),
                ):
                    if is_so:
                        notes.setdefault(text, f"{text} (e.g. {path.relative_to(self.paths.root)})")
        return tuple(notes.values())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = torch.from_numpy(self.mel.of(read_sound(self.paths[index], self.paths.root, self.mel)))
        return x if self.mel.layout == "bands" else x[None], int(self.labels[index])


def read_sound(path: Path, root: Path, mel: LogMel) -> np.ndarray:
    """The samples of a file, float32 `(n_samples,)` at the rate that is wanted; no more is decoded than these need.

    Raises:
        InputError: outside of `root`, no sound, damaged, or of more channels or samples a second than are taken.
    """
    with _opened(path, root) as sound:
        common = math.gcd(mel.rate, sound.samplerate)
        up, down = mel.rate // common, sound.samplerate // common
        needed = min(sound.frames, -(-mel.n_samples * down // up))
        sound.seek((sound.frames - needed) // 2)
        samples = sound.read(needed, dtype="float32", always_2d=True).mean(axis=1)
    if len(samples) < needed or not np.isfinite(samples).all():
        raise InputError(f"{path}: expected {needed:,} finite samples, got {len(samples):,} with others among them")
    if up != down:
        from scipy.signal import resample_poly  # here, because importing scipy.signal takes half a second

        samples = resample_poly(samples, up, down).astype(np.float32)
    return np.pad(samples[: mel.n_samples], (0, max(0, mel.n_samples - len(samples))))


@contextmanager
def _opened(path: Path, root: Path) -> Iterator[Any]:
    """A sound file whose header was read and found good."""
    check_inside(path, root)
    soundfile = need("soundfile", "'edgeprune[audio]'")
    try:
        with open_file(path, "sound") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            if sound.format not in FORMATS:
                raise InputError(f"{path}: expected {', '.join(FORMATS)}, got {sound.format}")
            if not 0 < sound.samplerate <= _MAX_RATE or not 0 < sound.channels <= _MAX_CHANNELS or sound.frames < 1:
                raise InputError(
                    f"{path}: expected up to {_MAX_RATE:,} samples a second in up to {_MAX_CHANNELS} channels, got "
                    f"{sound.frames:,} samples, {sound.samplerate:,} a second, in {sound.channels} channels"
                )
            yield sound
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise InputError(f"{path}: expected a sound, got {error_line(error)}") from error


def open_sound_folder(root: str, mel: LogMel) -> DataSource:
    """Sounds in the folders of their classes, see `open_class_folder`."""
    need("soundfile", "'edgeprune[audio]'")
    kind = FileKind("sounds", EXTENSIONS, partial(SoundFiles, mel), mel.stated)
    return open_class_folder("audiofolder", root, kind)


def _whole(options: Mapping[str, str], name: str, bounds: tuple[int, int], default: int, where: str) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal() or not bounds[0] <= int(text) <= bounds[1]:
        raise InputError(f"{where}: expected {name} from {bounds[0]} to {bounds[1]}, got {text[:40]!r}")
    return int(text)
