"""What the commands do: each gives its result, JSON-ready, and the same in words."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from qvd_core.cli.options import (
    advance,
    build_variant,
    clip_settings,
    find_statistics,
    load_model,
    on_engine,
    progress_bar,
    read_recipe,
    read_recipes,
    run_calibration,
)
from qvd_core.errors import QvdError
from qvd_core.recipe import RECIPES
from qvd_core.storage import replacing, storage_errors

MOST_CLIPS = 10_000


def models(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.models.catalog import CATALOG

    result = {
        "models": [asdict(s) for s in CATALOG.values()],
        "recipes": [r.to_dict() for r in RECIPES.values()],
    }
    lines = ["models:"] + [f"  {s.name:<20} {s.title}" for s in CATALOG.values()]
    lines += ["recipes:"] + [f"  {name}" for name in RECIPES]
    return result, "\n".join(lines)


def generate(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.checkpoint import load_quantized
    from qvd_core.sampling import check_settings, generate
    from qvd_core.video import write_video

    recipe = read_recipe(options.recipe) if options.recipe else None
    model = load_model(options)
    settings = clip_settings(options, model)
    check_settings(model, settings)
    source: Any = model
    if recipe is not None:
        source = build_variant(options, model, recipe)
    elif options.checkpoint:
        source = on_engine(options, load_quantized(options.checkpoint, model))
    with progress_bar(settings.steps, "sampling") as bar:
        clip = generate(source, settings, lambda _: advance(bar))
    write_video(clip.frames, options.out, model.spec.fps)
    result = {"video": str(options.out), "seconds": round(clip.seconds, 2), "settings": asdict(settings)}
    return result, f"{options.out}: {settings.frames} frames in {clip.seconds:.1f} s (measured)"


def calibrate(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.calibration.calibrate import calibration_prompts

    if options.count < 1:
        raise QvdError(f"--count {options.count} is out of range; choose 1 or more.")
    model = load_model(options)
    prompts = options.prompt or calibration_prompts(model, options.count)
    statistics = run_calibration(model, prompts, options, options.steps, options.seed)
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


def export(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.checkpoint import save
    from qvd_core.variant import quantize

    recipe = read_recipe(options.recipe)
    model = load_model(options)
    variant = quantize(model, recipe, find_statistics(options, model, recipe.needs_statistics))
    save(variant, options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    before = 2 * sum(tensor.numel() for tensor in model.denoiser.state_dict().values())
    result = {"checkpoint": str(options.out), "bytes": size, "bytes_bf16": before, "recipe": recipe.to_dict()}
    return result, f"{options.out}: {recipe.name}, {size:,} bytes; {before / size:.2f} times smaller than in bf16"


def compare(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.report import comparison_report, write_comparison
    from qvd_core.sampling import check_settings, generate
    from qvd_core.scores import compare

    recipe = read_recipe(options.recipe)
    model = load_model(options)
    settings = clip_settings(options, model)
    check_settings(model, settings)
    variant = build_variant(options, model, recipe)
    with storage_errors(options.out):  # before the work, not after it
        options.out.mkdir(parents=True, exist_ok=True)
    with progress_bar(2 * settings.steps, "sampling both") as bar:
        reference = generate(model, settings, lambda _: advance(bar))
        quantized = generate(variant, settings, lambda _: advance(bar))
    scores = compare(reference, quantized)
    write_comparison(options.out, variant, reference, quantized, scores)
    psnr = "identical" if scores.psnr_db == float("inf") else f"PSNR {scores.psnr_db:.2f} dB"
    text = (
        f"{recipe.name} against full precision: {psnr}, SSIM {scores.ssim:.4f} ({variant.arithmetic})."
        f" See {options.out}/"
    )
    return comparison_report(variant, reference, quantized, scores), text


def errors(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.site_error import site_errors
    from qvd_core.variant import quantize

    recipe = read_recipe(options.recipe)
    model = load_model(options)
    settings = clip_settings(options, model)
    variant = quantize(model, recipe, find_statistics(options, model, recipe.needs_statistics))
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


def evaluate(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.evaluation import evaluate, evaluate_together, other_processes, unavailable
    from qvd_core.report import describe, versions
    from qvd_core.shapeworld.scene import held_out_captions
    from qvd_core.table import as_markdown, tabulate, with_costs, write_table

    recipes = read_recipes(options.recipes)
    if not 1 <= options.clips <= MOST_CLIPS:
        raise QvdError(f"--clips {options.clips} is out of range; choose 1 to {MOST_CLIPS}.")
    processes = other_processes(options.device)
    if processes is not None:
        print(f"process {processes.process_index + 1} of {processes.num_processes}", file=sys.stderr)
    model = load_model(options)
    needed = any(recipe.needs_statistics for recipe in recipes)
    statistics = find_statistics(options, model, needed) if needed else None
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
    with progress_bar(clips if processes is None else -(-clips // processes.num_processes), "clips") as bar:
        choices["on_result"] = lambda _: advance(bar)
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


def benchmark(options: argparse.Namespace) -> tuple[Any, str]:
    for name in ("prompts", "repeats"):
        if getattr(options, name) < 1:
            raise QvdError(f"--{name} {getattr(options, name)} is out of range; choose 1 or more.")
    measures = {"calibration": _benchmark_calibration, "inference": _benchmark_inference, "clip": _benchmark_clip}
    return measures[options.what](options)


def _tell(stage: str) -> None:
    print(stage, file=sys.stderr)


def _benchmark_calibration(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.benchmarks.calibration import benchmark_calibration

    result = benchmark_calibration(
        load_model(options),
        prompts=options.prompts,
        repeats=options.repeats,
        compiled=not options.no_compile,
        on_stage=_tell,
    )
    ratios = [f"{name}: {value:.3f}" for name, value in result.items() if name.startswith("ratio") and value]
    return result, "\n".join([f"measured on {result['device']}", *ratios])


def _benchmark_inference(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.benchmarks.full_size import benchmark_full_size
    from qvd_core.benchmarks.inference import benchmark_inference

    choices: dict[str, Any] = {"repeats": options.repeats, "compiled": not options.no_compile, "on_stage": _tell}
    if options.full_size:
        result = benchmark_full_size(frames=options.frames, size=options.size, **choices)
    else:
        model = load_model(options)
        if options.recipes:
            choices["recipes"] = read_recipes(options.recipes)
        result = benchmark_inference(model, find_statistics(options, model, True), **choices)
    _keep(options, result)
    lines = [f"one denoising step of {result['model']}, measured on {result['device']}"]
    lines += [f"  {1e3 * side['seconds']:9.1f} ms  {name}" for name, side in result["sides"].items()]
    lines += [f"  left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    lines += [f"{name}: {value:.3f}" for name, value in result.items() if name.startswith("ratio") and value]
    return result, "\n".join(lines)


def _benchmark_clip(options: argparse.Namespace) -> tuple[Any, str]:
    from qvd_core.benchmarks.clip import RECIPE, benchmark_clip

    model = load_model(options)
    recipe = read_recipe(options.recipes) if options.recipes else RECIPE
    result = benchmark_clip(
        model,
        find_statistics(options, model, recipe.needs_statistics),
        recipe=recipe,
        repeats=options.repeats,
        compiled=not options.no_compile,
        on_stage=_tell,
    )
    _keep(options, result)
    lines = [f"a clip of {result['model']}, {result['recipe']}, measured on {result['device']}"]
    for name, side in result["sides"].items():
        distances = [f"{side[key]:.1f} dB to {key[11:]}" for key in side if key.startswith("psnr") and side[key]]
        lines.append(f"  {side['seconds']:7.2f} s  {name:16}  {', '.join(distances)}")
    lines += [f"{name}: {value:.3f}" for name, value in result.items() if name.startswith("ratio")]
    return result, "\n".join(lines)


def _keep(options: argparse.Namespace, result: Any) -> None:
    if options.out:
        with replacing(options.out) as scratch:
            scratch.write_text(json.dumps(result, indent=2) + "\n")
