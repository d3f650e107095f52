"""What tests of integer variants share: which layers run, with what, and what becomes of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qvd_core.engines.int8_layer import Int8Layer, PackedLayer, Part, SplitLayer
from qvd_core.layers.tabulated import StepTable
from qvd_core.recipe import TIME_PATH
from qvd_core.variant import Variant
from tests.closeness import assert_close
from tests.variants import layer_of

INT8 = (Int8Layer, SplitLayer, PackedLayer, Part)


def layers_at_work(variant: Variant, call: Any, names: list[str] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """By site, input and output in one call of the denoiser; `names` for some of the sites only."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def recorder(name: str) -> Any:
        def record(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            seen[name] = ((args or tuple(kwargs.values()))[0].clone(), output.clone())

        return record

    names = [site.name for site in variant.model.sites] if names is None else names
    hooks = [layer_of(variant, name).register_forward_hook(recorder(name), with_kwargs=True) for name in names]
    try:
        call(variant.denoiser)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def assert_layers_equal(integer: Variant, simulated: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Every layer in int8 gives what its simulation gave for the same input.

    Up to the roundings of fp32, in which simulation adds up as many products as a sum has: 2e-5 of the largest output.
    """
    compared = 0
    for name, (x, expected) in simulated.items():
        layer = layer_of(integer, name)
        if isinstance(layer, INT8):
            with torch.inference_mode():
                assert_close(layer(x), expected, 2e-5 * float(expected.abs().max()), name)
            compared += 1
    assert compared == sum(placement.engine == "int8" for placement in integer.placements.values())


def assert_placed(integer: Variant, tables: bool = True) -> None:
    """Placements are complete, and each says what the recipe makes true; `tables`, whether the time path has them."""
    assert list(integer.placements) == [site.name for site in integer.model.sites]
    for site in integer.model.sites:
        placement, layer = integer.placements[site.name], layer_of(integer, site.name)
        assert isinstance(layer, INT8) is (placement.engine == "int8"), site.name
        assert isinstance(layer, StepTable) is (placement.engine == "table"), site.name
        assert placement.engine in ("int8", "table", "floating point")
        expected = _expected_reason(integer, site, tables)
        assert expected in placement.reason if expected else placement.reason == "", (site.name, placement)


def _expected_reason(variant: Variant, site: Any, tables: bool) -> str:
    weights, inputs = variant.recipe.formats(site.name, site.role)
    temporal = getattr(variant.recipe.temporal, "method", "")
    if site.role in TIME_PATH and tables and (weights or inputs or temporal == "tabulated"):
        return "depends on the step alone"
    if weights is None and inputs is None and site.name not in variant.transforms:
        return "the recipe leaves it as it is"
    if weights is None:
        return "its weights are in floating point"
    if inputs is None:
        return "its input is in floating point"
    if site.role == "temporal_features" and temporal == "htdq":
        return "logarithmic"
    if inputs.bits > 8:
        return f"its input has {inputs.bits} bits"
    grouped = getattr(variant.model.denoiser.get_submodule(site.name), "groups", 1) > 1
    return "zero points" if grouped and weights.bits == 8 and not weights.symmetric else ""
