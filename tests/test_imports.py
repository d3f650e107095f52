"""Who may import whom (ui -> analysis -> qvd_core, never back), and what importing costs."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# Top-level packages that no file of a package may import, at any depth of nesting.
FORBIDDEN = {
    "qvd_core": {"gradio", "gradio_client", "plotly", "matplotlib", "ui", "analysis", "training", "tests", "app"},
    "analysis": {"gradio", "gradio_client", "ui", "training", "tests", "app"},
    "ui": {"training", "tests", "app"},
    "training": {"gradio", "ui", "tests", "app"},
}
FILES = [path for package in FORBIDDEN for path in sorted((PROJECT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of everything `path` imports, inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_packages_import_only_what_lies_below_them(path):
    package = path.relative_to(PROJECT).parts[0]
    assert not imported(path) & FORBIDDEN[package]


def test_the_scan_sees_every_package():
    packages = {path.relative_to(PROJECT).parts[0] for path in FILES}
    assert packages == set(FORBIDDEN)


HEAVY = ["torch", "diffusers", "transformers", "matplotlib", "torchao", "skimage", "scipy"]
IMPORTS = {
    "qvd_core": [*HEAVY, "numpy", "gradio"],
    "qvd_core.recipe": [*HEAVY, "numpy", "gradio"],
    "qvd_core.models.catalog": [*HEAVY, "numpy", "gradio"],
    "qvd_core.cost": [*HEAVY, "numpy", "gradio"],
    "qvd_core.cli": [*HEAVY, "numpy", "gradio"],
    "app": ["torch", "diffusers", "matplotlib"],
    "ui.studio": ["torch", "diffusers", "matplotlib"],
}


@pytest.mark.parametrize(("module", "heavy"), IMPORTS.items(), ids=IMPORTS)
def test_importing_is_cheap(module, heavy):
    """The page and the help text must be there in seconds, so nothing heavy may come along."""
    code = f"import json, sys, {module}; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    child = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    assert json.loads(child.stdout.splitlines()[-1]) == []


def test_every_public_name_is_there():
    import qvd_core

    assert set(qvd_core.__all__) == set(qvd_core._HOMES)
    for name in qvd_core.__all__:
        assert getattr(qvd_core, name) is not None
    with pytest.raises(AttributeError, match="'qvd_core' has no attribute 'quantise'"):
        qvd_core.quantise  # noqa: B018


@pytest.mark.parametrize(("arguments", "code"), [(["models"], 0), (["compare", "--recipe", "no", "--prompt", "x"], 1)])
def test_the_program_runs_as_a_module(monkeypatch, capsys, arguments, code):
    monkeypatch.setattr(sys, "argv", ["qvd_core", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("qvd_core", run_name="__main__")
    assert ended.value.code == code
    captured = capsys.readouterr()
    assert bool(captured.out) is (code == 0)
    assert captured.err.startswith("error: Unknown recipe 'no'") is (code == 1)
