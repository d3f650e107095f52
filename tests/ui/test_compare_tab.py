"""What the Compare tab says beside the clips: Python that does the same."""

from __future__ import annotations

import dataclasses

import pytest

from qvd_core.formats import HTDQ, ChannelBalancing, ShiftAndScale
from qvd_core.recipe import Recipe, get_recipe
from ui.compare_tab import _snippet
from ui.naming import named

QVD = get_recipe("qvd-w4a8")
CUSTOM = [
    named(dataclasses.replace(QVD, temporal=HTDQ(form="H2", coefficient=0.5))),
    named(dataclasses.replace(QVD, channels=ShiftAndScale(sites=("a.*", "b")), split_shortcuts=True)),
    named(dataclasses.replace(get_recipe("dynamic-w8a8"), channels=ChannelBalancing())),
]


@pytest.mark.parametrize("engine", ["simulate", "int8"])
@pytest.mark.parametrize(
    "recipe", [QVD, get_recipe("tabulated-w8a8"), get_recipe("dynamic-w8a8"), *CUSTOM], ids=lambda r: r.name
)
def test_the_snippet_makes_the_recipe_and_calibrates_if_it_must(recipe: Recipe, engine: str) -> None:
    lines = _snippet("animatediff-mini", recipe, "a 'red\\' circle", 3, 25, 4, engine).splitlines()
    code = next(line for line in lines if line.startswith("recipe = "))
    made = eval(code.removeprefix("recipe = "), {"Recipe": Recipe, "get_recipe": get_recipe})
    assert made == recipe
    building = next(line for line in lines if line.startswith("variant = "))
    assert ("calibrate(" in building) is recipe.needs_statistics
    assert ("variant = in_integers(variant)" in lines) is (engine == "int8")
    assert "" in lines[1:2]
    assert lines.count("") == 1
    compile("\n".join(lines), "snippet", "exec")
