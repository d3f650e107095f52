"""The command line: `python -m qvd_core COMMAND`; `--help` lists the commands.

Results go to stdout (as JSON with --json), progress and errors to stderr. Exit codes: 0 done, 1 the
request could not be fulfilled (the message says why and what to do), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qvd_core import __version__
from qvd_core.cli import allocation, commands
from qvd_core.cli.options import (
    add_clip_options,
    add_engine_option,
    add_model_options,
    add_size_options,
    add_statistics_option,
)
from qvd_core.errors import QvdError


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
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        command = subcommands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        return command

    add("models", commands.models, "List the models and recipes known by name.")

    generate = add("generate", commands.generate, "Sample one clip and write it as mp4.")
    add_model_options(generate)
    add_clip_options(generate)
    quantized = generate.add_mutually_exclusive_group()
    quantized.add_argument("--recipe", help="quantize first, by this recipe (default: full precision)")
    quantized.add_argument("--checkpoint", help="a folder that `export` wrote, or owner/name, instead of quantizing")
    add_statistics_option(generate)
    add_engine_option(generate)
    generate.add_argument("--out", type=Path, default=Path("clip.mp4"), help="default: %(default)s")

    calibrate = add("calibrate", commands.calibrate, "Observe layer input ranges in full precision and save them.")
    add_model_options(calibrate)
    calibrate.add_argument("--prompt", action="append", help="repeatable (default: the model's own set)")
    calibrate.add_argument("--count", type=int, default=8, help="prompts of the model's own set (default: 8)")
    add_size_options(calibrate)
    calibrate.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    calibrate.add_argument("--seed", type=int, default=1000)
    calibrate.add_argument("--out", type=Path, default=Path("statistics.safetensors"), help="default: %(default)s")

    export = add("export", commands.export, "Quantize, and save the denoiser as a folder that diffusers can read.")
    add_model_options(export)
    export.add_argument("--recipe", default="minmax-w8a8", help="a name, or a JSON file (default: %(default)s)")
    add_statistics_option(export)
    export.add_argument("--out", type=Path, default=Path("checkpoint"), help="folder (default: %(default)s)")

    compare = add("compare", commands.compare, "Sample the same clip in full precision and quantized, and score it.")
    add_model_options(compare)
    add_clip_options(compare)
    compare.add_argument("--recipe", default="minmax-w8a8", help="a name, or a JSON file (default: %(default)s)")
    add_statistics_option(compare)
    add_engine_option(compare)
    compare.add_argument("--out", type=Path, default=Path("comparison"), help="folder (default: %(default)s)")

    errors = add("errors", commands.errors, "Measure the error every quantized layer makes by itself, at every step.")
    add_model_options(errors)
    add_clip_options(errors)
    errors.add_argument("--recipe", default="minmax-w8a8", help="a name, or a JSON file (default: %(default)s)")
    add_statistics_option(errors)

    allocate = add("allocate", allocation.allocate, "Give every layer its bits: the best recipe within a budget.")
    allocation.add_options(allocate)

    evaluate = add("evaluate", commands.evaluate, "Compare recipes on many prompts.")
    add_model_options(evaluate)
    evaluate.add_argument(
        "--recipes", default="", help="names or patterns (qvd-*) separated by commas; none: full precision only"
    )
    evaluate.add_argument("--clips", type=int, default=20, help="held-out captions (default: %(default)s)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    add_statistics_option(evaluate)
    evaluate.add_argument("--networks", action="store_true", help="also measure with pretrained networks")
    evaluate.add_argument(
        "--out", type=Path, help="write the table to this .json file, and to a .md and a .csv beside it"
    )
    evaluate.add_argument(
        "--cache", type=Path, help="folder of results by clip, from which a run resumes (default: beside --out)"
    )

    benchmark = add("benchmark", commands.benchmark, "Measure what calibration, searches and arithmetic cost here.")
    benchmark.add_argument("what", choices=("calibration", "inference", "clip"))
    add_model_options(benchmark)
    benchmark.add_argument("--prompts", type=int, default=2, help="clips of each calibration (default: %(default)s)")
    benchmark.add_argument("--repeats", type=int, default=3, help="runs of each side (default: %(default)s)")
    benchmark.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    add_statistics_option(benchmark)
    benchmark.add_argument(
        "--full-size", action="store_true", help="inference on AnimateDiff's full shapes with random weights"
    )
    benchmark.add_argument("--frames", type=int, default=8, help="of --full-size (default: %(default)s)")
    benchmark.add_argument("--size", type=int, default=256, help="pixels of --full-size (default: %(default)s)")
    benchmark.add_argument("--recipes", default="", help="of inference, separated by commas; or of clip, one")
    benchmark.add_argument("--out", type=Path, help="also write a result of inference or clip to this .json file")
    return parser
