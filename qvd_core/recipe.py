"""Recipes: everything that decides how a model is quantized, as one small frozen dataclass, and the named ones.

A recipe knows nothing of torch or of any model, so it can be hashed, pickled, compared, written into
a checkpoint or put in a link. A named recipe is complete: nothing is merged in when it runs.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

from qvd_core.errors import RecipeError
from qvd_core.formats import (
    HTDQ,
    ActivationFormat,
    ChannelBalancing,
    Override,
    ShiftAndScale,
    Tabulated,
    TemporalBlock,
    WeightFormat,
    check_flag,
)

LONGEST_PLAIN = 1_500  # characters of a recipe in a link
LONGEST = 1_000_000
PACKED = "z."

TIME_PATH = ("time_embedding", "temporal_features")
"""Roles of the layers between the timestep and the residual blocks."""

Temporal = HTDQ | TemporalBlock | Tabulated
Channels = ShiftAndScale | ChannelBalancing


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model.

    Attributes:
        name: shown in results.
        weights: format of all weights; None leaves them in floating point.
        activations: format of all layer inputs; None leaves them in floating point.
        overrides: exceptions, by site; where several match, the last one decides.
        temporal: what is done to the time path; None treats it as all other layers.
        channels: transformation of channels before anything is quantized; None for none.
        split_shortcuts: inputs that concatenate an upsampled and a skipped tensor get one grid for each
            part, in inputs and weights, as in Q-Diffusion (arXiv 2302.04304, section 3.3).
    """

    name: str
    weights: WeightFormat | None
    activations: ActivationFormat | None
    overrides: tuple[Override, ...] = ()
    temporal: Temporal | None = None
    channels: Channels | None = None
    split_shortcuts: bool = False

    def __post_init__(self) -> None:
        check_flag("split_shortcuts", self.split_shortcuts)

    @property
    def needs_statistics(self) -> bool:
        """Whether building the variant needs calibrated ranges."""
        forms = [self.activations, *(_overridden(self.activations, override) for override in self.overrides)]
        return self.channels is not None or any(form is not None and form.needs_statistics for form in forms)

    def formats(self, site_name: str, role: str) -> tuple[WeightFormat | None, ActivationFormat | None]:
        """The weight and activation formats of one site; None stands for floating point."""
        weights, activations = self.weights, self.activations
        for override in self.overrides:
            if override.matches(site_name, role):
                bits = override.weight_bits
                weights = None if bits is None else dataclasses.replace(self.weights or WeightFormat(8), bits=bits)
                activations = _overridden(self.activations, override)
        if role in TIME_PATH:
            if isinstance(self.temporal, Tabulated):
                return None, None
            if isinstance(self.temporal, TemporalBlock) and activations is not None and activations.needs_statistics:
                activations = dataclasses.replace(activations, range="static_per_step")
        return weights, activations

    def override(self, sites: str, weight_bits: int | None, activation_bits: int | None, **formats: Any) -> Recipe:
        """This recipe with one more `Override`, replacing an earlier one of the same sites.

        Its name says that it is no longer the one it came from: "minmax-w8a8+2" has two overrides.

        Args:
            formats: `range` and `search` of the override.
        """
        others = tuple(o for o in self.overrides if o.sites != sites)
        overrides = (*others, Override(sites, weight_bits, activation_bits, **formats))
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
                temporal=_method(values.get("temporal"), (HTDQ, TemporalBlock, Tabulated)),
                channels=_method(values.get("channels"), (ShiftAndScale, ChannelBalancing)),
                split_shortcuts=values.get("split_shortcuts", False),
            )
            if RECIPES.get(recipe.name, recipe) != recipe:
                raise TypeError(f"{recipe.name!r} is the name of another recipe")
            return recipe
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"Not a recipe: {error}. Compare with Recipe.to_dict().") from error

    def to_query(self) -> str:
        """The query string of a link to this recipe: its name when it is a named one, all of it otherwise.

        A long one, as with bits of its own for every layer, is compressed: many servers refuse long addresses.
        """
        if RECIPES.get(self.name) == self:
            return urlencode({"recipe": self.name})
        text = json.dumps(self.to_dict(), separators=(",", ":"))
        if len(text) > LONGEST_PLAIN:
            text = PACKED + base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
        return urlencode({"recipe": text})

    @classmethod
    def from_query(cls, query: str) -> Recipe:
        """The recipe `to_query` described.

        Raises:
            RecipeError: the query holds no recipe, or a damaged one.
        """
        text = parse_qs(query.removeprefix("?")).get("recipe", [""])[0]
        if text.startswith(PACKED):
            text = _unpacked(text.removeprefix(PACKED))
        if not text.startswith("{"):
            return get_recipe(text)
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise RecipeError(f"The recipe in this link is damaged: {error}.") from error


def _unpacked(text: str) -> str:
    """What `to_query` compressed; a link cannot make the server hold more than `LONGEST`."""
    try:
        unpacked = zlib.decompressobj().decompress(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), LONGEST)
        return unpacked.decode()
    except (ValueError, zlib.error) as error:
        raise RecipeError(f"The recipe in this link is damaged: {error}.") from error


