"""The controls of a recipe: they show all of it, read it back whole, and change nothing but what was changed."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import gradio as gr
import pytest

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
)
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import RECIPES, Recipe, get_recipe
from ui.exception_controls import ExceptionControls, with_exception, without_exception, without_exceptions
from ui.format_controls import InputControls, WeightControls
from ui.method_controls import ChannelControls, TemporalControls
from ui.naming import named
from ui.recipe_tab import news, read

QVD = get_recipe("qvd-w4a8")
CUSTOM = [
    Recipe("nothing", None, None),
    Recipe("weights-only", WeightFormat(2), None, (Override("conv_in", None, None),), split_shortcuts=True),
    Recipe("inputs-only", None, ActivationFormat(16, "static_per_step", True, "percentile"), temporal=Tabulated()),
    Recipe("per-token", WeightFormat(5, False), ActivationFormat(3, "dynamic_per_token", True), temporal=HTDQ()),
    dataclasses.replace(QVD, temporal=HTDQ("H2", False, False, 0.3)),
    dataclasses.replace(QVD, temporal=HTDQ(form="H3", discriminability_weight=0.0, radius=5, centred=True)),
    dataclasses.replace(QVD, temporal=HTDQ(port=True)),
    dataclasses.replace(QVD, temporal=TemporalBlock(), split_shortcuts=True),
    dataclasses.replace(QVD, channels=ShiftAndScale(scale=False, sites=("*.to_q", "conv_in"), steps="first")),
    dataclasses.replace(QVD, channels=ChannelBalancing(strength=0.33, sites=("temporal_attention",))),
    dataclasses.replace(QVD, overrides=(Override("a", None, None), Override("b", 8, None), Override("c", None, None))),
]
EVERY = [*RECIPES.values(), *(named(recipe) for recipe in CUSTOM)]


class Page:
    """The controls, and what each holds."""

    def __init__(self) -> None:
        with gr.Blocks():
            self.weights, self.inputs = WeightControls(), InputControls()
            self.temporal, self.channels = TemporalControls(), ChannelControls()
            self.exceptions = ExceptionControls()
        self.groups: list[Any] = [self.weights, self.inputs, self.temporal, self.channels, self.exceptions]
        self.values = {control: control.value for group in self.groups for control in group.inputs}
        self.visible = {part: part.visible for group in self.groups for part in group.outputs}

    def show(self, recipe: Recipe) -> None:
        for group in self.groups:
            updates = group.show(recipe)
            assert set(updates) | set(group.explain(recipe, None)) <= set(group.outputs)
            for part, update in updates.items():
                change = update if isinstance(update, dict) else {"value": update}
                self.visible[part] = change.get("visible", self.visible[part])
                if part in self.values and "value" in change:
                    self.values[part] = change["value"]

    def read(self, current: Recipe) -> Recipe:
        return read(self.groups, self.values, current)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


@pytest.mark.parametrize(("before", "recipe"), [*pairwise(EVERY), *pairwise(EVERY[::-1])], ids=lambda r: r.name)
def test_what_is_shown_is_read_back_whole(page: Page, before: Recipe, recipe: Recipe) -> None:
    page.show(before)
    page.show(recipe)
    assert page.read(recipe) == recipe


EDITS: list[tuple[str, str, Any, str]] = [
    ("weights", "bits", 3, "weights"),
    ("weights", "grid", "symmetric", "weights"),
    ("weights", "on", False, "weights"),
    ("inputs", "bits", 5, "activations"),
    ("inputs", "range", "static_per_step", "activations"),
    ("inputs", "search", "percentile", "activations"),
    ("inputs", "grid", "symmetric", "activations"),
    ("inputs", "on", False, "activations"),
    ("temporal", "choice", "none", "temporal"),
    ("temporal", "choice", "tabulated", "temporal"),
    ("temporal", "choice", "temporal_block", "temporal"),
    ("temporal", "form", "H2", "temporal"),
    ("temporal", "port", True, "temporal"),
    ("temporal", "sign_inside", False, "temporal"),
    ("temporal", "searched", False, "temporal"),
    ("temporal", "weight", 0.1, "temporal"),
    ("temporal", "radius", 4, "temporal"),
    ("temporal", "centred", True, "temporal"),
    ("channels", "choice", "none", "channels"),
    ("channels", "choice", "os_plus", "channels"),
    ("channels", "choice", "balancing", "channels"),
    ("channels", "parts", "shift", "channels"),
    ("channels", "steps", "first", "channels"),
    ("channels", "split", True, "split_shortcuts"),
    ("exceptions", "exempt", ["conv_in"], "overrides"),
]


@pytest.mark.parametrize(("group", "control", "value", "field"), EDITS, ids=[f"{e[1]}-{e[2]}" for e in EDITS])
def test_one_edit_changes_one_field(page: Page, group: str, control: str, value: Any, field: str) -> None:
    page.show(QVD)
    page.values[getattr(getattr(page, group), control)] = value
    changed = page.read(QVD)
    fields = [f.name for f in dataclasses.fields(Recipe) if getattr(changed, f.name) != getattr(QVD, f.name)]
    assert fields in (["name", field], [field, "name"])


@pytest.mark.parametrize(("group", "control", "value", "field"), EDITS, ids=[f"{e[1]}-{e[2]}" for e in EDITS])
def test_a_control_is_not_sent_what_it_holds(page: Page, group: str, control: str, value: Any, field: str) -> None:
    """Sent back, it would undo what a person has done since."""
    page.show(QVD)
    page.values[getattr(getattr(page, group), control)] = value
    changed = page.read(QVD)
    updates = {part: update for one in page.groups for part, update in one.show(changed).items()}
    sent = news(updates, page.values)
    assert not [part for part in page.values if part in sent and not set(sent[part]) <= {"__type__", "visible"}]


def test_what_no_recipe_describes_is_sent_back(page: Page) -> None:
    page.show(QVD)
    page.values[page.temporal.radius] = None
    sent = news(page.temporal.show(page.read(QVD)), page.values)
    assert sent[page.temporal.radius] == 2
    page.values[page.channels.choice] = "os_plus"
    page.values[page.channels.sites] = ["temporal_attention"]
    sent = news(page.channels.show(page.read(QVD)), page.values)
    assert sent[page.channels.choice] == "scri"
    assert sent[page.channels.sites]["value"] == ["*"]


def test_what_an_edit_means(page: Page) -> None:
    page.show(get_recipe("minmax-w8a8"))
    page.values[page.inputs.range] = "dynamic_per_token"
    assert page.read(get_recipe("minmax-w8a8")) is get_recipe("dynamic-w8a8")
    page.show(get_recipe("qvd-base-w4a4"))
    page.values[page.temporal.choice] = "htdq"
    page.values[page.channels.choice] = "scri"
    assert page.read(get_recipe("qvd-base-w4a4")) is get_recipe("qvd-w4a4")
    page.values[page.channels.parts] = "scale"
    assert page.read(get_recipe("qvd-base-w4a4")).channels == ShiftAndScale(shift=False)


def test_a_token_has_no_search_to_keep(page: Page) -> None:
    """Its range is found as it arrives, so a search left over from before must not make another recipe of it."""
    page.show(get_recipe("mse-w8a8"))
    page.values[page.inputs.range] = "dynamic_per_token"
    changed = page.read(get_recipe("mse-w8a8"))
    assert changed.activations == ActivationFormat(8, "dynamic_per_token")
    page.show(changed)
    assert not page.visible[page.inputs.search]
    page.values[page.inputs.range] = "static_per_tensor"
    assert page.read(changed) is get_recipe("mse-w8a8")


def test_details_survive_a_method_switched_off_and_on(page: Page) -> None:
    custom = dataclasses.replace(QVD, temporal=HTDQ(form="H2", radius=7))
    page.show(custom)
    page.values[page.temporal.choice] = "none"
    off = page.read(custom)
    page.show(off)
    assert not page.visible[page.temporal.details]
    page.values[page.temporal.choice] = "htdq"
    assert page.read(off).temporal == custom.temporal


def test_scri_leads_to_all_layers_and_back(page: Page) -> None:
    """Other layers narrowed to temporal attention are SCRI; choosing the other method again must still do something."""
    recipe = dataclasses.replace(QVD, channels=ShiftAndScale(sites=("*",)))
    page.show(recipe)
    page.values[page.channels.sites] = ["temporal_attention"]
    scri = page.read(recipe)
    assert scri == QVD
    page.show(scri)
    assert not page.visible[page.channels.sites]
    page.values[page.channels.choice] = "os_plus"
    assert page.read(scri).channels == ShiftAndScale(sites=("*",))


def test_an_emptied_number_changes_nothing(page: Page) -> None:
    recipe = named(dataclasses.replace(QVD, temporal=HTDQ(coefficient=0.3, discriminability_weight=2.0, radius=3)))
    page.show(recipe)
    for number in (page.temporal.coefficient, page.temporal.weight, page.temporal.radius):
        page.values[number] = None
    assert page.read(recipe) == recipe


@pytest.mark.parametrize(
    ("recipe", "group", "control", "value", "message"),
    [
        (QVD, "temporal", "radius", 0, "radius = 0 is out of range"),
        (QVD, "temporal", "weight", -1, "discriminability_weight = -1 is out of range"),
        (
            dataclasses.replace(QVD, temporal=HTDQ(coefficient=1.0)),
            "temporal",
            "coefficient",
            0,
            "leaves a single level",
        ),
        (get_recipe("os-plus-w8a8"), "channels", "sites", [], "names no roles"),
    ],
    ids=["radius", "weight", "coefficient", "no-sites"],
)
def test_impossible_values_are_refused_with_the_reason(
    page: Page, recipe: Recipe, group: str, control: str, value: Any, message: str
) -> None:
    page.show(recipe)
    page.values[getattr(getattr(page, group), control)] = value
    with pytest.raises(RecipeError, match=message):
        page.read(recipe)


def test_only_what_matters_is_visible(page: Page) -> None:
    temporal, channels, inputs = page.temporal, page.channels, page.inputs
    page.show(get_recipe("minmax-w8a8"))
    hidden = (temporal.details, channels.parts, channels.sites, channels.strength, channels.details)
    assert not any(page.visible[part] for part in hidden)
    assert page.visible[inputs.search]
    page.show(QVD)
    assert page.visible[temporal.details]
    assert (page.visible[temporal.coefficient], page.visible[temporal.search]) == (False, True)
    assert (page.visible[channels.parts], page.visible[channels.sites]) == (True, False)
    page.show(dataclasses.replace(QVD, temporal=HTDQ(coefficient=2.0), channels=ChannelBalancing()))
    assert (page.visible[temporal.coefficient], page.visible[temporal.search]) == (True, False)
    assert (page.visible[channels.parts], page.visible[channels.sites]) == (False, True)
    assert page.visible[channels.strength]
    page.show(dataclasses.replace(QVD, temporal=HTDQ(port=True)))
    assert not page.visible[temporal.own]
    page.show(Recipe("nothing", None, None))
    assert not page.visible[inputs.details]
    assert not page.visible[page.weights.details]


def test_the_words_beside_the_controls_belong_to_the_recipe(page: Page, model: VideoModel) -> None:
    words = page.inputs.explain(QVD, model) | page.temporal.explain(QVD, model) | page.channels.explain(QVD, model)
    texts = [words[group.words] for group in (page.inputs, page.temporal, page.channels)]
    for text, part in zip(texts, ("frames of a clip one by one", "HTDQ rounds them", "SCRI moves"), strict=True):
        assert part in text
    listing = page.exceptions.explain(QVD, model)[page.exceptions.listing]
    assert "<td>last_layer</td><td>8</td><td>float</td>" in listing
    hostile = dataclasses.replace(QVD, overrides=(Override("<script>", 8, 8),))
    assert "<script>" not in page.exceptions.explain(hostile, model)[page.exceptions.listing]


def test_exceptions_are_added_and_removed_without_losing_a_method() -> None:
    changed = with_exception(QVD, "temporal_attention", 8, 0)
    assert changed.overrides[-1] == Override("temporal_attention", 8, None)
    assert without_exception(named(changed), "temporal_attention").overrides == QVD.overrides
    assert named(without_exception(changed, "temporal_attention")) is QVD
    bare = without_exceptions(changed)
    assert (bare.overrides, bare.temporal, bare.channels) == ((), QVD.temporal, QVD.channels)
    with pytest.raises(RecipeError, match="names a role or a module path"):
        with_exception(QVD, None, 8, 8)
