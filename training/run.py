"""What every stage shares: the processes it runs on, its checkpoints, its learning rate, its log."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass(frozen=True)
class Workers:
    """This process among those torchrun started (one alone is fine), and the device it trains on."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def start(cls, device: str | None = None) -> Workers:
        rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        chosen = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
        if kind == "cpu":
            # Two one-thread processes train nearly twice as fast as one of two threads at these sizes.
            torch.set_num_threads(1)
        if count > 1:
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        return cls(rank, count, chosen)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, module: nn.Module, partly_used: bool = False) -> nn.Module:
        """`module` with its gradients averaged over all workers; say so if a step leaves some unused."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=partly_used)

    def wait(self) -> None:
        """Return once every worker has come here."""
        if self.count > 1:
            dist.barrier()

    def finish(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()


def warmup_stable_decay(step: int, total: int, warmup: int = 200, cooldown: float = 0.25) -> float:
    """Learning-rate factor: a short ramp, a plateau, then a straight line to 2 % over the last quarter.

    The plateau does not depend on `total`, so a run can be lengthened until its cooldown begins.
    """
    ramp = min(1.0, (step + 1) / warmup)
    left = (total - step) / max(1, cooldown * total)
    return ramp * max(0.02, min(1.0, left))


class Checkpoint:
    """Weights, their moving average, optimizer and step of one stage, replaced atomically on disk."""

    def __init__(self, path: Path, module: nn.Module, optimizer: Optimizer, ema_decay: float):
        self.path, self.module, self.optimizer = path, module, optimizer
        self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=False)
        self.step = 0
        self.seconds = 0.0
        self._started = time.monotonic()
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        now = time.monotonic()
        self.seconds, self._started = self.seconds + now - self._started, now
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def log(self, **values: float) -> None:
        """Append one JSON line to the stage's log, beside the checkpoint."""
        with self.path.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")
