"""Two grids for temporal features against what the library does with them, value by value."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from analysis.htdq import HTDQTable, Quantized, htdq_table, in_words
from analysis.temporal import cosine_similarity
from qvd_core.calibration.temporal_features import temporal_features
from qvd_core.errors import CalibrationError
from qvd_core.formats import HTDQ
from qvd_core.methods.htdq import composite_k, search_coefficient, td_score
from qvd_core.models.loader import VideoModel
from qvd_core.quantizers import logarithmic, uniform
from qvd_core.recipe import get_recipe
from qvd_core.variant import quantize

STEPS = 7
METHODS = {
    "plain": HTDQ(),
    "wide-and-centred": HTDQ(radius=3, centred=True, discriminability_weight=0.25),
    "H2": HTDQ(form="H2"),
    "H3": HTDQ(form="H3"),
    "sign-outside": HTDQ(sign_inside=False),
    "fixed": HTDQ(coefficient=0.8),
    "port": HTDQ(port=True),
    "port-with-a-coefficient": HTDQ(port=True, coefficient=4.0),
}


@pytest.fixture(scope="module")
def features(model: VideoModel) -> torch.Tensor:
    return temporal_features(model, STEPS).values


def log_grid_by_hand(table: HTDQTable, features: torch.Tensor) -> logarithmic.LogGrid:
    method, absmax = table.method, features.abs().max()
    if method.port:
        return logarithmic.port_grid(absmax, table.bits)
    alpha = torch.tensor(table.coefficient, dtype=torch.float64)
    return logarithmic.log_grid(absmax, alpha, table.bits, method.form, method.sign_inside)


def both(table: HTDQTable, features: torch.Tensor) -> list[tuple[Quantized, torch.Tensor, torch.Tensor]]:
    """(what the table says, codes, values) on either grid."""
    flat = uniform.affine_grid(features.min(), features.max(), table.bits)
    log = log_grid_by_hand(table, features)
    return [
        (table.uniform, uniform.quantize(features, flat), uniform.fake_quantize(features, flat)),
        (table.logarithmic, logarithmic.quantize(features, log), logarithmic.fake_quantize(features, log)),
    ]


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_errors_and_scores_are_those_of_the_rounded_values(
    model: VideoModel, features: torch.Tensor, method: HTDQ, bits: int
) -> None:
    table = htdq_table(model, STEPS, bits, method)
    x = features.double().numpy()
    np.testing.assert_array_equal(table.values, features.numpy())
    np.testing.assert_array_equal(table.similarity, cosine_similarity(features.numpy()))
    centre = features.double().mean(0) if method.centred else None
    assert table.td_score == float(td_score(features, method.radius, centre))
    for said, codes, values in both(table, features):
        y = values.double().numpy()
        assert said.l2 == pytest.approx(((y - x) ** 2).sum() / (x**2).sum())
        assert said.td_score == pytest.approx(float(td_score(values, method.radius, centre)), abs=1e-12)
        weight = method.discriminability_weight
        assert said.k == pytest.approx(float(composite_k(features, values, weight, method.radius, method.centred)))
        loss = max(0.0, 1 - said.td_score / table.td_score)
        assert said.k == pytest.approx(said.l2 + weight * loss)
        assert said.zeros == np.mean(y == 0)
        assert said.repeated == np.mean(codes[1:].numpy() == codes[:-1].numpy())
        np.testing.assert_array_equal(said.similarity, cosine_similarity(values.numpy()))


@pytest.mark.parametrize("bits", [3, 8, 16])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_value_is_counted_at_the_level_it_becomes(
    model: VideoModel, features: torch.Tensor, method: HTDQ, bits: int
) -> None:
    table = htdq_table(model, STEPS, bits, method)
    for said, _, values in both(table, features):
        assert said.use.sum() == features.numel()
        assert said.use.shape == said.levels.shape
        assert said.used == len(values.unique())
        assert (np.diff(said.levels) >= 0).all()  # the port's smallest levels are all zero in fp32
        for level, count in zip(*values.unique(return_counts=True), strict=True):
            assert said.use[said.levels == level.item()].sum() == count
    assert len(table.uniform.use) == 2**bits
    if bits < 16 and not method.port:
        assert len(table.logarithmic.use) == 2 ** (bits + (not method.sign_inside)) - 1


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_stairs_are_those_of_the_quantizers(model: VideoModel, features: torch.Tensor, method: HTDQ) -> None:
    table = htdq_table(model, STEPS, 4, method)
    x = torch.from_numpy(table.stairs[0])
    flat = uniform.affine_grid(features.min(), features.max(), 4)
    np.testing.assert_array_equal(table.stairs[1], uniform.fake_quantize(x, flat).numpy())
    log = log_grid_by_hand(table, features)
    np.testing.assert_array_equal(table.stairs[2], logarithmic.fake_quantize(x, log).numpy())
    assert (np.diff(table.stairs, axis=1) >= 0).all()
    assert x[0] <= features.min()
    assert x[-1] >= features.max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["plain", "wide-and-centred", "H2", "H3", "sign-outside"])
def test_the_coefficient_is_the_one_the_library_finds(
    model: VideoModel, features: torch.Tensor, name: str, bits: int
) -> None:
    method = METHODS[name]
    table = htdq_table(model, STEPS, bits, method)
    found = search_coefficient(
        features,
        bits,
        form=method.form,
        sign_inside=method.sign_inside,
        radius=method.radius,
        weight=method.discriminability_weight,
        centred=method.centred,
    )
    assert table.coefficient == found.coefficient
    assert table.logarithmic.k == pytest.approx(float(found.k.min()))
    columns = table.columns()
    for column, expected in (("coefficient", found.coefficients), ("l2", found.l2), ("td_score", found.td_score)):
        np.testing.assert_array_equal(columns[column], expected.numpy())
    np.testing.assert_allclose(columns["k"], found.k.numpy(), rtol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.05, 10.0])
def test_a_search_is_weighed_anew_without_another(model: VideoModel, features: torch.Tensor, weight: float) -> None:
    table = htdq_table(model, STEPS, 4, HTDQ(discriminability_weight=weight))
    assert table.coefficient == search_coefficient(features, 4, weight=weight).coefficient


def test_the_coefficient_is_the_one_of_the_variant(model: VideoModel, statistics) -> None:
    variant = quantize(model, get_recipe("qvd-w8a8"), statistics)
    table = htdq_table(model, statistics.run.steps, 8, HTDQ())
    assert table.coefficient == variant.coefficients[8].coefficient


def test_a_fixed_coefficient_is_shown_beside_the_search(model: VideoModel, features: torch.Tensor) -> None:
    table = htdq_table(model, STEPS, 8, METHODS["fixed"])
    assert table.coefficient == 0.8
    assert table.search is not None
    assert table.search.coefficient == search_coefficient(features, 8).coefficient


@pytest.mark.parametrize("name", ["port", "port-with-a-coefficient"])
def test_the_port_has_no_search_and_no_coefficient_but_one(model: VideoModel, name: str) -> None:
    table = htdq_table(model, STEPS, 8, METHODS[name])
    assert table.search is None
    assert table.coefficient == 1
    made = table.logarithmic
    columns = {name: column.tolist() for name, column in table.columns().items()}
    assert columns == {"coefficient": [1.0], "k": [made.k], "l2": [made.l2], "td_score": [made.td_score]}


@pytest.mark.parametrize("name", ["plain", "port"])
def test_columns_are_of_one_length(model: VideoModel, name: str) -> None:
    table = htdq_table(model, STEPS, 5, METHODS[name])
    for columns in (table.columns(), table.stairs_columns().columns(), table.use_columns().columns()):
        assert len({len(column) for column in columns.values()}) == 1
    use = table.use_columns().columns()
    assert sum(use["values"]) == 2 * table.values.size
    of_uniform = [level for grid, level in zip(use["grid"], use["level"], strict=True) if grid == "uniform"]
    np.testing.assert_array_equal(of_uniform, table.uniform.levels)


def test_a_single_step_has_no_neighbours(model: VideoModel) -> None:
    table = htdq_table(model, 1, 8, HTDQ())
    assert np.isnan(table.uniform.repeated)
    assert table.td_score == 0


def test_a_model_without_temporal_features_says_so(wan: VideoModel) -> None:
    with pytest.raises(CalibrationError, match="no layers known to take temporal features"):
        htdq_table(wan, 2, 8, HTDQ())


def test_the_words_carry_the_numbers(model: VideoModel) -> None:
    table = htdq_table(model, STEPS, 4, HTDQ())
    flat, log = table.uniform, table.logarithmic
    text = in_words(table)
    assert f"rounds {flat.zeros:.1%} of the values to zero and uses {flat.used} of its 16 codes" in text
    assert f"coefficient {table.coefficient:.3g}, {log.zeros:.1%} and {log.used} of 15." in text
    assert f"{flat.l2:.2g} uniform, {log.l2:.2g} HiDi-TQ" in text
    assert f"{flat.td_score:.3g} and {log.td_score:.3g}." in text
    assert "nan" not in in_words(dataclasses.replace(table, search=None))
