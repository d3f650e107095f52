"""The models known by name: complete specs, and an embedded model that fits its own."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qvd_core.errors import ModelError
from qvd_core.models.catalog import ASSETS, CATALOG, get_spec
from qvd_core.shapeworld.scene import parse_caption

every_spec = pytest.mark.parametrize("spec", CATALOG.values(), ids=CATALOG)


def test_names_are_keys():
    assert all(name == spec.name for name, spec in CATALOG.items())


@every_spec
def test_specs_are_complete(spec):
    assert spec.title.strip()
    assert min(spec.frames, spec.height, spec.width, spec.steps, spec.fps) > 0
    assert spec.height % 8 == spec.width % 8 == 0
    assert spec.guidance_scale > 0
    assert spec.example_prompts
    assert all(prompt.strip() for prompt in spec.example_prompts)
    assert len(set(spec.example_prompts)) == len(spec.example_prompts)
    assert hash(dataclasses.replace(spec)) == hash(spec)


@every_spec
def test_sources_are_folders_of_the_project_or_hub_ids_with_a_revision(spec):
    if spec.embedded:
        assert spec.source.startswith(str(ASSETS))
        assert spec.revision is None
    else:
        owner, name = spec.source.split("/")
        assert owner
        assert name
        assert spec.revision


def test_embedded_model_speaks_the_language_of_its_world():
    prompts = CATALOG["animatediff-mini"].example_prompts
    assert [prompt for prompt in prompts if parse_caption(prompt) is None] == []


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError) as caught:
        get_spec("animatediff")
    assert "'animatediff'" in str(caught.value)
    assert all(name in str(caught.value) for name in CATALOG)


def test_specs_can_be_written_as_json():
    for spec in CATALOG.values():
        assert json.loads(json.dumps(dataclasses.asdict(spec)))["name"] == spec.name
