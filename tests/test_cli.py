"""The command line, run in this process on the tiny model: files, JSON, exit codes, messages."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import imageio.v2 as imageio
import pytest

from qvd_core import __version__
from qvd_core.allocation import allocate as library_allocate
from qvd_core.calibration.statistics import Statistics
from qvd_core.cli import main
from qvd_core.engines import cpu_int8
from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import RECIPES, Recipe, get_recipe
from qvd_core.sampling import generate
from qvd_core.scores import compare
from qvd_core.sensitivity import proxy_sensitivity
from qvd_core.variant import quantize

CAPTION = "a red circle moving left on a striped gray background"
needs_int8 = pytest.mark.skipif(bool(cpu_int8.unavailable()), reason=str(cpu_int8.unavailable()))
COMMANDS = ("models", "generate", "calibrate", "export", "compare", "errors", "allocate", "evaluate", "benchmark")


@pytest.fixture
def tiny(tiny_folder) -> list[str]:
    return ["--model", str(tiny_folder), "--device", "cpu"]


@pytest.fixture
def clip(tiny) -> list[str]:
    """Options for the clip that the fixture `settings` describes."""
    return [*tiny, "--prompt", CAPTION, "--steps", "2", "--frames", "4"]


@pytest.fixture
def statistics_file(statistics, tmp_path) -> Path:
    statistics.save(tmp_path / "given.safetensors")
    return tmp_path / "given.safetensors"


def strict_json(text: str):
    """As a browser reads it: without NaN and Infinity."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def frames_of(path: Path) -> int:
    with imageio.get_reader(path) as reader:
        return len(list(reader.iter_data()))


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=lambda c: c[0] if c else "qvd_core")
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m qvd_core")
    assert all(name in text for name in (COMMANDS if not command else ("--json",)))


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["quantise"],
        ["generate"],
        ["compare", "--prompt"],
        ["generate", "--prompt", "x", "--seed", "many"],
        ["generate", "--prompt", "x", "--device", "tpu"],
        ["models", "--speed"],
    ],
    ids=lambda a: " ".join(a) or "nothing",
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "usage:" in captured.err


def test_models(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*CATALOG, *RECIPES))
    assert main(["models", "--json"]) == 0
    listed = strict_json(capsys.readouterr().out)
    assert [m["name"] for m in listed["models"]] == list(CATALOG)
    assert [Recipe.from_dict(r) for r in listed["recipes"]] == list(RECIPES.values())


