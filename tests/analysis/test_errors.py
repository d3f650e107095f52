"""Tables of measured errors against the measurements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.errors import ErrorGrowth, error_growth_table, output_error_map, worst_sites
from analysis.site_map import SiteMap
from qvd_core.causes import error_growth
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import get_recipe
from qvd_core.sampling import Settings
from qvd_core.site_error import site_errors
from qvd_core.variant import quantize

FOUND = {"weights": (0.1, 0.2), "layer inputs": (0.05, 0.4), "time path": (0.0, 0.01), "all of it": (0.2, 0.5)}


def test_growth_is_what_was_measured(model: VideoModel, settings: Settings) -> None:
    found = error_growth(model, get_recipe("dynamic-w4a4"), settings)
    table = error_growth_table("dynamic-w4a4", found)
    assert table.parts == ("weights", "layer inputs", "time path", "all of it")
    np.testing.assert_allclose(table.errors, [found[part] for part in table.parts], rtol=1e-6)
    columns = table.columns()
    assert list(columns) == ["part", "step", "latent_error"]
    for part, step, error in zip(*columns.values(), strict=True):
        assert error == pytest.approx(found[part][step - 1], rel=1e-6)
    assert len(columns["part"]) == 4 * settings.steps


def test_output_errors_are_what_was_measured(model: VideoModel, settings: Settings) -> None:
    found = site_errors(quantize(model, get_recipe("dynamic-w4a4")), settings)
    table = output_error_map(found)
    assert (table.metric, table.sites) == ("output_error", tuple(found))
    for site, row in zip(table.sites, table.values, strict=True):
        np.testing.assert_array_equal(row, found[site].numpy())
    sites, means = worst_sites(table, 3)
    by_mean = sorted(found, key=lambda site: -float(found[site].mean()))
    assert sites == by_mean[:3]
    np.testing.assert_allclose(means, [float(found[site].mean()) for site in sites], rtol=1e-5)


def test_growth_in_words_names_the_worst_part() -> None:
    text = error_growth_table("some-recipe", FOUND).in_words()
    assert text.startswith("After the last step the latents of some-recipe are off by 50.0% of their size.")
    assert "Each part alone: weights 20.0%, layer inputs 40.0%, time path 1.0%." in text
    assert text.endswith("Most of it comes from the layer inputs.")


@pytest.mark.parametrize(
    "table",
    [ErrorGrowth("x", ("all of it",), np.array([[0.5]])), ErrorGrowth("x", ("weights", "all of it"), np.zeros((2, 1)))],
    ids=["whole-alone", "no-error"],
)
def test_nothing_is_blamed_where_nothing_is_known(table: ErrorGrowth) -> None:
    assert table.in_words() == f"After the last step the latents of x are off by {table.errors[-1, -1]:.1%}."


def test_the_worst_layers_are_ordered_and_undefined_steps_do_not_count() -> None:
    values = np.array([[0.1, 0.1], [0.3, np.nan], [0.2, 0.2], [0.2, 0.2], [np.inf, 0.05]])
    sites, means = worst_sites(SiteMap("output_error", ("a", "b", "c", "d", "e"), values), 4)
    assert sites == ["b", "c", "d", "a"]
    np.testing.assert_allclose(means, [0.3, 0.2, 0.2, 0.1])


def test_half_precision_errors_become_numbers_for_the_page() -> None:
    table = output_error_map({"a": torch.tensor([0.5, 0.25], dtype=torch.bfloat16)})
    assert table.values.dtype == np.float32
    assert table.values.tolist() == [[0.5, 0.25]]
