"""Recipes: everything that decides how a model is quantized, as small frozen dataclasses.

A recipe knows nothing of torch or of any model, so it can be hashed, pickled, compared, written into
a checkpoint or put in a link. A named recipe is complete: nothing is merged in when it runs.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode

from qvd_core.errors import RecipeError

WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = range(3, 17)


@dataclass(frozen=True)
class WeightFormat:
    """Uniform weights with one scale per output channel.

    Attributes:
        bits: 2 to 8.
        symmetric: codes -(2^(bits-1)-1) .. 2^(bits-1)-1 around zero; otherwise affine, with a zero point.
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        _check_bits("weight bits", self.bits, WEIGHT_BITS)
        _check_flag("symmetric", self.symmetric)


@dataclass(frozen=True)
class ActivationFormat:
    """Uniform layer inputs.

    Attributes:
        bits: 3 to 16.
        range: "static_per_tensor", one scale from calibration; or "dynamic_per_token", one scale per
            row of a linear layer's input, found as it arrives. A convolution mixes positions, so there
            a token is one whole sample (a frame).
        symmetric: codes around zero; otherwise affine, with a zero point.
    """

    bits: int
    range: Literal["static_per_tensor", "dynamic_per_token"] = "static_per_tensor"
    symmetric: bool = False

    def __post_init__(self) -> None:
        _check_bits("activation bits", self.bits, ACTIVATION_BITS)
        _check_flag("symmetric", self.symmetric)
        if self.range not in ("static_per_tensor", "dynamic_per_token"):
            raise RecipeError(
                f"Unknown activation range {self.range!r}; choose static_per_tensor or dynamic_per_token."
            )


@dataclass(frozen=True)
class Override:
    """Other bit widths for some sites.

    Attributes:
        sites: a role ("temporal_attention"), a module path, or a pattern of one ("up_blocks.2.*").
        weight_bits: 2 to 8, or None to leave the weights in floating point.
        activation_bits: 3 to 16, or None to leave the inputs in floating point.
    """

    sites: str
    weight_bits: int | None
    activation_bits: int | None

    def __post_init__(self) -> None:
        if not isinstance(self.sites, str) or not self.sites:
            raise RecipeError(f"An override names a role or a module path, not {self.sites!r}.")
        if self.weight_bits is not None:
            _check_bits("weight bits", self.weight_bits, WEIGHT_BITS)
        if self.activation_bits is not None:
            _check_bits("activation bits", self.activation_bits, ACTIVATION_BITS)

    def matches(self, site_name: str, role: str) -> bool:
        return self.sites == role or fnmatchcase(site_name, self.sites)


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model.

    Attributes:
        name: shown in results.
        weights: format of all weights; None leaves them in floating point.
        activations: format of all layer inputs; None leaves them in floating point.
        overrides: exceptions, by site; where several match, the last one decides.
    """

    name: str
    weights: WeightFormat | None
    activations: ActivationFormat | None
    overrides: tuple[Override, ...] = ()

    @property
    def needs_statistics(self) -> bool:
        """Whether any input is put on a static grid, whose range only calibration knows."""
        return self.activations is not None and self.activations.range == "static_per_tensor"

    def formats(self, site_name: str, role: str) -> tuple[WeightFormat | None, ActivationFormat | None]:
        """The weight and activation formats of one site; None stands for floating point."""
        weights, activations = self.weights, self.activations
        for override in self.overrides:
            if override.matches(site_name, role):
                weights = _with_bits(self.weights or WeightFormat(8), override.weight_bits)
                activations = _with_bits(self.activations or _DYNAMIC, override.activation_bits)
        return weights, activations

    def override(self, sites: str, weight_bits: int | None, activation_bits: int | None) -> Recipe:
        """This recipe with one more override, replacing an earlier one of the same sites.

        Its name says that it is no longer the one it came from: "minmax-w8a8+2" has two overrides.
        """
        others = tuple(o for o in self.overrides if o.sites != sites)
        overrides = (*others, Override(sites, weight_bits, activation_bits))
        name = f"{self.name.partition('+')[0]}+{len(overrides)}"
        return dataclasses.replace(self, name=name, overrides=overrides)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` gives the recipe back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe `to_dict` described.

        Raises:
            RecipeError: a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            weights, activations = values["weights"], values["activations"]
            unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
            if unknown:
                raise TypeError(f"unknown field {', '.join(unknown)}")
            recipe = cls(
                name=str(values["name"]),
                weights=None if weights is None else WeightFormat(**weights),
                activations=None if activations is None else ActivationFormat(**activations),
                overrides=tuple(Override(**o) for o in values.get("overrides", ())),
            )
            if RECIPES.get(recipe.name, recipe) != recipe:
                raise TypeError(f"{recipe.name!r} is the name of another recipe")
            return recipe
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"Not a recipe: {error}. Compare with Recipe.to_dict().") from error

    def to_query(self) -> str:
        """The query string of a link to this recipe: its name when it is a named one, all of it otherwise."""
        if RECIPES.get(self.name) == self:
            return urlencode({"recipe": self.name})
        return urlencode({"recipe": json.dumps(self.to_dict(), separators=(",", ":"))})

    @classmethod
    def from_query(cls, query: str) -> Recipe:
        """The recipe `to_query` described.

        Raises:
            RecipeError: the query holds no recipe, or a damaged one.
        """
        text = parse_qs(query.removeprefix("?")).get("recipe", [""])[0]
        if not text.startswith("{"):
            return get_recipe(text)
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise RecipeError(f"The recipe in this link is damaged: {error}.") from error


def _check_bits(what: str, bits: object, allowed: range) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or bits not in allowed:
        raise RecipeError(f"{what} = {bits!r} is out of range; choose {allowed[0]} to {allowed[-1]}.")


def _check_flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RecipeError(f"{what} = {value!r} is neither true nor false.")


_DYNAMIC = ActivationFormat(8, "dynamic_per_token")
"""What an override's activation bits mean in a recipe that leaves all others in floating point."""


def _with_bits(form: Any, bits: int | None) -> Any:
    return None if bits is None else dataclasses.replace(form, bits=bits)


def _min_max(weight_bits: int, activation_bits: int) -> Recipe:
    return Recipe(
        f"minmax-w{weight_bits}a{activation_bits}",
        WeightFormat(weight_bits),
        ActivationFormat(activation_bits),
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _min_max(8, 8),
        _min_max(6, 6),
        _min_max(4, 8),
        _min_max(4, 4),
        Recipe("dynamic-w8a8", WeightFormat(8), ActivationFormat(8, "dynamic_per_token")),
    )
}
"""The named recipes. min-max: symmetric per-channel weights, affine inputs over their calibrated range."""


def get_recipe(name: str) -> Recipe:
    """The named recipe `name`.

    Raises:
        RecipeError: there is none of that name; the message lists those there are.
    """
    if name not in RECIPES:
        raise RecipeError(f"Unknown recipe {name!r}; choose from {', '.join(RECIPES)}.")
    return RECIPES[name]