def test_generate(clip, tmp_path, capsys):
    out = tmp_path / "new" / "clip.mp4"
    assert main(["generate", *clip, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 4 frames in ")
    assert frames_of(out) == 4


def test_generate_quantized_with_json(clip, tmp_path, capsys):
    out = tmp_path / "clip.mp4"
    more = ["--seed", "3", "--guidance-scale", "2", "--negative-prompt", "blur", "--height", "32", "--width", "16"]
    assert main(["generate", *clip, *more, "--recipe", "dynamic-w8a8", "--out", str(out), "--json"]) == 0
    result = strict_json(capsys.readouterr().out)
    assert result["video"] == str(out)
    assert result["seconds"] >= 0
    assert result["settings"] == {
        "prompt": CAPTION,
        "negative_prompt": "blur",
        "seed": 3,
        "steps": 2,
        "guidance_scale": 2.0,
        "frames": 4,
        "height": 32,
        "width": 16,
    }
    assert frames_of(out) == 4


def test_export_then_generate(tiny, clip, statistics_file, tmp_path, capsys):
    folder, options = tmp_path / "checkpoint", ["--statistics", str(statistics_file)]
    assert main(["export", *tiny, "--recipe", "qvd-w4a8", *options, "--out", str(folder), "--json"]) == 0
    result = strict_json(capsys.readouterr().out)
    assert result["checkpoint"] == str(folder)
    assert result["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert Recipe.from_dict(result["recipe"]) == get_recipe("qvd-w4a8")
    videos = [tmp_path / "loaded.mp4", tmp_path / "quantized.mp4"]
    assert main(["generate", *clip, "--checkpoint", str(folder), "--out", str(videos[0])]) == 0
    assert main(["generate", *clip, "--recipe", "qvd-w4a8", *options, "--out", str(videos[1])]) == 0
    loaded, quantized = (imageio.mimread(video) for video in videos)
    assert all((a == b).all() for a, b in zip(loaded, quantized, strict=True))
    assert main(["export", *tiny, "--recipe", "dynamic-w8a8", "--out", str(folder)]) == 0
    assert re.search(r"dynamic-w8a8, [\d,]+ bytes; [\d.]+ times smaller than in bf16", capsys.readouterr().out)


def test_a_checkpoint_is_no_recipe(clip, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", *clip, "--checkpoint", "x", "--recipe", "minmax-w8a8"])
    assert ended.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert main(["generate", *clip, "--checkpoint", str(tmp_path)]) == 1
    assert "is no checkpoint: it has no config.json" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("x")
    assert main(["export", *clip[:4], "--recipe", "dynamic-w8a8", "--out", str(tmp_path)]) == 1
    assert "holds mine.txt and is no checkpoint; choose a folder" in capsys.readouterr().err


def test_calibrate_then_compare(tiny, clip, model, tmp_path, capsys):
    out = tmp_path / "statistics.safetensors"
    options = ["--prompt", CAPTION, "--prompt", "a blue ring", "--steps", "2", "--out", str(out), "--json"]
    assert main(["calibrate", *tiny, *options]) == 0
    result = strict_json(capsys.readouterr().out)
    assert (result["statistics"], result["bytes"]) == (str(out), out.stat().st_size)
    assert result["sites"] == len(model.sites)
    assert (result["run"]["prompts"], result["run"]["steps"]) == ([CAPTION, "a blue ring"], 2)
    assert Statistics.load(out).run.fingerprint == model.fingerprint
    assert main(["compare", *clip, "--statistics", str(out), "--out", str(tmp_path / "comparison")]) == 0


def test_compare_writes_two_clips_and_all_numbers(clip, model, settings, statistics_file, statistics, tmp_path, capsys):
    out = tmp_path / "comparison"
    options = ["--recipe", "minmax-w4a8", "--statistics", str(statistics_file), "--out", str(out), "--json"]
    assert main(["compare", *clip, *options]) == 0
    printed = strict_json(capsys.readouterr().out)
    assert sorted(path.name for path in out.iterdir()) == ["quantized.mp4", "reference.mp4", "scores.json"]
    assert frames_of(out / "reference.mp4") == frames_of(out / "quantized.mp4") == 4
    written = strict_json((out / "scores.json").read_text())
    assert written == printed

    # The numbers are those of the library, on raw frames.
    variant = quantize(model, get_recipe("minmax-w4a8"), statistics)
    expected = compare(generate(model, settings), generate(variant, settings)).to_dict()
    assert {name: written[name] for name in expected} == expected
    assert [len(written[n]) for n in ("psnr_by_frame", "ssim_by_frame", "latent_error")] == [4, 4, 2]
    assert Recipe.from_dict(written["recipe"]) == get_recipe("minmax-w4a8")
    assert written["model"]["fingerprint"] == model.fingerprint
    assert written["settings"]["prompt"] == CAPTION
    assert set(written["versions"]) == {"qvd_core", "torch", "diffusers", "transformers", "python"}
    assert set(written["seconds"]) == {"reference", "quantized"}
    assert "simulated" in written["arithmetic"]


def test_compare_with_a_recipe_file_that_changes_nothing(clip, tmp_path, capsys):
    recipe = tmp_path / "mine.json"
    recipe.write_text(json.dumps(Recipe("mine", None, None).to_dict()))
    assert main(["compare", *clip, "--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("mine against full precision: identical, SSIM 1.0000 (simulated:")
    assert strict_json((tmp_path / "out" / "scores.json").read_text())["psnr_db"] is None


def test_compare_calibrates_where_nothing_is_shipped(clip, tmp_path, capsys):
    assert main(["compare", *clip, "--recipe", "minmax-w8a8", "--out", str(tmp_path / "out")]) == 0
    assert "tiny ships no statistics; calibrating now" in capsys.readouterr().err


def test_evaluate(tiny, statistics_file, tmp_path, capsys):
    options = ["--clips", "2", "--steps", "1", "--seed", "4", "--recipes", "minmax-w4a8,dynamic-w8*"]
    options += ["--statistics", str(statistics_file), "--out", str(tmp_path / "report.json")]
    assert main(["evaluate", *tiny, *options]) == 0
    out = capsys.readouterr().out
    names = ["full precision", "full precision, other seeds", "minmax-w4a8", "dynamic-w8a8"]
    assert [line.split(" | ")[0].strip("| ") for line in out.splitlines()[2:6]] == names
    report = strict_json((tmp_path / "report.json").read_text())
    assert [(row["recipe"], row["clips"]) for row in report["rows"]] == [(name, 2) for name in names]
    assert (tmp_path / "report.md").read_text() == out.removesuffix("\n")
    assert (tmp_path / "report.csv").read_text().count("\n") == 5
    assert len(list((tmp_path / "report.clips").glob("*.npz"))) == 8


def test_evaluate_calibrates_where_nothing_is_shipped(tiny, capsys):
    assert main(["evaluate", *tiny, "--clips", "1", "--steps", "1", "--recipes", "minmax-w8a8", "--json"]) == 0
    captured = capsys.readouterr()
    assert "calibrating now" in captured.err
    assert math.isfinite(strict_json(captured.out)["rows"][2]["estimates"]["psnr_db"]["value"])


def test_evaluate_writes_json_even_of_identical_clips(tiny, tmp_path, capsys):
    recipe = tmp_path / "mine.json"
    recipe.write_text(json.dumps(Recipe("mine", None, None).to_dict()))
    assert main(["evaluate", *tiny, "--clips", "1", "--steps", "1", "--recipes", str(recipe), "--json"]) == 0
    row = strict_json(capsys.readouterr().out)["rows"][2]
    assert (row["identical"], "psnr_db" in row["estimates"]) == (1, False)


def test_errors(clip, capsys, model):
    assert main(["errors", *clip, "--recipe", "dynamic-w4a4", "--json"]) == 0
    by_site = strict_json(capsys.readouterr().out)["by_site"]
    assert by_site.keys() == {site.name for site in model.sites}
    assert all(len(values) == 2 for values in by_site.values())
    assert main(["errors", *clip, "--recipe", "dynamic-w4a4"]) == 0
    assert "temporal_attention" in capsys.readouterr().out


@pytest.fixture
def allocate(tiny, statistics_file, model) -> list[str]:
    """With two thirds of what fp16 weights take."""
    megabytes = sum(site.parameters for site in model.sites) * 2 / 3 / 1e6
    return ["allocate", *tiny, "--statistics", str(statistics_file), "--max-mb", str(megabytes)]


def test_allocate(allocate, clip, model, statistics, statistics_file, tmp_path, capsys):
    out = tmp_path / "mine.json"
    assert main([*allocate, "--out", str(out), "--json"]) == 0
    result = strict_json(capsys.readouterr().out)
    choices = (*((bits, 8) for bits in (3, 4, 5, 6, 8)), (None, None))
    sensitivity = proxy_sensitivity(model, get_recipe("minmax-w8a8"), statistics, choices)
    expected = library_allocate(model.sites, sensitivity, statistics.macs, max_bytes=float(allocate[-1]) * 1e6, steps=2)
    assert Recipe.from_dict(result["recipe"]) == expected.recipe
    assert Recipe.from_dict(strict_json(out.read_text())) == expected.recipe
    assert {name: tuple(bits) for name, bits in result["bits"].items()} == expected.bits
    assert [result[n] for n in ("kind", "error", "bound", "bytes", "bops")] == [
        "proxy",
        *(getattr(expected, n) for n in ("error", "bound", "bytes", "bops")),
    ]
    options = ["--recipe", str(out), "--statistics", str(statistics_file), "--out", str(tmp_path / "comparison")]
    assert main(["compare", *clip, *options]) == 0
    assert capsys.readouterr().out.startswith(f"{expected.recipe.name} against full precision: PSNR")


def test_allocate_says_what_the_least_is(allocate, capsys):
    assert main([*allocate[:-1], "0.001"]) == 1
    assert re.search(r"error: 0.001 MB cannot be reached .* the least is 0.\d+ MB", capsys.readouterr().err)


@pytest.mark.parametrize(("measured", "words"), [("once", "from a measurement"), ("all", "prediction, measured")])
def test_allocate_by_measuring(allocate, measured, words, tmp_path, capsys):
    out = tmp_path / "mine.json"
    options = ["--bits", "w4a4,w8a8,w8afloat", "--max-gbops", "1000", "--frames", "4", "--steps", "2", "--calls", "1"]
    assert main([*allocate, *options, "--measured", measured, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert words in text
    assert "  temporal_attention " in text
    assert re.search(r"\d+ × w\da\d", text)
    assert text.endswith(f"pass it as --recipe {out}\n")


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(tiny_folder, statistics_file, tmp_path):
    """Also where nobody says that they are to run on the CPU."""
    options = ["evaluate", "--model", str(tiny_folder), "--clips", "3", "--steps", "1"]
    options += ["--recipes", "minmax-w8a8", "--statistics", str(statistics_file)]
    # Not `accelerate launch --cpu`, which starts one process whatever it is told; what it sets up on GPUs is this.
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*together, "-m", "qvd_core", *options, "--out", str(tmp_path / "two.json")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True, env=environment)
    assert "process 1 of 2" in done.stderr
    assert "process 2 of 2" in done.stderr
    assert main([*options, "--device", "cpu", "--out", str(tmp_path / "one.json")]) == 0
    one, two = (strict_json((tmp_path / name).read_text())["rows"] for name in ("one.json", "two.json"))
    assert [row["recipe"] for row in one] == [row["recipe"] for row in two]
    assert [row["estimates"] for row in one] == [row["estimates"] for row in two]


def test_a_process_that_cannot_find_the_others_does_not_do_their_work_too(monkeypatch, tiny, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", lambda cpu: SimpleNamespace(num_processes=1))
    assert main(["evaluate", *tiny, "--clips", "1"]) == 1
    assert "one of 2 processes, but accelerate finds 1" in capsys.readouterr().err


def test_benchmark_calibration(tiny, capsys):
    assert main(["benchmark", "calibration", *tiny, "--repeats", "1", "--prompts", "1", "--no-compile", "--json"]) == 0
    result = strict_json(capsys.readouterr().out)
    seconds, memory = result["seconds"], result["peak_memory_bytes"]
    assert result["ratio_calibration_to_sampling"] == seconds["calibration"] / seconds["sampling"]
    assert result["ratio_search_to_sampling"] == seconds["search"] / seconds["sampling"]
    assert result["ratio_simulated_to_float"] == seconds["step_simulated"] / seconds["step_float"]
    assert result["ratio_peak_memory"] == memory["calibration"] / memory["sampling"]
    assert all(value > 0 for value in [*seconds.values(), *memory.values()])


@needs_int8
def test_benchmark_inference(tiny, tmp_path, capsys):
    out = tmp_path / "inference.json"
    command = ["benchmark", "inference", *tiny, "--repeats", "1", "--no-compile", "--json", "--out", str(out)]
    assert main(command) == 0
    result = strict_json(capsys.readouterr().out)
    assert strict_json(out.read_text()) == result
    best = {}
    for side in result["sides"].values():
        best[side["kind"]] = min(side["seconds"], best.get(side["kind"], 1e9))
    assert result["ratio_int8_to_fp32"] == best["int8"] / best["fp32"]
    assert result["ratio_int8_to_best_bf16"] == best["int8"] / best["bf16"]
    assert result["ratio_int8_to_bare_kernels"] == best["int8"] / result["bare_kernels_seconds"]
    held = {name: side["weight_bytes"] for name, side in result["sides"].items()}
    assert held["bf16"] == pytest.approx(held["fp32"] / 2, rel=0.01)
    assert held["int8, minmax-w8a8"] < held["bf16"]
    assert all(side["step_bytes"] is None or side["step_bytes"] > 0 for side in result["sides"].values())
    assert set(result["by_kind"]) >= {"linear", "conv2d", "time path"}


@needs_int8
def test_benchmark_clip(tiny, tmp_path, capsys):
    out = tmp_path / "clip.json"
    assert main(["benchmark", "clip", *tiny, "--repeats", "1", "--no-compile", "--json", "--out", str(out)]) == 0
    result = strict_json(capsys.readouterr().out)
    assert strict_json(out.read_text()) == result
    sides = result["sides"]
    assert list(sides) == ["fp32", "bf16", "simulated", "int8"]
    assert result["ratio_int8_to_bf16"] == sides["int8"]["seconds"] / sides["bf16"]["seconds"]
    assert result["ratio_int8_to_fp32"] == sides["int8"]["seconds"] / sides["fp32"]["seconds"]
    assert sides["fp32"]["psnr_db_to_fp32"] is sides["simulated"]["psnr_db_to_simulated"] is None
    assert sides["int8"]["psnr_db_to_simulated"] > 30


@needs_int8
@pytest.mark.parametrize("engine", ["int8", "int8-packed"])
def test_compare_in_integers(clip, statistics_file, tmp_path, capsys, engine):
    options = ["--statistics", str(statistics_file), "--engine", engine, "--out", str(tmp_path / "out")]
    assert main(["compare", *clip, *options, "--json"]) == 0
    assert strict_json(capsys.readouterr().out)["arithmetic"].startswith("int8: ")


REFUSED = {
    "unknown-recipe": (["compare", "--recipe", "w8"], "Unknown recipe 'w8'; choose METHOD-BITS"),
    "no-recipe-file": (["compare", "--recipe", "nowhere.json"], "Cannot read the recipe nowhere.json"),
    "damaged-recipe-file": (["compare", "--recipe", "TMP/damaged.json"], "Cannot read the recipe"),
    "junk-recipe-file": (["compare", "--recipe", "TMP/junk.json"], "Not a recipe"),
    "override-without-match": (["generate", "--recipe", "TMP/foreign.json"], "No site of tiny matches 'temporal'"),
    "empty-prompt": (["generate", "--prompt", ""], "The prompt is empty"),
    "frames": (["generate", "--frames", "1000000"], "frames = 1000000 is out of range"),
    "steps": (["compare", "--steps", "0"], "steps = 0 is out of range"),
    "guidance": (["compare", "--guidance-scale", "nan"], "guidance_scale = nan"),
    "height": (["generate", "--height", "17"], "height = 17 is not a multiple of 2"),
    "no-statistics-file": (["compare", "--statistics", "nowhere.safetensors"], "nowhere.safetensors is not a readable"),
    "other-file-for-statistics": (["compare", "--statistics", "TMP/junk.json"], "is not a readable statistics file"),
    "unknown-model": (["generate", "--model", "nothing"], "Unknown model 'nothing'"),
    "no-folder": (["generate", "--model", "/nowhere"], "There is no folder /nowhere"),
    "out-below-a-file": (["generate", "--out", "TMP/junk.json/clip.mp4"], "Cannot write .*choose another folder"),
    "compare-out-is-a-file": (["compare", "--recipe", "dynamic-w8a8", "--out", "TMP/junk.json"], "Cannot write"),
    "calibrate-count": (["calibrate", "--count", "-1"], "--count -1 is out of range; choose 1 or more"),
    "no-clips": (["evaluate", "--clips", "0"], "--clips 0 is out of range; choose 1 to 10000"),
    "too-many-clips": (["evaluate", "--clips", "10001"], "--clips 10001 is out of range"),
    "no-budget": (["allocate"], "There is no budget"),
    "negative-budget": (["allocate", "--max-mb", "-3"], "A budget of -3.000 MB is out of range"),
    "budget-nan": (["allocate", "--max-gbops", "nan"], "A budget of nan GBOPs"),
    "unknown-bits": (["allocate", "--max-mb", "1", "--bits", "w4a8,8"], "'8' is neither bits, such as w4a8"),
    "bits-out-of-range": (["allocate", "--max-mb", "1", "--bits", "w9a8"], "weight bits = 9 is out of range"),
    "allocate-out": (["allocate", "--max-mb", "1", "--out", "recipe.txt"], "--out recipe.txt is no .json file"),
    "evaluate-unknown-recipe": (["evaluate", "--recipes", "minmax-w8a8,best"], "Unknown recipe 'best'"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, message, clip, tiny, tmp_path, monkeypatch, capsys):
    """Exit code 1, one line on stderr that begins with "error:", nothing on stdout, no file left."""
    (tmp_path / "damaged.json").write_text('{"name": ')
    (tmp_path / "junk.json").write_text("[1, 2]")
    foreign = get_recipe("dynamic-w8a8").override("temporal", 8, 8)
    (tmp_path / "foreign.json").write_text(json.dumps(foreign.to_dict()))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    command, *options = [a.replace("TMP", str(tmp_path)) for a in arguments]
    given = clip if command in ("generate", "compare") else tiny
    assert main([command, *given, *options]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, captured.err
    assert re.search(message, errors[0]), errors[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_interrupting(clip, tmp_path, monkeypatch, capsys):
    from qvd_core import sampling

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "sample", interrupted)
    assert main(["generate", *clip, "--out", str(tmp_path / "clip.mp4")]) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert not captured.out
    assert not list(tmp_path.iterdir())
