"""The table of roles against sums taken layer by layer."""

from __future__ import annotations

import pytest

from analysis.architecture import RoleRow, bits_in_words, block_of, by_role, in_words, total
from qvd_core.calibration.statistics import Statistics
from qvd_core.cost import site_costs
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import get_recipe

RECIPE = get_recipe("qvd-w4a6")


@pytest.fixture(scope="module")
def rows(model: VideoModel, statistics: Statistics) -> list[RoleRow]:
    return by_role(site_costs(model.sites, RECIPE, statistics.macs))


def test_every_row_adds_up_its_layers(model: VideoModel, statistics: Statistics, rows: list[RoleRow]) -> None:
    costs = {cost.site.name: cost for cost in site_costs(model.sites, RECIPE, statistics.macs)}
    whole = sum(site.parameters for site in model.sites)
    assert {row.role for row in rows} == {site.role for site in model.sites}
    for row in rows:
        sites = [site for site in model.sites if site.role == row.role]
        own = [costs[site.name] for site in sites]
        assert row.layers == len(sites)
        assert row.parameters == sum(site.parameters for site in sites)
        assert row.share == pytest.approx(row.parameters / whole)
        assert row.bytes_before == 2 * row.parameters
        assert row.bytes_after == sum(cost.bytes_after for cost in own)
        assert row.bops_before == sum(statistics.macs[site.name] * 16 * 16 for site in sites)
        formats = [RECIPE.formats(site.name, site.role) for site in sites]
        assert set(row.weight_bits) == {weights and weights.bits for weights, _ in formats}
        assert set(row.activation_bits) == {inputs and inputs.bits for _, inputs in formats}


def test_the_largest_role_comes_first_and_the_total_adds_all_up(model: VideoModel, rows: list[RoleRow]) -> None:
    sizes = [row.parameters for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    everything = total(rows)
    assert everything.role == "all"
    assert everything.layers == len(model.sites)
    assert everything.share == pytest.approx(1)
    assert everything.bops_after == sum(row.bops_after or 0 for row in rows)
    assert everything.weight_bits == (4, 8)
    assert everything.activation_bits == (6, 8, None)  # of the last layer, whose input stays as it is


def test_what_is_not_known_before_calibration_is_not_made_up(model: VideoModel) -> None:
    rows = by_role(site_costs(model.sites, RECIPE, None))
    assert {row.bops_before for row in rows} == {row.bops_after for row in [*rows, total(rows)]} == {None}


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [(9844688, "", "9.84 M"), (9844688, "B", "9.84 MB"), (999, "", "999"), (12, "B", "12 B"), (1e12, "", "1 T")],
)
def test_large_numbers_for_humans(count: float, unit: str, text: str) -> None:
    assert in_words(count, unit) == text


def test_bits_for_humans() -> None:
    assert [bits_in_words(bits) for bits in ((4,), (4, 8), (None,), (4, None))] == ["4", "4, 8", "float", "4, float"]


def test_a_layer_is_in_the_first_numbered_part_of_its_path() -> None:
    assert block_of("up_blocks.1.motion_modules.0.proj_in") == "up_blocks.1"
    assert block_of("mid_block.attentions.0.proj_in") == "mid_block"
    assert block_of("time_embedding.linear_1") == "time_embedding"
    assert block_of("conv_in") == "conv_in"
