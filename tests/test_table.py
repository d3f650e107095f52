"""The table: means, intervals and distances against what they are by definition, and the three files."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from qvd_core.cost import site_costs
from qvd_core.evaluation import NOISE_FLOOR, REFERENCE, ClipResult
from qvd_core.metrics.frechet import frechet_distance, kernel_distance
from qvd_core.recipe import get_recipe
from qvd_core.table import COLUMNS, as_csv, as_markdown, tabulate, with_costs, write_table

RNG = np.random.default_rng(0)


def result(recipe: str, number: int, psnr_db: float | None = None, caption=None, features=None, **more) -> ClipResult:
    measures = {} if psnr_db is None else {"psnr_db": psnr_db}
    values = {"latent_error_by_step": (), "seconds": 1.0} | more
    return ClipResult(recipe, number, "p", number, measures, caption=caption, features=features or {}, **values)


def test_means_in_closed_form():
    read = [{"shape": True, "motion": False}, {"shape": True, "motion": True}]
    reference, quantized = tabulate(
        [
            result(REFERENCE, 0, caption=read[0], seconds=2.0),
            result("w4", 0, 10.0, read[0], latent_error_by_step=(0.1, 0.3), search_seconds=2.0),
            result(REFERENCE, 1, seconds=4.0),
            result("w4", 1, 13.0, latent_error_by_step=(0.3, 0.5), search_seconds=2.0),
            result("w4", 2, math.inf, read[1]),
        ]
    )
    assert (reference.recipe, reference.clips, quantized.recipe, quantized.clips) == (REFERENCE, 2, "w4", 3)
    assert "psnr_db" not in reference.estimates
    assert reference.caption == {"shape": 1.0, "motion": 0.0}
    assert reference.seconds_per_clip == 3.0
    # Identical clips have no finite PSNR and are left out of its mean.
    assert quantized.identical == 1
    assert (quantized.estimates["psnr_db"].value, quantized.estimates["psnr_db"].count) == (11.5, 2)
    assert quantized.estimates["caption"].value == pytest.approx(0.75)
    assert quantized.estimates["motion"].value == pytest.approx(0.5)
    assert quantized.psnr_by_clip == {0: 10.0, 1: 13.0}
    assert quantized.latent_error_by_step == pytest.approx((0.2, 0.4))
    assert quantized.search_seconds == 2.0


def test_the_interval_of_a_mean_is_two_standard_errors_to_either_side():
    values = RNG.normal(30, 2, 400)
    (row,) = tabulate([result("w4", n, float(v)) for n, v in enumerate(values)])
    estimate = row.estimates["psnr_db"]
    error = values.std(ddof=1) / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.value == pytest.approx(1.96 * error, rel=0.15)
    assert estimate.value - estimate.low == pytest.approx(1.96 * error, rel=0.15)


def test_two_clips_have_no_interval():
    (row,) = tabulate([result("w4", 0, 10.0), result("w4", 1, 12.0)])
    assert (row.estimates["psnr_db"].low, row.estimates["psnr_db"].high) == (None, None)


def test_distances_compare_a_recipes_clips_with_the_references_of_the_same_prompts():
    count = 12
    i3d, frames = RNG.normal(size=(2, count, 8)), RNG.normal(size=(2, count, 4, 6))
    results = [
        result(name, n, features={"i3d": i3d[k, n], "inception": frames[k, n]})
        for n in reversed(range(count))  # in any order
        for k, name in enumerate((REFERENCE, "w4"))
    ]
    reference, row = tabulate(results)
    assert "fvd" not in reference.estimates
    assert row.estimates["fvd"].value == pytest.approx(frechet_distance(*i3d))
    assert row.estimates["kvd"].value == pytest.approx(kernel_distance(*i3d, paired=True))
    flat = frames.reshape(2, -1, 6)
    assert row.estimates["frame_fid"].value == pytest.approx(frechet_distance(*flat))
    moments = [kernel_distance(frames[0, :, f], frames[1, :, f], paired=True) for f in range(4)]
    assert row.estimates["frame_kid"].value == pytest.approx(np.mean(moments))
    assert row.estimates["fvd"].low <= row.estimates["fvd"].value <= row.estimates["fvd"].high


def test_a_set_against_itself_has_no_distance():
    features = [{"i3d": RNG.normal(size=8)} for _ in range(6)]
    results = [result(name, n, features=f) for n, f in enumerate(features) for name in (REFERENCE, "same")]
    row = tabulate(results)[1]
    assert row.estimates["fvd"].value == pytest.approx(0, abs=1e-6)
    assert row.estimates["kvd"].value == pytest.approx(0, abs=1e-9)


def test_nothing_makes_no_rows():
    assert tabulate([]) == []


def test_costs_are_those_of_the_recipe(model, statistics):
    recipe = get_recipe("minmax-w4a8")
    rows = with_costs(tabulate([result(REFERENCE, 0), result(recipe.name, 0, 20.0)]), model, [recipe], statistics)
    costs = site_costs(model.sites, recipe, statistics.macs)
    assert rows[1].costs["weights, MB"] == sum(c.bytes_after for c in costs) / 1e6
    assert rows[1].costs["GBOPs per call"] == sum(c.bops_after for c in costs) / 1e9
    assert rows[0].costs["weights, MB"] == sum(c.bytes_before for c in costs) / 1e6
    assert rows[1].costs["calibration, s"] == statistics.run.seconds > 0
    assert rows[0].costs["calibration, s"] == 0


def test_three_files_tell_the_same(tmp_path):
    rows = tabulate([result("w4", n, 10.0 + n) for n in range(5)])
    write_table(rows, {"rows": 1}, tmp_path / "new" / "table.json")
    assert json.loads((tmp_path / "new" / "table.json").read_text()) == {"rows": 1}
    (line,) = csv.DictReader(io.StringIO((tmp_path / "new" / "table.csv").read_text()))
    estimate = rows[0].estimates["psnr_db"]
    assert (line["recipe"], line["clips"], float(line["psnr_db"])) == ("w4", "5", estimate.value)
    assert (float(line["psnr_db_low"]), float(line["psnr_db_high"])) == (estimate.low, estimate.high)
    assert line["ssim"] == ""
    head, _, row = (tmp_path / "new" / "table.md").read_text().splitlines()[:3]
    assert head == f"| recipe | clips | {COLUMNS['psnr_db']} |"
    assert row.startswith("| w4 | 5 | 12 ± ")


def test_few_clips_are_warned_of_only_where_it_matters():
    without = tabulate([result("w4", n, 10.0) for n in range(3)])
    assert NOISE_FLOOR not in as_markdown(without)
    features = [{"i3d": RNG.normal(size=8)} for _ in range(6)]
    few = tabulate([result(name, n, features=f) for n, f in enumerate(features) for name in (REFERENCE, "w4")])
    assert "mostly bias" in as_markdown(few)
    assert as_csv(few).count("\n") == 3
