"""What the README tells a reader to type does work, as far as it takes no long run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_python_to_try():
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.splitlines()[-1][:30])
def test_python_in_the_readme_runs(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})


def test_files_the_readme_names_exist():
    listing = README.split("## What is where")[1].split("```")[1]
    folder = Path()
    for line in listing.strip().splitlines():
        indented = line.startswith(" ")
        leading = re.match(r"\s*((?:\w+(?:\.py|/)\s*)*)", line)
        names = leading[1].split() if leading else []
        if not indented and names:
            folder = Path(names[0]) if names[0].endswith("/") else Path()
        for name in names:
            path = Path(__file__).parents[1] / (folder / name if indented else name)
            assert path.exists(), f"{name} in {folder}"
