"""How quick the views are for a large model: `python -m tests.benchmarks.large_model [--json]`

The layers are those of AnimateDiff's UNet at full size (1.3 billion parameters, which are never allocated); the
statistics are made up, 25 steps of 16 frames, as large as calibration would keep them. Times are those of
the tables and figures on the server, first and repeated; the browser's part depends on what is drawn, which is
bounded whatever the model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetMotionModel

from analysis import screen
from analysis.channels import channel_table
from analysis.figures import channels as channel_figures
from analysis.figures import site_map as map_figures
from analysis.scri import channel_widths
from analysis.site_map import METRICS, site_map
from qvd_core.calibration.statistics import CalibrationRun, Statistics, sampling_plan
from qvd_core.formats import ActivationFormat
from qvd_core.models.sites import find_inputs, find_sites

STEPS, FRAMES = 25, 16


def made_up_statistics() -> tuple[Statistics, tuple[str, ...], str]:
    """Statistics, the names of all layers, and that of the one with most channels."""
    with torch.device("meta"):
        unet = UNetMotionModel(cross_attention_dim=768, motion_max_seq_length=32, use_motion_mid_block=True)
    sites = find_sites(unet)
    by_name = {site.name: site for site in sites}
    readers = [by_name[shared.consumers[0]] for shared in find_inputs(unet, sites)]
    plain = sum(site.in_channels for site in readers if site.role != "temporal_attention")
    temporal = FRAMES * sum(site.in_channels for site in readers if site.role == "temporal_attention")
    count, stride = sampling_plan(plain, temporal, STEPS)
    rows = -(-STEPS // stride)
    generator = torch.Generator().manual_seed(0)
    run = CalibrationRun("made up", "0" * 16, "DDIMScheduler", STEPS, ("none",), 0, FRAMES, 512, 512, 7.5, 0.0)
    statistics = Statistics(run, {}, {}, {}, {}, {}, {}, {}, token_stride=stride)
    for shared in find_inputs(unet, sites):
        first = by_name[shared.consumers[0]]
        shape = (1, FRAMES) if first.role == "temporal_attention" else (count, 1)
        entries = {
            "low": -torch.rand(STEPS, first.in_channels, generator=generator),
            "high": torch.rand(STEPS, first.in_channels, generator=generator),
            "tokens": torch.randn(rows, *shape, first.in_channels, generator=generator),
        }
        for kind, values in entries.items():
            getattr(statistics, kind).update(dict.fromkeys(shared.consumers, values))
    widest = max(sites, key=lambda site: site.in_channels)
    return statistics, tuple(site.name for site in sites), widest.name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.large_model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    statistics, names, widest = made_up_statistics()
    form = ActivationFormat(8)
    views: dict[str, Callable[[], Any]] = {
        f"map of {metric}": lambda metric=metric: map_figures.site_map(site_map(statistics, names, metric, form))
        for metric in METRICS
    }
    views["ranges"] = lambda: channel_figures.ranges(channel_table(statistics, widest, form, 3, "error"))
    views["widths by step"] = lambda: channel_figures.widths(channel_widths(statistics, widest, "step", False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.safetensors"
        statistics.save(path)
        result: dict[str, Any] = {
            "layers": len(names),
            "channels_of_widest": statistics.low[widest].shape[1],
            "file_mb": path.stat().st_size / 1e6,
            "load_s": _seconds(lambda: Statistics.load(path)),
            "views": {},
        }
    for name, view in views.items():
        first, *later = [_seconds(view) for _ in range(6)]
        size = len(json.dumps(screen.payload(view())))
        result["views"][name] = {"first_ms": 1e3 * first, "again_ms": 1e3 * min(later), "payload_kb": size / 1e3}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['layers']} layers; statistics {result['file_mb']:.1f} MB, read in {result['load_s']:.1f} s")
    print("| view | first, ms | again, ms | payload, kB |\n|---|---:|---:|---:|")
    for name, row in result["views"].items():
        print(f"| {name} | {row['first_ms']:.0f} | {row['again_ms']:.1f} | {row['payload_kb']:.0f} |")


def _seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
