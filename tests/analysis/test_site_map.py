"""The map of all layers by all steps, each metric by hand from what calibration saw."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from analysis.channels import channel_table
from analysis.errors import output_error_map
from analysis.site_map import METRICS, SiteMap, in_words, site_map, site_overview
from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import TIME_PATH
from tests.analysis.conftest import RawInputs

FORMS = {"affine": ActivationFormat(4), "symmetric": ActivationFormat(4, symmetric=True)}


@pytest.fixture(scope="module")
def sites(model: VideoModel) -> tuple[str, ...]:
    return tuple(site.name for site in model.sites)


def by_hand(metric: str, statistics: Statistics, site: str, step: int, form: ActivationFormat) -> float:
    low, high = (e[site].double().numpy() for e in (statistics.low, statistics.high))
    bottom, top = min(low.min(), 0.0), max(high.max(), 0.0)
    if form.symmetric:
        top = max(-bottom, top)
        bottom = -top
    widths = [b - a for a, b in zip(low[step], high[step], strict=True)]
    if metric == "coverage":
        return float(np.mean([width / (top - bottom) for width in widths]))
    if metric == "disparity":
        return max(widths) / float(np.median(widths)) if np.median(widths) > 0 else np.nan
    x = statistics.tokens[site][step].double().numpy().ravel()
    if metric == "skewness":
        return float(stats.skew(x))
    scale = (top - bottom) / (2**form.bits - 1 - form.symmetric)
    places = np.arange(2**form.bits - form.symmetric) - round(-bottom / scale)
    nearest = np.abs(x[:, None] - places * scale).min(1)
    return float((nearest**2).sum() / (x**2).sum())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("metric", METRICS)
def test_every_cell_is_what_it_says(
    statistics: Statistics, sites: tuple[str, ...], metric: str, form: ActivationFormat
) -> None:
    table = site_map(statistics, sites, metric, form)
    assert (table.metric, table.sites, table.values.shape) == (metric, sites, (len(sites), 2))
    expected = [[by_hand(metric, statistics, site, step, form) for step in range(2)] for site in sites]
    np.testing.assert_allclose(table.values, expected, rtol=2e-3, atol=1e-5)


def test_coverage_and_disparity_are_near_those_of_the_raw_activations(
    statistics: Statistics, raw: RawInputs, sites: tuple[str, ...]
) -> None:
    """Extremes of single steps are rounded outwards by less than 1/255 of a channel's range."""
    form = ActivationFormat(8)
    for metric, slack in (("coverage", 2 / 255), ("disparity", None)):
        values = site_map(statistics, sites, metric, form).values
        for row, site in enumerate(sites):
            everything = np.concatenate(raw.rows[site])
            span = max(everything.max(), 0) - min(everything.min(), 0)
            for step, x in enumerate(raw.rows[site]):
                widths = x.max(0) - x.min(0)
                if slack is not None:
                    true = (widths / span).mean()
                    assert true - 1e-6 <= values[row, step] <= true + slack
                elif np.median(widths) > 0.2 * np.median(everything.max(0) - everything.min(0)):
                    assert values[row, step] == pytest.approx(widths.max() / np.median(widths), rel=0.1)


def test_layers_that_read_one_tensor_have_one_row(statistics: Statistics, sites: tuple[str, ...]) -> None:
    block = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1"
    for metric in METRICS:
        table = site_map(statistics, sites, metric, ActivationFormat(8))
        q, k, v = (table.values[sites.index(f"{block}.{name}")] for name in ("to_q", "to_k", "to_v"))
        np.testing.assert_array_equal(q, k)
        np.testing.assert_array_equal(q, v)


def test_what_is_not_defined_is_nan(statistics: Statistics) -> None:
    zeros = torch.zeros(2, 3)
    silent = dataclasses.replace(statistics, low={"x": zeros}, high={"x": zeros}, tokens={"x": torch.zeros(2, 4, 1, 3)})
    for metric in ("disparity", "skewness", "error"):
        table = site_map(silent, ("x",), metric, ActivationFormat(8))
        assert np.isnan(table.values).all()
        assert in_words(table, {"x": "linear"})
    assert (site_map(silent, ("x",), "coverage", ActivationFormat(8)).values == 0).all()


