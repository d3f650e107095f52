"""What watches one layer's input during calibration: extremes and a few tokens, and keeps no activation."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from qvd_core.calibration.statistics import LARGEST_HALF, PAIRS, SEQUENCES, TOKENS, decode, encode
from qvd_core.errors import CalibrationError


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
        self._calls = torch.zeros(steps, dtype=torch.long)  # of the clip now observed
        self._clip = 0
        self._random = torch.Generator().manual_seed(crc32(site.encode()))

    def observe(self, x: Tensor, step: int, clip: int = 0, clips: int = 1) -> None:
        """Take in one input of the layer, of clip `clip` of `clips`, which share the tokens evenly.

        Raises:
            CalibrationError: it contains NaN or infinite values.
        """
        x = x.detach()
        self.count += x.numel() // self.low.shape[1]
        # Of every frame where the layer mixes them, of every sample else: [N, channels].
        extremes = (x.amin(0), x.amax(0)) if self.mixes_frames else _extremes(x, self.linear)
        lows, highs = extremes[0].float(), extremes[1].float()
        low, high = lows.amin(0).cpu(), highs.amax(0).cpu()
        # NaN propagates through the extremes, so they tell about every value.
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CalibrationError(
                f"The input of {self.site} contains NaN or infinite values at step {step + 1};"
                " the model itself is broken at this precision."
            )
        torch.minimum(self.low[step], low, out=self.low[step])
        torch.maximum(self.high[step], high, out=self.high[step])
        if self.by_frame or self.mixes_frames:
            self._observe_frames(lows, highs, step)
        if clip != self._clip:
            self._clip = clip
            self._calls.zero_()
        self._calls[step] += 1
        if step % self.stride:
            return
        numbers = range((clip - step) % clips, self.tokens.shape[1], clips)
        if not numbers:
            return
        drawn = torch.rand(len(numbers), 2, generator=self._random).tolist()
        # Of several calls in a step, such as with and without the prompt, each is kept equally often.
        calls = int(self._calls[step])
        kept = [(number, place) for number, (place, luck) in zip(numbers, drawn, strict=True) if luck * calls < 1]
        if kept:
            self._keep(x, step, *zip(*kept, strict=True))

    def _observe_frames(self, low: Tensor, high: Tensor, step: int) -> None:
        """Take in extremes [samples x frames, channels]."""
        frames = len(self.channel_frame_low)
        low, high = (
            low.view(-1, frames, low.shape[-1]).amin(0).cpu(),
            high.view(-1, frames, high.shape[-1]).amax(0).cpu(),
        )
        torch.minimum(self.channel_frame_low, low, out=self.channel_frame_low)
        torch.maximum(self.channel_frame_high, high, out=self.channel_frame_high)
        if self.by_frame:
            torch.minimum(self.frame_low[step], low.amin(1), out=self.frame_low[step])
            torch.maximum(self.frame_high[step], high.amax(1), out=self.frame_high[step])

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

    def _keep(self, x: Tensor, step: int, numbers: tuple[int, ...], places: tuple[float, ...]) -> None:
        """Take the tokens at `places`, shares of the way through the input, as those of these numbers."""
        if self.sequences:
            tokens = x[[int(place * len(x)) for place in places]]
        elif self.linear:
            rows = x.reshape(-1, x.shape[-1])
            tokens = rows[[int(place * len(rows)) for place in places]][:, None]
        else:
            pixels = x[0, 0].numel()
            found = [divmod(int(place * len(x) * pixels), pixels) for place in places]
            where = np.unravel_index([pixel for _, pixel in found], x.shape[2:])
            samples = [sample for sample, _ in found]
            index = (samples, slice(None), *(axis.tolist() for axis in where))
            tokens = x[index][:, None]
        row = step // self.stride
        self.tokens[row, list(numbers)] = tokens.float().cpu()
        if self.by_frame:
            frames = self.frame_low.shape[1]
            self.token_frames[row, list(numbers)] = torch.tensor([int(p * len(x)) % frames for p in places]).float()


def _extremes(x: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every sample and channel, 2 x [N, C].

    Two passes: torch.aminmax along an axis is twenty times slower than both of these on a CPU.
    """
    if linear:
        x = x.reshape(len(x) if x.dim() > 2 else 1, -1, x.shape[-1])
        return x.amin(1), x.amax(1)
    axes = tuple(range(2, x.dim()))
    return x.amin(axes), x.amax(axes)
