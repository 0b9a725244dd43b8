"""A folder of very many images is opened without reading them, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgeprune.data import open_data
from edgeprune.data.folders import PathList

N_FILES = 200_000
MEGABYTES = 40  # beyond what Python, PyTorch and Pillow take themselves; 200 bytes a file
_OPEN = """
import resource, sys
import PIL.Image, torch
from edgeprune.data import open_data
from edgeprune.data.framing import Framing
from edgeprune.data.images import open_image_folder
open_data("digits")
open_image_folder(sys.argv[1], Framing(8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_image_folder(sys.argv[2], Framing(8, 8))
print(len(data.train) + len(data.val) + len(data.test), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def linked(root: Path, n_files: int) -> Path:
    """Two classes of one image each, under very many names."""
    for name, colour in (("cat", 0), ("dog", 255)):
        (root / name).mkdir(parents=True)
        for number in range(n_files // 2):
            if number % 50_000 == 0:  # file systems allow so many links to a file
                first = root / name / f"image_{number:06d}.png"
                Image.new("RGB", (8, 8), (colour, 9, 9)).save(first)
            else:
                os.link(first, root / name / f"image_{number:06d}.png")
    return root


@pytest.mark.slow
def test_two_hundred_thousand_images_take_little_memory(tmp_path: Path) -> None:
    few, many = linked(tmp_path / "few", 20), linked(tmp_path / "many", N_FILES)
    command = [sys.executable, "-c", _OPEN, str(few), str(many)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    n_files, kilobytes = map(int, run.stdout.split())
    assert n_files == N_FILES
    assert kilobytes < MEGABYTES * 1024


def test_images_are_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["cat/b.png", "cat/b/z.png", "cat/b/a.PNG", "cat/a-1.png", "cat/a/1.png", "cat/é.png", "dog/x.png"]
    for number, name in enumerate([*names, *(f"dog/{number}.png" for number in range(9))]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    files = open_data(f"imagefolder:{tmp_path}?size=4").train.dataset
    expected = [path for name in ("cat", "dog") for path in sorted((tmp_path / name).rglob("*.[pP][nN][gG]"))]
    assert [files.paths[number] for number in range(len(files))] == expected
    assert files.labels.tolist() == [0] * 6 + [1] * 10
    assert torch.equal(files[0][0][0], torch.full((4, 4), (names.index("cat/a/1.png")) / 255))


def test_a_path_list_is_a_sequence(tmp_path: Path) -> None:
    paths = PathList(tmp_path)
    for name in ("a/1.png", "ü.png"):
        paths.append(name)
    assert list(paths) == [tmp_path / "a/1.png", tmp_path / "ü.png"] and paths[-1] == tmp_path / "ü.png"
    with pytest.raises(IndexError):
        paths[2]
