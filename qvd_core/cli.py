"""The command line: `python -m qvd_core models | generate | calibrate | compare | errors | evaluate | benchmark`.

Results go to stdout (as JSON with --json), progress and errors to stderr. Exit codes: 0 done, 1 the
request could not be fulfilled (the message says why and what to do), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvd_core import __version__
from qvd_core.errors import QvdError
from qvd_core.recipe import RECIPES, Recipe, get_recipe
from qvd_core.storage import storage_errors

if TYPE_CHECKING:
    from tqdm import tqdm

    from qvd_core.calibration.statistics import Statistics
    from qvd_core.models.loader import VideoModel

DEFAULT_MODEL = "animatediff-mini"
MOST_CLIPS = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        result, text = options.command(options)
    except QvdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if result is not None:
        print(json.dumps(result, indent=2) if options.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qvd_core", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        return command

    add("models", _models, "List the models and recipes known by name.")

    generate = add("generate", _generate, "Sample one clip and write it as mp4.")
    _add_model_options(generate)
    _add_clip_options(generate)
    generate.add_argument("--recipe", help="quantize first, by this recipe (default: full precision)")
    _add_statistics_option(generate)
    generate.add_argument("--out", type=Path, default=Path("clip.mp4"), help="default: %(default)s")

    calibrate = add("calibrate", _calibrate, "Observe layer input ranges in full precision and save them.")
    _add_model_options(calibrate)
    calibrate.add_argument("--prompt", action="append", help="repeatable (default: the model's own set)")
    calibrate.add_argument("--count", type=int, default=8, help="prompts of the model's own set (default: 8)")
    _add_size_options(calibrate)
    calibrate.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    calibrate.add_argument("--seed", type=int, default=1000)
    calibrate.add_argument("--out", type=Path, default=Path("statistics.safetensors"), help="default: %(default)s")

    compare = add("compare", _compare, "Sample the same clip in full precision and quantized, and score it.")
    _add_model_options(compare)
    _add_clip_options(compare)
    compare.add_argument("--recipe", default="minmax-w8a8", help="a name, or a JSON file (default: %(default)s)")
    _add_statistics_option(compare)
    compare.add_argument("--out", type=Path, default=Path("comparison"), help="folder (default: %(default)s)")

    errors = add("errors", _errors, "Measure the error every quantized layer makes by itself, at every step.")
    _add_model_options(errors)
    _add_clip_options(errors)
    errors.add_argument("--recipe", default="minmax-w8a8", help="a name, or a JSON file (default: %(default)s)")
    _add_statistics_option(errors)

    evaluate = add("evaluate", _evaluate, "Compare recipes on many prompts.")
    _add_model_options(evaluate)
    evaluate.add_argument(
        "--recipes", default="", help="names or patterns (qvd-*) separated by commas; none: full precision only"
    )
    evaluate.add_argument("--clips", type=int, default=20, help="held-out captions (default: %(default)s)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    _add_statistics_option(evaluate)
    evaluate.add_argument("--networks", action="store_true", help="also measure with pretrained networks")
    evaluate.add_argument(
        "--out", type=Path, help="write the table to this .json file, and to a .md and a .csv beside it"
    )
    evaluate.add_argument(
        "--cache", type=Path, help="folder of results by clip, from which a run resumes (default: beside --out)"
    )

    benchmark = add("benchmark", _benchmark, "Measure what calibration, searches and simulation cost here.")
    benchmark.add_argument("what", choices=("calibration",))
    _add_model_options(benchmark)
    benchmark.add_argument("--prompts", type=int, default=2, help="clips of each run (default: %(default)s)")
    benchmark.add_argument("--repeats", type=int, default=3, help="runs of each side (default: %(default)s)")
    benchmark.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    return parser


def _add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a name, a diffusers folder or owner/name (default: %(default)s)",
    )
    command.add_argument("--revision", help="branch, tag or commit of a hub model")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def _add_clip_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt", default="")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, help="default: the model's")
    command.add_argument("--guidance-scale", type=float, help="default: the model's")
    _add_size_options(command)


def _add_size_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--frames", type=int, help="default: the model's")
    command.add_argument("--height", type=int, help="pixels (default: the model's)")
    command.add_argument("--width", type=int, help="pixels (default: the model's)")


def _add_statistics_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--statistics", type=Path, help="calibration statistics (default: those shipped, else calibrate now)"
    )


def _models(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.models.catalog import CATALOG

    result = {
        "models": [asdict(s) for s in CATALOG.values()],
        "recipes": [r.to_dict() for r in RECIPES.values()],
    }
    lines = ["models:"] + [f"  {s.name:<20} {s.title}" for s in CATALOG.values()]
    lines += ["recipes:"] + [f"  {name}" for name in RECIPES]
    return result, "\n".join(lines)


def _generate(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.sampling import check_settings, generate
    from qvd_core.variant import quantize
    from qvd_core.video import write_video

    recipe = _recipe(options.recipe) if options.recipe else None
    model = _load(options)
    settings = _settings(options, model)
    check_settings(model, settings)
    source: Any = model
    if recipe is not None:
        source = quantize(model, recipe, _statistics(options, model, recipe))
    with _progress(settings.steps, "sampling") as bar:
        clip = generate(source, settings, lambda _: _advance(bar))
    write_video(clip.frames, options.out, model.spec.fps)
    result = {"video": str(options.out), "seconds": round(clip.seconds, 2), "settings": asdict(settings)}
    return result, f"{options.out}: {settings.frames} frames in {clip.seconds:.1f} s (measured)"


def _calibrate(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.calibration.calibrate import calibration_prompts

    if options.count < 1:
        raise QvdError(f"--count {options.count} is out of range; choose 1 or more.")
    model = _load(options)
    prompts = options.prompt or calibration_prompts(model, options.count)
    statistics = _run_calibration(model, prompts, options, options.steps, options.seed)
    statistics.save(options.out)
    size = options.out.stat().st_size
    result = {
        "statistics": str(options.out),
        "bytes": size,
        "sites": len(statistics.low),
        "run": asdict(statistics.run),
    }
    return (
        result,
        f"{options.out}: ranges of {len(statistics.low)} sites over {statistics.run.steps} steps, {size:,} bytes",
    )


def _compare(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.report import comparison_report, write_comparison
    from qvd_core.sampling import check_settings, generate
    from qvd_core.scores import compare
    from qvd_core.variant import quantize

    recipe = _recipe(options.recipe)
    model = _load(options)
    settings = _settings(options, model)
    check_settings(model, settings)
    variant = quantize(model, recipe, _statistics(options, model, recipe))
    with storage_errors(options.out):  # before the work, not after it
        options.out.mkdir(parents=True, exist_ok=True)
    with _progress(2 * settings.steps, "sampling both") as bar:
        reference = generate(model, settings, lambda _: _advance(bar))
        quantized = generate(variant, settings, lambda _: _advance(bar))
    scores = compare(reference, quantized)
    write_comparison(options.out, variant, reference, quantized, scores)
    psnr = "identical" if scores.psnr_db == float("inf") else f"PSNR {scores.psnr_db:.2f} dB"
    text = f"{recipe.name} against full precision: {psnr}, SSIM {scores.ssim:.4f} (simulated). See {options.out}/"
    return comparison_report(variant, reference, quantized, scores), text


def _errors(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.site_error import site_errors
    from qvd_core.variant import quantize

    recipe = _recipe(options.recipe)
    model = _load(options)
    settings = _settings(options, model)
    variant = quantize(model, recipe, _statistics(options, model, recipe))
    roles = {site.name: site.role for site in model.sites}
    by_site = {name: error.tolist() for name, error in site_errors(variant, settings).items()}
    means = {name: sum(values) / len(values) for name, values in by_site.items()}
    by_role: dict[str, list[float]] = {}
    for name, mean in means.items():
        by_role.setdefault(roles[name], []).append(mean)
    lines = [f"{recipe.name}: relative squared error of a layer's output, mean over steps (simulated)"]
    lines += [f"  {role:<26} {sum(v) / len(v):.2e} ({len(v)} layers)" for role, v in by_role.items()]
    lines += ["largest:", *(f"  {means[n]:.2e} {n}" for n in sorted(means, key=lambda n: -means[n])[:10])]
    return {"recipe": recipe.to_dict(), "by_site": by_site}, "\n".join(lines)


def _evaluate(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.evaluation import evaluate, evaluate_together, other_processes, unavailable
    from qvd_core.report import describe, versions
    from qvd_core.shapeworld.scene import held_out_captions
    from qvd_core.table import as_markdown, tabulate, with_costs, write_table

    recipes = _recipes(options.recipes)
    if not 1 <= options.clips <= MOST_CLIPS:
        raise QvdError(f"--clips {options.clips} is out of range; choose 1 to {MOST_CLIPS}.")
    processes = other_processes(options.device)
    model = _load(options)
    static = next((r for r in recipes if r.needs_statistics), None)
    statistics = None if static is None else _statistics(options, model, static)
    choices: dict[str, Any] = {
        "statistics": statistics,
        "seed": options.seed,
        "steps": options.steps,
        "networks": options.networks,
        "noise_floor": bool(recipes),
        "cache": options.cache or (options.out and options.out.with_suffix(".clips")),
    }
    prompts = held_out_captions(options.clips)
    clips = options.clips * (1 + (1 + len(recipes) if recipes else 0))
    with _progress(clips if processes is None else -(-clips // processes.num_processes), "clips") as bar:
        choices["on_result"] = lambda _: _advance(bar)
        if processes is None:
            results = evaluate(model, recipes, prompts, **choices)
        else:
            results = evaluate_together(processes, model, recipes, prompts, **choices)
    if processes is not None and not processes.is_main_process:
        return None, ""
    rows = with_costs(tabulate(results), model, recipes, statistics)
    missing = unavailable() if options.networks else {}
    report = {
        "arithmetic": "simulated: integer codes, computed with in floating point; no speed claim",
        "rows": [asdict(row) for row in rows],
        "unavailable": missing,
        "recipes": [recipe.to_dict() for recipe in recipes],
        "calibration": None if statistics is None else asdict(statistics.run),
        "model": describe(model),
        "versions": versions(),
    }
    if options.out:
        write_table(rows, report, options.out)
    return report, as_markdown(rows) + "".join(f"\nNo {name}: {reason}" for name, reason in missing.items())


def _recipes(text: str) -> list[Recipe]:
    """Recipes named in a list; a pattern stands for all that match it."""
    found: dict[str, Recipe] = {}
    for name in filter(None, text.split(",")):
        known = fnmatch.filter(RECIPES, name)
        found |= {match: RECIPES[match] for match in known} if known else {name: _recipe(name)}
    return list(found.values())


def _benchmark(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.benchmark import benchmark_calibration

    for name in ("prompts", "repeats"):
        if getattr(options, name) < 1:
            raise QvdError(f"--{name} {getattr(options, name)} is out of range; choose 1 or more.")
    result = benchmark_calibration(
        _load(options),
        prompts=options.prompts,
        repeats=options.repeats,
        compiled=not options.no_compile,
        on_stage=lambda stage: print(stage, file=sys.stderr),
    )
    ratios = [f"{name}: {value:.3f}" for name, value in result.items() if name.startswith("ratio") and value]
    return result, "\n".join([f"measured on {result['device']}", *ratios])


def _recipe(text: str) -> Recipe:
    """A named recipe, or the one in a JSON file."""
    if not text.endswith(".json"):
        return get_recipe(text)
    try:
        return Recipe.from_dict(json.loads(Path(text).read_text()))
    except (OSError, ValueError) as error:
        raise QvdError(f"Cannot read the recipe {text}: {error}") from error


def _load(options: argparse.Namespace) -> VideoModel:
    from qvd_core.models.loader import load

    return load(options.model, revision=options.revision, device=options.device)


def _settings(options: argparse.Namespace, model: VideoModel) -> Any:
    from qvd_core.sampling import default_settings

    names = ("negative_prompt", "seed", "steps", "guidance_scale", "frames", "height", "width")
    return default_settings(model, options.prompt, **{name: getattr(options, name) for name in names})


def _statistics(options: argparse.Namespace, model: VideoModel, recipe: Recipe) -> Statistics | None:
    """Statistics from the given file, or those shipped, or a calibration run now; none if not needed.

    Such a run has the model's own number of steps, as in the app, and the clip size that was asked for.
    """
    from qvd_core.calibration.calibrate import calibration_prompts, embedded_statistics
    from qvd_core.calibration.statistics import Statistics

    if options.statistics is not None:
        return Statistics.load(options.statistics)
    if not recipe.needs_statistics:
        return None
    shipped = embedded_statistics(model)
    if shipped is not None:
        return shipped
    print(f"{model.spec.name} ships no statistics; calibrating now", file=sys.stderr)
    return _run_calibration(model, calibration_prompts(model), options, None, 1000)


def _run_calibration(
    model: VideoModel, prompts: Sequence[str], options: argparse.Namespace, steps: int | None, seed: int
) -> Statistics:
    from qvd_core.calibration.calibrate import calibrate

    with _progress(None, "calibrating") as bar:

        def step_ended(number: int, count: int, info: Any) -> None:
            bar.total = count * info.total
            _advance(bar)

        size = {name: getattr(options, name, None) for name in ("frames", "height", "width")}
        return calibrate(model, prompts, steps=steps, seed=seed, on_step=step_ended, **size)


def _progress(total: int | None, text: str) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=total, desc=text, disable=None, leave=False, file=sys.stderr)


def _advance(bar: tqdm[Any]) -> None:
    bar.update()
