"""What watches one layer's input during calibration: extremes and a few tokens, and keeps no activation.

Torch reduces the input; the rest is NumPy, since what is left are many small operations between layers, each of which
costs a tensor several times as much as an array.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvd_core.calibration.statistics import SEQUENCES, TOKENS
from qvd_core.errors import CalibrationError

Floats = NDArray[np.float32]


class InputObserver:
    """Streams extremes and a few tokens of one layer's input; keeps no activation.

    Args:
        site: its name, for errors and as the seed of which tokens are kept.
        kind: "linear", or a convolution.
        steps, channels, frames: of the run and the layer.
        by_frame: whether the leading axis is samples x frames.
        mixes_frames: whether the input is [positions, frames, channels].
        sequences: whether to keep whole sequences [length, channels] instead of single tokens.
            All three are given up if the first input does not fit.
        tokens: how many to keep; stride: of every which step.
    """

    def __init__(
        self,
        site: str,
        kind: str,
        steps: int,
        channels: int,
        frames: int = 1,
        by_frame: bool = False,
        mixes_frames: bool = False,
        sequences: bool = False,
        tokens: int = TOKENS,
        stride: int = 1,
    ):
        self.site, self.linear, self.by_frame, self.sequences = site, kind == "linear", by_frame, sequences
        self.mixes_frames, self.stride, self._single_tokens = mixes_frames, stride, tokens
        # Extremes are kept of -x and of x, along the first axis, so that one maximum serves both ends.
        self._extremes = _none(steps, channels)
        self._of_frames = _none(steps, frames)
        self._of_channels_in_frames = _none(frames, channels)
        self._make_room_for_tokens(*((SEQUENCES, frames) if sequences else (tokens, 1)))
        self.count = 0
        self._calls = [0] * steps  # of the clip now observed
        self._clip = 0
        self._draws = _draws(site)

    def observe(self, x: Tensor, step: int, clip: int = 0, clips: int = 1) -> None:
        """Take in one input of the layer, of clip `clip` of `clips`, which share the tokens evenly.

        Raises:
            CalibrationError: it contains NaN or infinite values.
        """
        x = x.detach()
        if not self.count:
            self._fit(x)
        self.count += x.numel() // self._extremes.shape[-1]
        # Of every frame where the layer mixes them, of every sample else.
        low, high = (x.amin(0), x.amax(0)) if self.mixes_frames else _low_and_high(x, self.linear)
        extremes = np.array((-_array(low), _array(high)))  # [2, N, channels]
        of_channels = extremes.max(1)
        # NaN propagates through the extremes, so they tell about every value.
        if not np.isfinite(of_channels).all():
            raise CalibrationError(
                f"The input of {self.site} contains NaN or infinite values at step {step + 1};"
                " the model itself is broken at this precision."
            )
        _widen(self._extremes[:, step], of_channels)
        if self.by_frame or self.mixes_frames:
            self._observe_frames(extremes, step)
        self._observe_tokens(x, step, clip, clips)

    def entries(self) -> dict[str, Tensor]:
        """What was observed, by the names `Statistics` has for it; nothing of frames where the layer sees none."""
        found = {"tokens": torch.from_numpy(self._tokens)}
        ends = {"low": self._extremes}
        if self.by_frame:
            found["token_frames"] = torch.from_numpy(self._token_frames)
            ends["frame_low"] = self._of_frames
        if self.by_frame or self.mixes_frames:
            ends["channel_frame_low"] = self._of_channels_in_frames
        for low, extremes in ends.items():
            found[low] = torch.from_numpy(-extremes[0])
            found[low.replace("low", "high")] = torch.from_numpy(extremes[1])
        return found

    def _fit(self, x: Tensor) -> None:
        """Give up what the shape of the first input does not allow."""
        frames = self._of_frames.shape[-1]
        self.by_frame = self.by_frame and len(x) % frames == 0
        self.mixes_frames = self.mixes_frames and x.dim() == 3 and x.shape[1] == frames
        if self.sequences and not self.mixes_frames:
            self.sequences = False
            self._make_room_for_tokens(self._single_tokens, 1)

    def _make_room_for_tokens(self, count: int, length: int) -> None:
        _, steps, channels = self._extremes.shape
        rows = -(-steps // self.stride)
        self._tokens = np.zeros((rows, count, length, channels), np.float32)
        self._token_frames = np.zeros((rows, count), np.float32)

    def _observe_frames(self, extremes: Floats, step: int) -> None:
        """Take in extremes [2, samples x frames, channels]."""
        _, frames, channels = self._of_channels_in_frames.shape
        if extremes.shape[1] != frames:
            extremes = extremes.reshape(2, -1, frames, channels).max(1)
        _widen(self._of_channels_in_frames, extremes)
        if self.by_frame:
            _widen(self._of_frames[:, step], extremes.max(2))

    def _observe_tokens(self, x: Tensor, step: int, clip: int, clips: int) -> None:
        """Keep the share that this input has in the tokens of its step."""
        if clip != self._clip:
            self._clip = clip
            self._calls = [0] * len(self._calls)
        self._calls[step] += 1
        if step % self.stride:
            return
        row, frames = step // self.stride, self._of_frames.shape[-1]
        for number in range((clip - step) % clips, self._tokens.shape[1], clips):
            place, luck = next(self._draws)
            # Of several calls in a step, such as with and without the prompt, each is kept equally often.
            if luck * self._calls[step] < 1:
                self._tokens[row, number] = self._token(x, place)
                self._token_frames[row, number] = int(place * len(x)) % frames

    def _token(self, x: Tensor, place: float) -> Floats:
        """The token [channels], or sequence [length, channels], that is a share `place` of the way through `x`."""
        if self.sequences:
            return _at(x, int(place * len(x)))
        shape = x.shape[:-1] if self.linear else (len(x), *x.shape[2:])
        position = np.unravel_index(int(place * prod(shape)), shape)
        return _at(x, position if self.linear else (position[0], slice(None), *position[1:]))


def _none(*shape: int) -> Floats:
    return np.full((2, *shape), -np.inf, np.float32)


def _widen(kept: Floats, found: Floats) -> None:
    np.maximum(kept, found, out=kept)


def _array(x: Tensor) -> Floats:
    return x.float().cpu().numpy()


def _at(x: Tensor, index: Any) -> Floats:
    """x[index]; found by NumPy where it can read `x`."""
    return x.numpy()[index] if x.device.type == "cpu" and x.dtype == torch.float32 else _array(x[index])


def _draws(site: str) -> Iterator[list[float]]:
    """Pairs of random numbers in [0, 1), always the same for a site of this name."""
    random = torch.Generator().manual_seed(crc32(site.encode()))
    while True:
        yield from torch.rand(64, 2, generator=random).tolist()


def _low_and_high(x: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every sample and channel, 2 x [N, C].

    Two passes: torch.aminmax along an axis is twenty times slower than both of these on a CPU.
    """
    if linear:
        x = x.reshape(len(x) if x.dim() > 2 else 1, -1, x.shape[-1])
        return x.amin(1), x.amax(1)
    axes = tuple(range(2, x.dim()))
    return x.amin(axes), x.amax(axes)
