"""Importing a view is cheap: plotting libraries come when something is plotted, gradio never."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for path in (PROJECT / "analysis").rglob("*.py")
)


def imported(modules: list[str], looked_for: list[str]) -> list[str]:
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps([m for m in {looked_for!r} if m in sys.modules]))"
    child = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])


def test_all_views_together_import_no_plotting_and_no_gradio() -> None:
    assert {"analysis.figures.channels", "analysis.paper", "analysis.screen"} < set(MODULES)
    assert imported(MODULES, ["plotly", "matplotlib", "gradio", "diffusers", "transformers"]) == []


@pytest.mark.parametrize(
    "modules",
    [
        ["analysis.drawing", "analysis.export", "analysis.memory"],
        ["analysis.screen", "analysis.paper"],
        ["analysis.methods"],
    ],
    ids=" ".join,
)
def test_what_draws_imports_no_torch(modules: list[str]) -> None:
    assert imported(modules, ["torch", "scipy"]) == []


def test_the_page_imports_no_plotting_and_no_networks() -> None:
    assert imported(["app", "ui.studio"], ["torch", "diffusers", "matplotlib", "plotly"]) == []
