"""The app through gradio_client, as a script would use it: the public endpoint, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qvd_core.models.catalog import CATALOG

pytestmark = pytest.mark.app
PROMPT = CATALOG["animatediff-mini"].example_prompts[0]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from gradio_client import Client

    from ui.studio import build

    demo = build()
    demo.queue()
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    demo.close()


def test_only_the_verb_of_the_product_is_public(client: Any) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/compare"}


def test_compare_scores_a_prompt(client: Any) -> None:
    fine = client.predict(PROMPT, "minmax-w8a8", steps=2, api_name="/compare")
    coarse = client.predict(PROMPT, "minmax-w4a4", steps=2, api_name="/compare")
    assert len(fine["latent_error"]) == 2
    assert len(fine["psnr_by_frame"]) == 16
    assert coarse["latent_error"][-1] > fine["latent_error"][-1] > 0


def test_recipes_of_methods_are_called_by_name(client: Any) -> None:
    scores = client.predict(PROMPT, "qvd-w8a8", steps=2, api_name="/compare")
    assert scores["recipe"]["temporal"]["method"] == "htdq"
    assert scores["recipe"]["channels"]["sites"] == ["temporal_attention"]
    assert 0 < scores["latent_error"][-1] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"prompt": PROMPT, "recipe": "w1a1"}, "Unknown recipe 'w1a1'"),
        ({"prompt": PROMPT, "steps": 0}, "steps = 0 is out of range"),
        ({"prompt": PROMPT, "seed": -1}, "seed = -1 is out of range"),
        ({"prompt": PROMPT, "steps": 500}, "steps = 500 is more than this server takes"),
        ({"prompt": PROMPT, "recipe": "tabulated-w8a8", "steps": 3}, "Set Steps to 25"),
        ({"prompt": PROMPT, "model": "nothing"}, "Unknown model 'nothing'; this server offers animatediff-mini"),
        ({"prompt": PROMPT, "model": "/etc"}, "Unknown model '/etc'"),
        ({"prompt": PROMPT, "model": "assets/models"}, "Unknown model 'assets/models'"),
        ({"prompt": PROMPT, "model": "animatediff-sd15"}, "Unknown model 'animatediff-sd15'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_requests_are_refused_with_the_reason(client: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        client.predict(**arguments, api_name="/compare")
