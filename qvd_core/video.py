"""Clips on disk, as mp4 for eyes. Numbers are always computed on raw frames, never on these files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from qvd_core.errors import StorageError
from qvd_core.storage import replacing

SHORT_SIDE = 256


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Float frames in [0, 1] to uint8."""
    return (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_video(frames: np.ndarray, path: Path, fps: int) -> None:
    """Encode frames as H.264, whole or not at all.

    Small clips are enlarged by a whole factor without smoothing, so that chroma subsampling and scaling
    players do not blur what quantization did; odd sizes are padded by one row or column.

    Args:
        frames: [F, H, W, 3], float in [0, 1] or uint8.
        path: where to write, ending in .mp4.
        fps: frames per second.

    Raises:
        StorageError: the file cannot be written.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    if frames.dtype != np.uint8:
        frames = to_uint8(frames)
    factor = max(1, SHORT_SIDE // min(frames.shape[1:3]))
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    encoding = ["-c:v", "libx264", "-crf", "15", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-g", str(fps)]
    with replacing(path) as scratch:
        # Run here rather than through imageio, which does not notice when the encoder fails.
        command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *encoding, str(scratch)]
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
        if done.returncode != 0:
            words = (done.stderr.decode(errors="replace").strip().splitlines() or ["killed by the system"])[0]
            raise StorageError(f"Cannot write {path}: the encoder failed ({words}); is the disk full?")
