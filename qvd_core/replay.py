"""One denoiser call, made again and again with one layer replaced: what that layer does to the prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.layers.inputs import OncePerInput
from qvd_core.models.loader import VideoModel
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.sampling import Settings, sample
from qvd_core.variant import Variant, share_structure

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""


def record_calls(model: VideoModel, settings: Settings, count: int) -> list[Call]:
    """The arguments of `count` denoiser calls of one clip, evenly spaced from first to last; of all if there are fewer.

    Args:
        settings: the clip; they must have been checked.
    """
    recorded: list[Call] = []
    watched = share_structure(model.denoiser)
    watched.register_forward_pre_hook(lambda _, args, kwargs: recorded.append((args, kwargs)), with_kwargs=True)
    sample(model, watched, settings)
    picked = torch.linspace(0, len(recorded) - 1, min(count, len(recorded))).round().long()
    return [recorded[number] for number in picked]


class Replay:
    """A copy of the denoiser, and one call of it whose result is known.

    A block that has run to its end before the replaced layer begins is not run again: it gives what it gave in
    full precision. Only outputs of whole blocks are kept for that.

    Args:
        model: left untouched.
        call: of `record_calls`.

    Attributes:
        exact: the prediction in full precision.
    """

    def __init__(self, model: VideoModel, call: Call):
        self.denoiser = share_structure(model.denoiser)
        self.call = call
        self._began: dict[str, int] = {}  # when a site first ran, on a clock that counts events
        self._ended: dict[str, int] = {}  # when a block last did
        self._outputs: dict[str, list[Any]] = {}
        now = itertools.count()

        def site_began(name: str, *_: Any) -> None:
            self._began.setdefault(name, next(now))

        def block_ended(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._ended[name] = next(now)
            self._outputs.setdefault(name, []).append(output)

        with ExitStack() as hooks:
            for site in model.sites:
                module = self.denoiser.get_submodule(site.name)
                hooks.callback(module.register_forward_pre_hook(partial(site_began, site.name)).remove)
            for name in {site.block for site in model.sites} - {""}:
                module = self.denoiser.get_submodule(name)
                hooks.callback(module.register_forward_hook(partial(block_ended, name)).remove)
            self.exact = self._again()

    def with_layer(self, variant: Variant, name: str) -> Tensor:
        """The prediction when the layer at `name` alone is as in `variant`; the shape of `exact`."""
        layer = _by_itself(variant, name)
        with _attribute(self.denoiser, name, layer), self._without_blocks_before(name), ExitStack() as hooks:
            if variant.clock is not None:
                hook = self.denoiser.register_forward_pre_hook(variant.clock.read, with_kwargs=True)
                hooks.callback(hook.remove)
            return self._again()

    @torch.inference_mode()
    def _again(self) -> Tensor:
        args, kwargs = self.call
        prediction: Tensor = self.denoiser(*args, **kwargs)[0]
        return prediction

    @contextmanager
    def _without_blocks_before(self, site: str) -> Iterator[None]:
        began = self._began.get(site, 0)
        with ExitStack() as stack:
            for name, outputs in self._outputs.items():
                if self._ended[name] < began and len(outputs) == 1:
                    # On the instance, as the pipeline's code reads other attributes of a block too.
                    stack.enter_context(_attribute(self.denoiser, f"{name}.forward", lambda *_, o=outputs[0], **__: o))
            yield


@contextmanager
def _attribute(root: nn.Module, path: str, value: Any) -> Iterator[None]:
    """`value` at `path` below `root` for a while."""
    parent, _, name = path.rpartition(".")
    module = root.get_submodule(parent)
    own = name in module.__dict__ or name in module._modules
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if own:
            setattr(module, name, before)
        else:  # a method
            delattr(module, name)


def _by_itself(variant: Variant, name: str) -> nn.Module:
    """The variant's layer for a denoiser in which nothing else is quantized or transformed."""
    layer: Any = variant.denoiser.get_submodule(name)
    transform = variant.transforms[name] if name in variant.folded else None
    if transform is None and not isinstance(getattr(layer, "quantize_input", None), OncePerInput):
        return layer
    return _ByItself(layer, transform, -1 if isinstance(variant.model.denoiser.get_submodule(name), nn.Linear) else 1)


class _ByItself(nn.Module):
    """A layer that shares the quantizer of its input with others, or has it transformed by the norm before."""

    def __init__(self, layer: nn.Module, transform: ChannelTransform | None, axis: int):
        super().__init__()
        self.layer, self.transform, self.axis = layer, transform, axis

    def forward(self, input: Tensor) -> Tensor:
        # A view is another object, so the shared quantizer does not take it for what the other readers left.
        x = input.view_as(input) if self.transform is None else self.transform.apply(input, self.axis)
        made: Tensor = self.layer(x)
        return made
