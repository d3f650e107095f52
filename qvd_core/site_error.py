"""Where a variant loses accuracy: the error each layer makes by itself, at every step.

Every quantized layer is given what its floating-point original receives while the full-precision model
samples, so errors of earlier layers do not enter. The sum of what all layers do to the clip is another
question, which `compare` answers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from qvd_core.errors import EngineError
from qvd_core.sampling import Settings, StepInfo, check_settings, sample
from qvd_core.variant import Variant, share_structure


def site_errors(
    variant: Variant, settings: Settings, on_step: Callable[[StepInfo], None] | None = None
) -> dict[str, Tensor]:
    """Relative squared error of each layer's output, |y' - y|^2 / |y|^2, at every step of one clip.

    Args:
        variant: its model samples, and its layers are compared.
        settings: the clip; as many steps as the variant is bound to, if it is.
        on_step: called after every step; raising from it ends the run.

    Returns:
        By site, fp32 [steps]; sites the variant leaves as they are, or that did not run, have no entry.
        0 where both outputs are 0.

    Raises:
        GenerationError: settings the model cannot sample, or steps the variant does not know.
        EngineError: the variant is not the simulated one.
    """
    if variant.engine != "simulate":
        raise EngineError("Errors by layer are those of simulation; pass the variant that in_integers was given.")
    model = variant.model
    check_settings(model, settings)
    watched = share_structure(model.denoiser)
    errors: dict[str, Tensor] = {}
    position = [0]

    def layer_ran(
        name: str, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> None:
        x = args[0] if args else kwargs["input"]
        if name in variant.folded:  # there the preceding norm has transformed it
            x = variant.transforms[name].apply(x, -1 if isinstance(layer, nn.Linear) else 1)
        made = variant.denoiser.get_submodule(name)(x)
        error = (made - output).float().square().sum() / output.float().square().sum()
        step = min(position[0], settings.steps - 1)
        errors.setdefault(name, torch.zeros(settings.steps))[step] = error.nan_to_num(0)

    for site in model.sites:
        if _replaced(variant, site.name):
            watched.get_submodule(site.name).register_forward_hook(partial(layer_ran, site.name), with_kwargs=True)
    if variant.clock is not None:
        watched.register_forward_pre_hook(variant.clock.read, with_kwargs=True)

    def step_ended(info: StepInfo) -> None:
        position[0] = info.index + 1
        if on_step is not None:
            on_step(info)

    sample(model, watched, settings, step_ended)
    return errors


def _replaced(variant: Variant, name: str) -> bool:
    return type(variant.denoiser.get_submodule(name)) is not type(variant.model.denoiser.get_submodule(name))
