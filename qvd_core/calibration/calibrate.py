"""Calibration: run the full-precision model on some prompts and watch every layer's input."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qvd_core.calibration.observer import InputObserver
from qvd_core.calibration.statistics import (
    ENTRIES,
    FRAME_EXTREMES,
    PAIRS,
    CalibrationRun,
    Statistics,
    as_stored,
    sampling_plan,
)
from qvd_core.errors import CalibrationError
from qvd_core.models.catalog import ASSETS
from qvd_core.models.loader import VideoModel
from qvd_core.models.sites import find_inputs
from qvd_core.sampling import StepInfo, check_settings, default_settings, fits_tokenizer, sample
from qvd_core.variant import share_structure

EVERYDAY_PROMPTS = (
    "a dog running across a meadow",
    "waves breaking on a rocky shore at dusk",
    "a woman reading a book on a train",
    "traffic at a city crossing in the rain",
    "a bowl of soup steaming on a wooden table",
    "snow falling in a pine forest",
    "a hummingbird at a red flower, close-up",
    "an old man playing the violin in a park",
)

OnCalibrationStep = Callable[[int, int, StepInfo], None]


def calibrate(
    model: VideoModel,
    prompts: Sequence[str],
    *,
    steps: int | None = None,
    seed: int = 1000,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    on_step: OnCalibrationStep | None = None,
) -> Statistics:
    """Observe every site's input while the model samples `prompts` in full precision.

    Args:
        model: what to observe; it is not modified and may sample elsewhere meanwhile.
        prompts: one clip each, with seeds `seed`, `seed` + 1, ...
        steps: denoising steps; the model's default if None. Static ranges hold for this sampler length.
        frames, height, width: clip size; the model's default where None.
        on_step: called as on_step(prompt_index, prompt_count, step_info); raising from it ends the run.

    Raises:
        CalibrationError: no prompts, or NaN or infinite activations (with site and step).
        GenerationError: settings or prompts the model cannot sample.
    """
    if not prompts:
        raise CalibrationError("Calibration needs at least one prompt; eight varied ones are a good start.")
    size = {"frames": frames, "height": height, "width": width}
    plans = [default_settings(model, prompt, steps=steps, seed=seed + i, **size) for i, prompt in enumerate(prompts)]
    for plan in plans:
        check_settings(model, plan)

    started = time.perf_counter()
    total = plans[0].steps
    watched = share_structure(model.denoiser)
    watch = _Watch(model, total, plans[0].frames, len(plans))
    for site in model.sites:
        watch.follow(site.name, watched.get_submodule(site.name))

    for number, plan in enumerate(plans):
        watch.clip, watch.step = number, 0

        def step_ended(info: StepInfo, number: int = number) -> None:
            watch.step = info.index + 1
            if on_step is not None:
                on_step(number, len(plans), info)

        sample(model, watched, plan, step_ended)

    run = CalibrationRun(
        model=model.spec.name,
        fingerprint=model.fingerprint,
        sampler=type(model.pipeline.scheduler).__name__,
        steps=total,
        prompts=tuple(prompts),
        seed=seed,
        frames=plans[0].frames,
        height=plans[0].height,
        width=plans[0].width,
        guidance_scale=plans[0].guidance_scale,
        seconds=round(time.perf_counter() - started, 2),
    )
    counts = {name: watch.observers[leader].count for name, leader in watch.leaders.items()}
    return Statistics(run, macs=watch.macs, counts=counts, token_stride=watch.stride, **watch.entries())


class _Watch:
    """Sends every layer's input to its observer; layers that read one tensor share one observer."""

    def __init__(self, model: VideoModel, steps: int, frames: int, clips: int):
        self.sites = {site.name: site for site in model.sites}
        self.steps, self.frames, self.clips = steps, frames, clips
        self.clip = self.step = 0  # now running
        self.leaders: dict[str, str] = {}
        self.macs: dict[str, int] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._first_inputs: list[tuple[weakref.ref[Tensor], str]] = []
        readers = [self.sites[shared.consumers[0]] for shared in find_inputs(model.denoiser, model.sites)]
        channels = [site.in_channels for site in readers if site.role != "temporal_attention"]
        of_sequences = frames * sum(site.in_channels for site in readers if site.role == "temporal_attention")
        self.tokens, self.stride = sampling_plan(sum(channels), of_sequences, steps)
        self.keeps_frames = frames * sum(site.in_channels for site in readers) <= FRAME_EXTREMES
        # Now, since what is allocated during a call and stays leaves holes between the activations that do not.
        self.observers = {site.name: self._observer(site.name) for site in readers}

    def follow(self, name: str, layer: nn.Module) -> None:
        """See every input of `layer` from now on, or the first only where another layer reads the same tensor."""
        self._hooks[name] = layer.register_forward_hook(partial(self._layer_ran, name), with_kwargs=True)

    def _layer_ran(
        self, name: str, layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> None:
        x = args[0] if args else kwargs["input"]
        if name not in self.leaders:
            self.macs[name] = output.numel() * layer.weight[0].numel()
            self.leaders[name] = next((who for seen, who in self._first_inputs if seen() is x), name)
            if self.leaders[name] != name:
                self._hooks.pop(name).remove()
                return
            self._first_inputs.append((weakref.ref(x), name))
            if name not in self.observers:
                self.observers[name] = self._observer(name)
        self.observers[name].observe(x, min(self.step, self.steps - 1), self.clip, self.clips)

    def _observer(self, name: str) -> InputObserver:
        site = self.sites[name]
        return InputObserver(
            name,
            site.kind,
            self.steps,
            site.in_channels,
            self.frames,
            by_frame=site.sees_frames,
            mixes_frames=site.role.startswith("temporal_"),
            sequences=site.role == "temporal_attention",
            tokens=self.tokens,
            stride=self.stride,
        )

    def entries(self) -> dict[str, dict[str, Tensor]]:
        """The fields of `Statistics` named in `ENTRIES`, but not channels by frame where they would be too many."""
        found = {name: as_stored(observer.entries()) for name, observer in self.observers.items() if observer.count}
        return {
            kind: {name: found[leader][kind] for name, leader in self.leaders.items() if kind in found[leader]}
            for kind in ENTRIES
            if self.keeps_frames or kind not in PAIRS[1]
        }


def embedded_statistics(model: VideoModel) -> Statistics | None:
    """The statistics that ship with an embedded model, if this is one; None for any other.

    Raises:
        CalibrationError: they were made for other weights than those loaded.
    """
    path = statistics_path(model.spec.name)
    if not model.spec.embedded or not path.is_file():
        return None
    statistics = Statistics.load(path)
    statistics.check_model(model.spec.name, model.fingerprint)
    return statistics


def statistics_path(model_name: str) -> Path:
    """Where the shipped statistics of an embedded model lie."""
    return ASSETS / "statistics" / f"{model_name}.safetensors"


def calibration_prompts(model: VideoModel, count: int = 8) -> list[str]:
    """Prompts to calibrate on, the same for everybody.

    The spec's examples for a hub model of the catalog; training captions for the embedded models and
    others that read as little as they do; everyday scenes for the rest.
    """
    if model.spec.example_prompts and not model.spec.embedded:
        return list(model.spec.example_prompts[:count])
    if not model.spec.embedded and all(fits_tokenizer(model, prompt) for prompt in EVERYDAY_PROMPTS):
        return list(EVERYDAY_PROMPTS[:count])
    from qvd_core.shapeworld.scene import TRAINING_SCENES

    order = torch.randperm(len(TRAINING_SCENES), generator=torch.Generator().manual_seed(1))
    return [TRAINING_SCENES[i].caption for i in order[:count]]
