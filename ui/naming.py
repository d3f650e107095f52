"""What recipes are called on the page: the method they follow, their bits, and a name for those nobody named."""

from __future__ import annotations

import dataclasses
import re

from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.recipe import METHODS, RECIPES, Recipe


def at_bits(recipe: Recipe, weight_bits: int, input_bits: int) -> Recipe:
    """`recipe` with these bits, all else as it is; exceptions keep their own."""
    return dataclasses.replace(
        recipe,
        weights=dataclasses.replace(recipe.weights or WeightFormat(8), bits=weight_bits),
        activations=dataclasses.replace(recipe.activations or ActivationFormat(8), bits=input_bits),
    )


def of_method(method: str, weight_bits: int, input_bits: int) -> Recipe:
    """The recipe of a method at any bits: the named one where there is one."""
    return named(at_bits(RECIPES[f"{method}-w8a8"], weight_bits, input_bits))


def method_of(recipe: Recipe) -> str | None:
    """The method that `recipe` follows in all but bits; None if in none, or if weights or inputs stay as they are."""
    return next((method for method in METHODS if _differs_only_in(recipe, method, "name")), None)


def named(recipe: Recipe) -> Recipe:
    """The same recipe under the name of the named one it equals, or under one that says how far it is from them.

    "qvd-w3a8" is a method at bits of its own, "qvd-w4a8+3" one with three exceptions in place of its own, and
    "custom-w4a8" no method.
    """
    method = method_of(recipe)
    if method is not None:
        name = f"{method}-{bits_of(recipe)}"
        return RECIPES.get(name) or dataclasses.replace(recipe, name=name)
    method = next((m for m in METHODS if _differs_only_in(recipe, m, "name", "overrides")), None)
    exceptions = f"+{len(recipe.overrides)}" if recipe.overrides or method else ""
    return dataclasses.replace(recipe, name=f"{method or 'custom'}-{bits_of(recipe)}{exceptions}")


def bits_of(recipe: Recipe) -> str:
    """Its bits as in the names of recipes: "w4a8", or "w4-afloat" where something stays in floating point."""
    weights = f"w{recipe.weights.bits}" if recipe.weights else "wfloat"
    inputs = f"a{recipe.activations.bits}" if recipe.activations else "afloat"
    return f"{weights}-{inputs}" if "float" in weights + inputs else weights + inputs


def parse_bits(text: str) -> tuple[int, int]:
    """What `bits_of` wrote, with 8 bits in place of floating point."""
    found = re.fullmatch(r"w(\d+|float)-?a(\d+|float)", text)
    weights, inputs = found.groups() if found else ("float", "float")
    return (8 if weights == "float" else int(weights)), (8 if inputs == "float" else int(inputs))


def bits_in_words(recipe: Recipe) -> str:
    """Its bits as the page shows them: "W4A8", or "W4, float inputs"."""
    if recipe.weights is None:
        return "all float" if recipe.activations is None else f"A{recipe.activations.bits}, float weights"
    return f"W{recipe.weights.bits}" + (
        ", float inputs" if recipe.activations is None else f"A{recipe.activations.bits}"
    )


def _differs_only_in(recipe: Recipe, method: str, *fields: str) -> bool:
    if recipe.weights is None or recipe.activations is None:
        return False
    model = at_bits(RECIPES[f"{method}-w8a8"], recipe.weights.bits, recipe.activations.bits)
    return dataclasses.replace(model, **{name: getattr(recipe, name) for name in fields}) == recipe
