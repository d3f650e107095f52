"""Clips on disk: the right frames in the right order, and never half a file."""

from __future__ import annotations

import imageio.v2 as imageio
import numpy as np
import pytest

from qvd_core.errors import StorageError
from qvd_core.video import SHORT_SIDE, to_uint8, write_video


def gray_steps(frames: int, height: int, width: int) -> np.ndarray:
    """Frames of rising brightness, float [F, H, W, 3]."""
    levels = np.linspace(0.1, 0.9, frames, dtype=np.float32)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def read(path) -> tuple[np.ndarray, dict]:
    with imageio.get_reader(path) as reader:
        return np.stack(list(reader.iter_data())), reader.get_meta_data()


@pytest.mark.parametrize("dtype", ["float", "uint8"])
def test_frames_come_back_in_order_at_their_speed(tmp_path, dtype):
    clip = gray_steps(5, 64, 64)
    write_video(clip if dtype == "float" else to_uint8(clip), tmp_path / "clips" / "clip.mp4", 8)
    frames, meta = read(tmp_path / "clips" / "clip.mp4")
    assert frames.shape == (5, SHORT_SIDE, SHORT_SIDE, 3)
    assert meta["fps"] == 8
    assert meta["codec"] == "h264"
    brightness = frames.mean((1, 2, 3)) / 255
    assert np.abs(brightness - clip.mean((1, 2, 3))).max() < 0.02, brightness


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(16, 16, (256, 256)), (100, 60, (400, 240)), (255, 301, (256, 302)), (300, 400, (300, 400))],
    ids=["enlarged", "portrait", "odd", "large-enough"],
)
def test_sizes_are_whole_multiples_padded_to_even(tmp_path, height, width, expected):
    write_video(gray_steps(2, height, width), tmp_path / "clip.mp4", 8)
    frames, _ = read(tmp_path / "clip.mp4")
    assert frames.shape == (2, *expected, 3)


def test_pixels_are_enlarged_without_smoothing(tmp_path):
    pixels = np.zeros((1, 16, 16, 3), np.float32)
    pixels[0, ::2, ::2] = 1
    write_video(pixels, tmp_path / "clip.mp4", 8)
    frames, _ = read(tmp_path / "clip.mp4")
    centres = frames[0, 8::16, 8::16].astype(float) / 255
    assert np.abs(centres - pixels[0]).max() < 0.05


def test_one_frame_is_a_clip_too(tmp_path):
    write_video(gray_steps(1, 16, 16), tmp_path / "clip.mp4", 8)
    assert len(read(tmp_path / "clip.mp4")[0]) == 1


def test_rounding_to_bytes():
    values = np.array([-0.1, 0.0, 0.5 / 255, 0.499 / 255, 0.5, 1.0, 1.1])
    assert to_uint8(values).tolist() == [0, 0, 1, 0, 128, 255, 255]


def test_a_disk_that_fills_up_leaves_no_half_clip(tmp_path, file_size_limit):
    """The encoder is a program of its own, so its failure must be noticed too."""
    path = tmp_path / "clip.mp4"
    path.write_text("the clip before")
    noise = np.random.default_rng(0).random((8, 128, 128, 3), dtype=np.float32)
    with file_size_limit(20_000), pytest.raises(StorageError, match="the encoder failed"):
        write_video(noise, path, 8)
    assert path.read_text() == "the clip before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(StorageError, match="choose another name"):
        write_video(gray_steps(1, 16, 16), tmp_path / "clip.mp4", 8)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
