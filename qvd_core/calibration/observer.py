"""What watches one layer's input during calibration: extremes and a few tokens, and keeps no activation."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from qvd_core.calibration.statistics import LARGEST_HALF, PAIRS, SEQUENCES, TOKENS, decode, encode
from qvd_core.errors import CalibrationError

DRAWN = 1024  # random numbers drawn at once: drawing a few takes as long


class Picked(NamedTuple):
    """Tokens of one input.

    Attributes:
        numbers: which tokens of the observer they may become.
        places: where they were, as shares of the way through the input.
        luck: in [0, 1), which decides whether they are kept.
        tokens: [numbers, frames or 1, channels].
    """

    numbers: np.ndarray
    places: np.ndarray
    luck: np.ndarray
    tokens: Tensor


class Seen(NamedTuple):
    """What is left of one input.

    Attributes:
        step, clip: when it was seen.
        samples: length of its leading axis.
        positions: how many tokens it is.
        lows, highs: extremes, [frames or samples, channels].
        picked: None in steps that keep no tokens.
    """

    step: int
    clip: int
    samples: int
    positions: int
    lows: Tensor
    highs: Tensor
    picked: Picked | None


class InputObserver:
    """Streams extremes and a few tokens of one layer's input; keeps no activation.

    Args:
        site: its name, for errors and as the seed of which tokens are kept.
        kind: "linear", or a convolution.
        steps, channels, frames: of the run and the layer.
        by_frame: whether the leading axis is samples x frames.
        mixes_frames: whether the input is [positions, frames, channels].
        sequences: whether to keep whole sequences [length, channels] instead of single tokens.
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
        self.mixes_frames, self.stride = mixes_frames, stride
        self.low = torch.full((steps, channels), float("inf"))
        self.high = torch.full((steps, channels), float("-inf"))
        self.frame_low = torch.full((steps, frames), float("inf"))
        self.frame_high = torch.full((steps, frames), float("-inf"))
        self.channel_frame_low = torch.full((frames, channels), float("inf"))
        self.channel_frame_high = torch.full((frames, channels), float("-inf"))
        count, rows = SEQUENCES if sequences else tokens, -(-steps // stride)
        self.tokens = torch.zeros(rows, count, frames if sequences else 1, channels)
        self.token_frames = torch.zeros(rows, count)
        self.count = 0
        self._calls: Counter[int] = Counter()  # by step, of the clip now observed
        self._clip = 0
        self._drawn = np.empty((0, 2))
        self._random = torch.Generator().manual_seed(crc32(site.encode()))

    def look_at(self, x: Tensor, step: int, clip: int = 0, clips: int = 1) -> Seen:
        """Reduce one input of the layer to what `take_in` needs, which may come later.

        Args:
            clip: of `clips`, which share the tokens evenly.
        """
        x = x.detach()
        # Of every frame where the layer mixes them, of every sample else.
        lows, highs = (x.amin(0), x.amax(0)) if self.mixes_frames else _extremes(x, self.linear)
        numbers = range((clip - step) % clips, self.tokens.shape[1], clips)
        picked = self._pick(x, numbers) if numbers and step % self.stride == 0 else None
        return Seen(step, clip, len(x), x.numel() // self.low.shape[1], lows, highs, picked)

    def take_in(self, seen: Seen) -> None:
        """Widen the extremes and keep the tokens.

        Raises:
            CalibrationError: the input contained NaN or infinite values.
        """
        step = seen.step
        self.count += seen.positions
        # NumPy, whose operations on little arrays begin several times sooner than torch's.
        lows, highs = seen.lows.float().cpu().numpy(), seen.highs.float().cpu().numpy()
        low, high = lows.min(0), highs.max(0)
        # NaN propagates through the extremes, so they tell about every value.
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError(
                f"The input of {self.site} contains NaN or infinite values at step {step + 1};"
                " the model itself is broken at this precision."
            )
        _widen(self.low.numpy()[step], self.high.numpy()[step], low, high)
        frames, channels = self.channel_frame_low.shape
        if self.by_frame or self.mixes_frames:
            low, high = lows.reshape(-1, frames, channels).min(0), highs.reshape(-1, frames, channels).max(0)
            _widen(self.channel_frame_low.numpy(), self.channel_frame_high.numpy(), low, high)
        if self.by_frame:
            _widen(self.frame_low.numpy()[step], self.frame_high.numpy()[step], low.min(1), high.max(1))
        if seen.clip != self._clip:
            self._clip = seen.clip
            self._calls.clear()
        self._calls[step] += 1
        if seen.picked is None:
            return
        # Of several calls in a step, such as with and without the prompt, each is kept equally often.
        kept = seen.picked.luck * self._calls[step] < 1
        row, numbers, places = step // self.stride, seen.picked.numbers[kept], seen.picked.places[kept]
        self.tokens.numpy()[row, numbers] = seen.picked.tokens.float().cpu().numpy()[kept]
        if self.by_frame:
            self.token_frames.numpy()[row, numbers] = (places * seen.samples).astype(int) % frames

    def finish(self) -> None:
        """Round all as a file keeps it, so that statistics from disk give the same variant."""
        small = self.tokens.abs().amax(-1, keepdim=True) < LARGEST_HALF
        self.tokens = torch.where(small, self.tokens.half().float(), self.tokens)
        bottom, top = self.low.amin(0), self.high.amax(0)
        for low, high in PAIRS:
            if torch.isfinite(getattr(self, low)).all():  # else it was not observed
                both = encode(getattr(self, low), getattr(self, high), bottom, top)
                setattr(self, low, decode(both[0], bottom, top))
                setattr(self, high, decode(both[1], bottom, top))

    def _pick(self, x: Tensor, numbers: range) -> Picked:
        """As many tokens as there are numbers, anywhere in the input."""
        if len(self._drawn) < len(numbers):
            self._drawn = np.vstack((self._drawn, torch.rand(DRAWN, 2, generator=self._random).double().numpy()))
        (places, luck), self._drawn = self._drawn[: len(numbers)].T, self._drawn[len(numbers) :]
        return Picked(np.array(numbers), places, luck, self._tokens_at(x, places))

    def _tokens_at(self, x: Tensor, places: np.ndarray) -> Tensor:
        """The tokens at `places`, shares of the way through the input."""
        if self.sequences:
            return x[torch.from_numpy((places * len(x)).astype(int))]
        if self.linear:
            rows = x.reshape(-1, x.shape[-1])
            return rows[torch.from_numpy((places * len(rows)).astype(int))][:, None]
        pixels = x[0, 0].numel()
        sample, pixel = np.divmod((places * len(x) * pixels).astype(int), pixels)
        index = tuple(map(torch.from_numpy, (sample, *np.unravel_index(pixel, x.shape[2:]))))
        return x.movedim(1, -1)[index][:, None]


def _widen(lows: np.ndarray, highs: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Extend ranges in place so that they hold these extremes."""
    np.minimum(lows, low, out=lows)
    np.maximum(highs, high, out=highs)


def _extremes(x: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every sample and channel, 2 x [N, C].

    Two passes: torch.aminmax along an axis is twenty times slower than both of these on a CPU.
    """
    if linear:
        x = x.reshape(len(x) if x.dim() > 2 else 1, -1, x.shape[-1])
        return x.amin(1), x.amax(1)
    axes = tuple(range(2, x.dim()))
    return x.amin(axes), x.amax(axes)