def _method(values: dict[str, Any] | None, kinds: tuple[type[Any], ...]) -> Any:
    """The method a dictionary describes; its "method" entry tells which of `kinds` it is."""
    if values is None:
        return None
    by_name = {kind.method: kind for kind in kinds}
    method = values["method"]
    if method not in by_name:
        raise TypeError(f"method {method!r} is not one of {', '.join(by_name)}")
    options = {name: value for name, value in values.items() if name != "method"}
    if "sites" in options:
        if not isinstance(options["sites"], (list, tuple)):
            raise TypeError(f"sites = {options['sites']!r} is no list")
        options["sites"] = tuple(options["sites"])  # JSON knows no tuples
    return by_name[method](**options)


_DYNAMIC = ActivationFormat(8, "dynamic_per_token")
"""What an override's activation bits mean in a recipe that leaves all others in floating point."""


def _overridden(form: ActivationFormat | None, override: Override) -> ActivationFormat | None:
    """What an override makes of the recipe's format of inputs."""
    if override.activation_bits is None:
        return None
    form = form or _DYNAMIC
    return ActivationFormat(
        override.activation_bits, override.range or form.range, form.symmetric, override.search or form.search
    )


BITS = ((8, 8), (6, 6), (4, 8), (4, 6), (4, 4))
"""Weight and activation bits at which every method has a named recipe."""

METHODS: dict[str, str] = {
    "minmax": "Extremes of calibration; symmetric weights",
    "dynamic": "A range for every token, as it arrives; symmetric weights",
    "mse": "Ranges of least error over all steps",
    "percentile": "Ranges without the outermost 0.1 % at either end",
    "smoothquant": "Channel balancing (SmoothQuant, ViDiT-Q)",
    "os-plus": "Channel shift and scale at all layers (Outlier Suppression+)",
    "q-diffusion": "Step-uniform calibration and split shortcuts (Q-Diffusion)",
    "tfmq-dm": "Temporal block with a range per step (TFMQ-DM)",
    "qvd": "QVD: HTDQ on temporal features, SCRI on temporal attention",
    "qvd-htdq": "QVD with HTDQ only",
    "qvd-scri": "QVD with SCRI only, shift and scale",
    "qvd-shift": "QVD with SCRI's shift only",
    "qvd-scale": "QVD with SCRI's scale only",
    "qvd-base": "QVD with neither: its quantizer alone",
    "tabulated": "Control: qvd-base with the time path tabulated in floating point",
}
"""What each family of named recipes does, in a phrase."""


def _named(method: str, weight_bits: int, activation_bits: int) -> Recipe:
    """The recipe of one method at these bits.

    All but "minmax" and "dynamic" share affine weights and 8 bits in the first and last layer, whose
    last input stays in floating point, as in the public port of QVD and in Q-Diffusion: rows of a table
    then differ by the method alone. QVD's own quantizer adds per-frame ranges.
    """
    name = f"{method}-w{weight_bits}a{activation_bits}"
    if method in ("minmax", "dynamic"):
        inputs = ActivationFormat(activation_bits, "static_per_tensor" if method == "minmax" else "dynamic_per_token")
        return Recipe(name, WeightFormat(weight_bits), inputs)
    per_tensor = ActivationFormat(activation_bits, search="mse")
    per_frame = ActivationFormat(activation_bits, "static_per_frame", search="mse")
    extremes = ActivationFormat(activation_bits)
    choices: dict[str, dict[str, Any]] = {
        "mse": {"activations": per_tensor},
        "percentile": {"activations": ActivationFormat(activation_bits, search="percentile")},
        "smoothquant": {"activations": extremes, "channels": ChannelBalancing()},
        "os-plus": {"activations": extremes, "channels": ShiftAndScale(sites=("*",))},
        "q-diffusion": {"activations": per_tensor, "split_shortcuts": True},
        "tfmq-dm": {"activations": per_tensor, "temporal": TemporalBlock()},
        "qvd": {"activations": per_frame, "temporal": HTDQ(), "channels": ShiftAndScale()},
        "qvd-htdq": {"activations": per_frame, "temporal": HTDQ()},
        "qvd-scri": {"activations": per_frame, "channels": ShiftAndScale()},
        "qvd-shift": {"activations": per_frame, "channels": ShiftAndScale(scale=False)},
        "qvd-scale": {"activations": per_frame, "channels": ShiftAndScale(shift=False)},
        "qvd-base": {"activations": per_frame},
        "tabulated": {"activations": per_frame, "temporal": Tabulated()},
    }
    edges = (Override("first_layer", 8, 8), Override("last_layer", 8, None))
    return Recipe(name, WeightFormat(weight_bits, symmetric=False), overrides=edges, **choices[method])


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for method in METHODS for bits in BITS for recipe in (_named(method, *bits),)
}
"""The named recipes, "METHOD-wWaA": every method of `METHODS` at all of `BITS`."""


def get_recipe(name: str) -> Recipe:
    """The named recipe `name`.

    Raises:
        RecipeError: there is none of that name; the message lists the methods and bits there are.
    """
    if name not in RECIPES:
        bits = ", ".join(f"w{w}a{a}" for w, a in BITS)
        raise RecipeError(
            f"Unknown recipe {name!r}; choose METHOD-BITS, METHOD being one of {', '.join(METHODS)},"
            f" and BITS one of {bits}."
        )
    return RECIPES[name]
