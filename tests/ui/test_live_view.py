"""What a live view answers: to the page what it asks for, to anybody else a refusal and nothing more."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from analysis.drawing import Axis, Drawing, Line
from analysis.export import Columns
from qvd_core.errors import RecipeError
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from tests.ui.pages import asked, serving
from ui.live_view import LiveView, Shown, figure_slot, finding, one_of, whole_number, words_slot
from ui.registry import Registry

X = np.arange(4, dtype=np.float32)
CURVE = Shown(Drawing(Axis("x"), Axis("y"), (Line(X, X**2),), alt_text="A curve"), Columns({"x": X, "y": X**2}))
SIGNATURES = {"pdf": b"%PDF-", "svg": b"<?xml", "png": b"\x89PNG", "csv": b"x,y\n"}


def answer(model: VideoModel, recipe: Recipe, choices: dict[str, Any]) -> dict[str, Shown | str]:
    number = whole_number(choices, "number", 0, 9)
    return {"sentence": finding(f"<{number}> of {model.spec.name} under {recipe.name}"), "curve": CURVE}


@pytest.fixture
def registry(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = serving(model)
    monkeypatch.setattr(made, "model", lambda source: pytest.fail("a question must not load a model"))
    return made


@pytest.fixture
def view(registry: Registry) -> LiveView:
    with gr.Blocks():
        return LiveView(registry, "curve-view", words_slot("sentence") + figure_slot("curve"), answer)


def test_an_answer_fills_the_slots_and_escapes_words(view: LiveView, model: VideoModel) -> None:
    slots = view.reply(asked(model, {"number": 3}, get_recipe("qvd-w4a8")))["slots"]
    assert slots["sentence"] == f'<p class="qvd-finding">&lt;3&gt; of {model.spec.name} under qvd-w4a8</p>'
    assert slots["curve"]["layout"]["meta"]["alt_text"] == "A curve"
    packed = base64.b64decode(slots["curve"]["data"][0]["y"]["bdata"])
    np.testing.assert_array_equal(np.frombuffer(packed, np.float32), X**2)
    json.dumps(slots, allow_nan=False)


@pytest.mark.parametrize("form", SIGNATURES)
def test_files_are_what_they_are_called(view: LiveView, model: VideoModel, form: str) -> None:
    file = view.download({**asked(model, {"number": 3}), "slot": "curve", "format": form})
    assert file["name"] == f"curve-view-curve.{form}"
    content = base64.b64decode(file["data"])
    assert content.startswith(SIGNATURES[form])
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        assert [float(row["y"]) for row in rows] == (X**2).tolist()


HOSTILE = [
    None,
    7,
    "answer_live",
    [],
    {},
    {"choices": {"number": 1}},
    {"choices": [1], "model": "tiny", "recipe": "recipe=minmax-w8a8"},
    {"choices": {"number": 1}, "model": None, "recipe": "recipe=minmax-w8a8"},
    {"choices": {"number": 1}, "model": ["tiny"], "recipe": "recipe=minmax-w8a8"},
    {"choices": {"number": 1}, "model": "/etc/passwd", "recipe": "recipe=minmax-w8a8"},
    {"choices": {"number": 1}, "model": "owner/name", "recipe": "recipe=minmax-w8a8"},
    {"choices": {"number": 1}, "model": "animatediff-mini", "recipe": "recipe=minmax-w8a8"},
    {"token": None},
    {"token": ["a"]},
    {"token": "guess"},
]


@pytest.mark.parametrize("question", HOSTILE, ids=repr)
def test_what_is_no_question_is_refused(view: LiveView, question: Any) -> None:
    for found in (view.reply(question), view.download(question)):
        assert set(found) == {"error"}
        assert str(Path(__file__).parents[2]) not in found["error"]
        assert "Traceback" not in found["error"]


BAD_RECIPES = [None, 5, "", "nope", "recipe=nope", "recipe=%FF%00", "recipe={", "recipe=" + "[" * 5000, ["recipe"]]


@pytest.mark.parametrize("recipe", BAD_RECIPES, ids=lambda value: repr(value)[:20])
def test_a_damaged_recipe_is_refused(view: LiveView, model: VideoModel, recipe: Any) -> None:
    assert set(view.reply({**asked(model, {"number": 1}), "recipe": recipe})) == {"error"}


def test_a_recipe_for_layers_the_model_has_not_is_refused(view: LiveView, model: VideoModel) -> None:
    recipe = get_recipe("minmax-w8a8").override("nowhere.*", None, None)
    assert "nowhere.*" in view.reply(asked(model, {"number": 1}, recipe))["error"]


@pytest.mark.parametrize("slot", [None, "sentence", "other", ["curve"], {"a": 1}])
@pytest.mark.parametrize("form", ["pdf", None, "exe", [], {"csv": 1}])
def test_only_figures_come_as_files(view: LiveView, model: VideoModel, slot: Any, form: Any) -> None:
    assert set(view.download({**asked(model, {"number": 1}), "slot": slot, "format": form})) == {"error"}
    assert set(view.download({**asked(model, {"number": 1}), "slot": "curve", "format": [form]})) == {"error"}


NO_NUMBERS = [None, True, "3", 1.5, math.nan, math.inf, -math.inf, 10**400, [], {}, -1, 10]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:12])
def test_only_whole_numbers_in_range_count(value: Any) -> None:
    with pytest.raises(RecipeError, match="number = "):
        whole_number({"number": value}, "number", 0, 9)


def test_numbers_in_range_are_taken() -> None:
    assert [whole_number({"n": value}, "n", 0, 9) for value in (0, 9, 4.0)] == [0, 9, 4]


@pytest.mark.parametrize("value", [None, 3, "c", ["a"], {"a": 1}])
def test_only_offered_words_count(value: Any) -> None:
    assert one_of({"word": "a"}, "word", ["a", "b"]) == "a"
    with pytest.raises(RecipeError, match="not one of a, b"):
        one_of({"word": value}, "word", ["a", "b"])


def test_results_are_kept_under_names_nobody_guesses_and_not_forever(registry: Registry) -> None:
    with gr.Blocks():
        view = LiveView(registry, "results", figure_slot("curve"))
    shown = [view.showing({"curve": CURVE}) for _ in range(20)]
    assert len({one["token"] for one in shown}) == 20
    assert all(len(one["token"]) >= 20 for one in shown)
    assert "data" in view.download({"token": shown[-1]["token"], "slot": "curve", "format": "csv"})
    assert "run it again" in view.download({"token": shown[0]["token"], "slot": "curve", "format": "csv"})["error"]
    # A view of results answers no questions.
    assert set(view.reply({"model": "tiny", "recipe": "recipe=minmax-w8a8", "choices": {}})) == {"error"}
