"""Calibration statistics: small, keyed to the model and the run that produced them, kept on disk.

Per site, the smallest and largest value of every input channel at every denoising step over all
prompts, the same of every frame, and a few tokens as they were. Ranges per tensor, per step or over all
steps follow by reduction; what needs whole values, such as an error, by sampling.

Small also for a model of a billion parameters, which has half a million input channels: extremes of
single steps and frames are kept in 8 bits, rounded outwards, tokens in half precision and, where there
would be too many, of every n-th step only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvd_core.errors import CalibrationError
from qvd_core.storage import replacing

FORMAT = "qvd-statistics-3"
TOKENS = 4  # kept of every step and site
SEQUENCES = 1
TOKEN_VALUES = 12_000_000  # at most, of all sites together
FRAME_EXTREMES = 4_000_000  # at most, of channels by frame
LARGEST_HALF = 6e4
CODES = 255  # of an extreme, between those of its channel over the whole run


@dataclass(frozen=True)
class CalibrationRun:
    """What was run to obtain statistics.

    Attributes:
        model: name of the model; fingerprint: hash of its weights.
        sampler: scheduler class; steps: its number of steps.
        prompts: what was generated, with seeds seed, seed + 1, ...
        frames, height, width, guidance_scale: as in `Settings`.
        seconds: measured time of the run.
    """

    model: str
    fingerprint: str
    sampler: str
    steps: int
    prompts: tuple[str, ...]
    seed: int
    frames: int
    height: int
    width: int
    guidance_scale: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Statistics:
    """Inputs of every site. Sites that read the same tensor share the same entries.

    Attributes:
        run: where they come from.
        low, high: per site name, fp32 [steps, channels]: extremes of each input channel at each step. Those
            over all steps are exact; those of one step lie outside the true ones by less than 1/255 of the
            channel's range over all steps.
        frame_low, frame_high: fp32 [steps, frames]: extremes of each frame; only of sites that see the
            frames of a clip one by one, along their leading axis.
        channel_frame_low, channel_frame_high: fp32 [frames, channels]: extremes of each channel in each
            frame over all steps, as exact as `low`; only of sites that see frames, or mix them, and of
            models small enough.
        tokens: fp32 [rows, samples, length, channels]: random tokens (`length` 1); of temporal attention
            whole sequences of `length` = frames, so that the attention can be computed. Row r is of step
            r * `token_stride`.
        token_frames: [rows, samples], the frame each token is of; as `frame_low`.
        macs: multiply-accumulates of one denoiser call (guidance doubles a step's calls into one batch,
            which is counted).
        counts: how many tokens were seen in all; those kept stand for them.
        token_stride: 1 where tokens of every step are kept.
    """

    run: CalibrationRun
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    frame_low: dict[str, Tensor]
    frame_high: dict[str, Tensor]
    tokens: dict[str, Tensor]
    token_frames: dict[str, Tensor]
    macs: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)
    channel_frame_low: dict[str, Tensor] = field(default_factory=dict)
    channel_frame_high: dict[str, Tensor] = field(default_factory=dict)
    token_stride: int = 1

    def token_row(self, step: int | Tensor) -> Any:
        """The row of `tokens` for a 0-based step: of that step, or of the last one before it that has tokens."""
        return step // self.token_stride

    def tensor_range(self, site: str) -> tuple[Tensor, Tensor]:
        """(low, high) of the whole input over all steps and channels, two scalars."""
        return self.low[site].min(), self.high[site].max()

    def check_model(self, name: str, fingerprint: str) -> None:
        """Refuse to serve a model these statistics were not made on.

        Raises:
            CalibrationError: naming both.
        """
        if self.run.fingerprint != fingerprint:
            raise CalibrationError(
                f"These statistics were made on {self.run.model} ({self.run.fingerprint}), not on"
                f" {name} ({fingerprint}); calibrate again."
            )

    def save(self, path: Path) -> None:
        """Write to `path` (safetensors), whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        owners = {id(self.low[site]): site for site in reversed(self.low)}  # the first of those that share
        shared = {site: owners[id(low)] for site, low in self.low.items()}
        for site in owners.values():
            bottom, top = self.low[site].amin(0), self.high[site].amax(0)
            tensors |= {f"bottom/{site}": bottom, f"top/{site}": top}
            for low, high in PAIRS:
                if site in getattr(self, low):
                    both = encode(getattr(self, low)[site], getattr(self, high)[site], bottom, top)
                    tensors[f"{low}/{site}"], tensors[f"{high}/{site}"] = both
            for kind in ("frame_low", "frame_high", "token_frames"):
                if site in getattr(self, kind):
                    tensors[f"{kind}/{site}"] = getattr(self, kind)[site].contiguous()
            tensors[f"tokens/{site}"] = _compact(self.tokens[site])
        metadata = {
            "format": FORMAT,
            "run": json.dumps(asdict(self.run)),
            "macs": json.dumps(self.macs),
            "counts": json.dumps(self.counts),
            "shared": json.dumps({site: owner for site, owner in shared.items() if site != owner}),
            "token_stride": str(self.token_stride),
        }
        # Not save_file: its errors do not tell a full disk from a programming error.
        with replacing(path) as scratch:
            scratch.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            CalibrationError: the file is absent, damaged or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                found = metadata.get("format", "no statistics")
                if found != FORMAT:
                    raise CalibrationError(
                        f"{path} does not hold calibration statistics of this version ({FORMAT}) but {found};"
                        " calibrate again."
                    )
                stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            values = json.loads(metadata["run"])
            run = CalibrationRun(**{**values, "prompts": tuple(values["prompts"])})
            macs, counts = json.loads(metadata["macs"]), json.loads(metadata["counts"])
            entries: dict[str, dict[str, Tensor]] = {kind: {} for kind in ENTRIES}
            for key, tensor in stored.items():
                kind, _, site = key.partition("/")
                if tensor.dtype == torch.uint8:
                    tensor = decode(tensor, stored[f"bottom/{site}"], stored[f"top/{site}"])
                if kind not in ("bottom", "top"):
                    entries[kind][site] = tensor.float()
            for site, owner in json.loads(metadata["shared"]).items():
                for own in entries.values():
                    own |= {site: own[owner]} if owner in own else {}
            if not entries["low"].keys() == entries["high"].keys() == entries["tokens"].keys():
                raise ValueError("some sites lack their extremes or tokens")
            stride = int(metadata["token_stride"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{path} is not a readable statistics file: {error}") from error
        return cls(run, macs=macs, counts=counts, token_stride=stride, **entries)


PAIRS = (("low", "high"), ("channel_frame_low", "channel_frame_high"))
ENTRIES = (*PAIRS[0], *PAIRS[1], "frame_low", "frame_high", "tokens", "token_frames")


def encode(low: Tensor, high: Tensor, bottom: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Extremes [N, C] as shares of the channels' ranges [C] in 255ths, rounded outwards, uint8."""
    width = torch.where(top > bottom, top - bottom, 1)
    shares = ((extreme - bottom) / width * CODES for extreme in (low, high))
    slack = 1e-3  # so that what has been decoded gets its codes again
    rounded = next(shares).add(slack).floor(), next(shares).sub(slack).ceil()
    return tuple(codes.clamp(0, CODES).to(torch.uint8) for codes in rounded)  # type: ignore[return-value]


def decode(codes: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
    """The extremes `encode` stored; the outermost are those of the channel, exactly."""
    values = bottom + codes / CODES * (top - bottom)
    return torch.where(codes == CODES, top, values)


def as_stored(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a file gives back of one site's entries, named as in `Statistics`: both must give the same variant."""
    stored, tokens = dict(entries), entries["tokens"]
    stored["tokens"] = torch.where(tokens.abs().amax(-1, keepdim=True) < LARGEST_HALF, tokens.half().float(), tokens)
    bottom, top = entries["low"].amin(0), entries["high"].amax(0)
    for low, high in PAIRS:
        if low in entries and torch.isfinite(entries[low]).all():  # else not observed in every step
            both = encode(entries[low], entries[high], bottom, top)
            stored[low], stored[high] = (decode(codes, bottom, top) for codes in both)
    return stored


def sampling_plan(channels: int, sequence_values: int, steps: int) -> tuple[int, int]:
    """How many tokens to keep, and of every which step, so that a file stays small.

    Args:
        channels: of all inputs of which single tokens are kept; sequence_values: of one sequence each of
            the others.

    Returns:
        (tokens, stride): all are kept of every step of models up to some hundred million parameters;
        of larger ones a single token, if need be only of every `stride`-th step.
    """
    if steps * (TOKENS * channels + SEQUENCES * sequence_values) <= TOKEN_VALUES:
        return TOKENS, 1
    rows = max(1, TOKEN_VALUES // (channels + SEQUENCES * sequence_values))
    return 1, -(-steps // rows)


def _compact(tokens: Tensor) -> Tensor:
    """In half precision where nothing is lost: `as_stored` rounds to it what it can hold."""
    return (tokens.half() if tokens.abs().max() < LARGEST_HALF else tokens).contiguous()
