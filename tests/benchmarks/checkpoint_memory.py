"""What a 4-bit checkpoint of AnimateDiff at full size takes in memory: `python -m tests.benchmarks.checkpoint_memory`

The checkpoint is made up (random codes, 1.31 billion of them, 0.7 GB in a temporary folder), then read by diffusers
in a process of its own and called once on a small clip. Reported is what the system (Linux) says that process
held, in MB: pages of its own (RssAnon), before and after its allocator gives back what it keeps for later; pages mapped
from files (RssFile), which the system may drop; and the peak of both (VmHWM).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import __version__

from qvd_core.checkpoint_file import CONFIG, FORMAT, METHOD, WEIGHTS, metadata_of, own_config, write_weights
from qvd_core.formats import WeightFormat
from qvd_core.layers.exact import exact_names
from qvd_core.layers.structure import rebuild, stored_tensors
from qvd_core.models.sites import find_sites
from qvd_core.recipe import Recipe
from tests.full_size import empty_unet

BITS = 4

CHILD = """
import ctypes, json, sys, time
import torch
from diffusers import UNetMotionModel
import qvd_core.diffusers_quantizer

def held():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return {name: int(lines[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile", "VmHWM")}

before, started = held(), time.perf_counter()
unet = UNetMotionModel.from_pretrained(sys.argv[1])
loaded, seconds = held(), time.perf_counter() - started
with torch.inference_mode():
    unet(torch.randn(1, 4, 1, 8, 8).to(unet.dtype), 500, torch.randn(1, 77, 768).to(unet.dtype))
called = held()
ctypes.CDLL("libc.so.6").malloc_trim(0)
print(json.dumps({"before": before, "loaded": loaded, "called": called, "given back": held(), "load_s": seconds}))
"""


def write_made_up(folder: Path) -> None:
    """A checkpoint of random numbers, all weights in 4 bits and inputs in floating point."""
    unet = empty_unet(torch.bfloat16)
    layer = {"kind": "layer", "weight_bits": BITS, "symmetric": True, "split": None, "shift": False, "scale": False}
    pieces = {s.name: layer | {"bias": s.has_bias, "input": None} for s in find_sites(unet)}
    structure = {"timesteps": None, "pieces": pieces}
    rebuild(unet, structure)
    exact = exact_names(unet)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, t in stored_tensors(unet).items():
        if t.dtype == torch.uint8:
            tensors[name] = torch.randint(0, 256, t.shape, dtype=torch.uint8, generator=generator)
        else:
            tensors[name] = torch.full(t.shape, 1e-3, dtype=torch.float32 if name in exact else torch.bfloat16)
    config = {
        "quant_method": METHOD,
        "format": FORMAT,
        "recipe": Recipe("made up", WeightFormat(BITS), None).to_dict(),
        "dtype": "bfloat16",
        "architecture": own_config(unet.config),
        "structure": structure,
        "provenance": {"model": "made up"},
    }
    config = json.loads(json.dumps(config))
    write_weights(folder / WEIGHTS, tensors, metadata_of(tensors, config))
    described = {"_class_name": "UNetMotionModel", "_diffusers_version": __version__, "quantization_config": config}
    (folder / CONFIG).write_text(json.dumps(described | own_config(unet.config)))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_made_up(Path(folder))
        size = (Path(folder) / WEIGHTS).stat().st_size / 1e6
        child = subprocess.run([sys.executable, "-c", CHILD, folder], stdout=subprocess.PIPE, text=True, check=True)
    print(f"checkpoint: {size:.0f} MB")
    print(json.dumps(json.loads(child.stdout.splitlines()[-1]), indent=2))


if __name__ == "__main__":
    main()
