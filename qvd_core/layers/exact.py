"""Numbers of a quantized network that no cast may round: scales, grids, tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module some of whose buffers keep their dtype in `.to(torch.bfloat16)`; they follow it to other devices."""

    exact: ClassVar[tuple[str, ...]] = ()
    """Names of those buffers."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: self._buffers[name] for name in self.exact}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def exact_names(module: nn.Module) -> set[str]:
    """Full names of all exact buffers below `module`."""
    owners = ((path, m) for path, m in module.named_modules() if isinstance(m, ExactBuffers))
    return {f"{path}.{name}".lstrip(".") for path, m in owners for name in m.exact}