def test_a_step_without_tokens_shows_those_of_the_last_one_before_it(statistics: Statistics) -> None:
    site = "conv_in"
    ends = (
        {site: torch.linspace(-1, -2, 5)[:, None].expand(5, 4)},
        {site: torch.linspace(1, 2, 5)[:, None].expand(5, 4)},
    )
    tokens = torch.randn(3, 4, 1, 4, generator=torch.Generator().manual_seed(0))
    sparse = dataclasses.replace(statistics, low=ends[0], high=ends[1], tokens={site: tokens}, token_stride=2)
    for metric in ("skewness", "error"):
        [row] = site_map(sparse, (site,), metric, ActivationFormat(8)).values
        assert row[0] == row[1] != row[2] == row[3] != row[4]
    [row] = site_map(sparse, (site,), "skewness", ActivationFormat(8)).values
    np.testing.assert_allclose(row[[0, 2, 4]], stats.skew(tokens.flatten(1).numpy(), axis=1), rtol=1e-4)


def test_columns_are_one_line_per_cell(statistics: Statistics, sites: tuple[str, ...]) -> None:
    table = site_map(statistics, sites, "error", ActivationFormat(8))
    columns = table.columns()
    assert list(columns) == ["site", "step", "error"]
    for site, step, value in zip(*columns.values(), strict=True):
        assert value == table.values[sites.index(site), step - 1]
    assert {len(column) for column in columns.values()} == {2 * len(sites)}


@pytest.mark.parametrize("step", [None, 1], ids=["all", "last"])
def test_the_overview_is_the_mean_of_each_channel_table(
    statistics: Statistics, sites: tuple[str, ...], step: int | None
) -> None:
    for row in site_overview(statistics, sites[::5], step):
        table = channel_table(statistics, row.site, ActivationFormat(8), step)
        assert row.channels == len(table.channel)
        assert row.mean == pytest.approx(float(table.coverage.mean()), rel=1e-5)
        assert row.least == pytest.approx(float(table.coverage.min()), rel=1e-5)
    assert [row.site for row in site_overview(statistics, sites, step)] == list(sites)


ROLES = {"a": "text_attention", "b": "text_attention", "c": "temporal_attention", "d": "linear", "t": "time_embedding"}
VALUES = [[0.1, 0.3], [0.2, 0.2], [0.5, 0.7], [0.9, 0.9], [0.01, 0.99]]


def words(metric: str, values: list[list[float]] = VALUES) -> str:
    return in_words(SiteMap(metric, tuple(ROLES), np.array(values, np.float32)), ROLES)


def test_the_words_name_the_roles_that_stand_out() -> None:
    assert words("coverage").startswith("Channels span least of their grid at text attention (20%) and temporal")
    assert "stands out most at linear (0.9) and temporal attention (0.6)," in words("disparity")
    assert "Rounding alone costs most at linear (0.9) and temporal attention (0.6)," in words("error")


def test_the_time_path_is_left_out_where_a_step_has_a_single_value() -> None:
    last = [[0.1, 0.3], [0.2, 0.2], [0.5, 0.7], [0.9, 0.9]]
    for metric, extreme in (("coverage", 0.0), ("disparity", 9.0)):
        assert "time" not in words(metric, [*last, [extreme, extreme]])
    for metric in ("skewness", "error", "output_error"):
        assert "time embedding (9)" in words(metric, [*last, [9.0, 9.0]])
    assert ROLES["t"] in TIME_PATH


def test_lopsided_to_the_left_is_lopsided_too() -> None:
    text = words("skewness", [[3.0, 3.0], [-3.0, -3.0], [-5.0, -5.0], [0.1, 0.1], [0.0, 0.0]])
    assert text.startswith("Inputs are most lopsided at temporal attention (5) and text attention (3),")


def test_undefined_values_do_not_count_in_the_words() -> None:
    nan = float("nan")
    values = [[nan, nan], [nan, 0.2], [0.6, nan], *VALUES[3:]]
    assert "linear (0.9) and temporal attention (0.6)," in words("error", values)


def test_measured_errors_have_words_too() -> None:
    table = output_error_map({"a": torch.tensor([0.1, 0.3]), "c": torch.tensor([0.01, 0.01])})
    assert in_words(table, ROLES).startswith("Layers by themselves err most at text attention (0.2) and temporal")
