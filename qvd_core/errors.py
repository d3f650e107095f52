"""Every failure a user can cause or meet, as one family of exceptions.

Each message says what was received and what to do about it, so the command line and the app can show
it as it is. Programming errors are not wrapped: they should be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class QvdError(Exception):
    """Base of all errors this library raises on purpose."""


class ModelError(QvdError):
    """A model that is unknown, incomplete, damaged, foreign or unreachable."""


class RecipeError(QvdError):
    """A recipe that is unknown, contradictory or out of range."""


class CalibrationError(QvdError):
    """Calibration that cannot be done, or statistics that do not belong to this model."""


class GenerationError(QvdError):
    """A request for a clip that this model cannot fulfil."""


class EngineError(QvdError):
    """An arithmetic that this machine cannot do, or not with profit."""


class ComparisonError(QvdError):
    """Clips that cannot be compared."""


class StorageError(QvdError):
    """A file that cannot be written or read."""


class OutOfMemory(QvdError):
    """The device ran out of memory; nothing was kept."""


class Cancelled(QvdError):
    """The run was stopped on request."""


@contextmanager
def memory_errors(what: str, advice: str) -> Iterator[None]:
    """Turn the several ways torch and Python report exhausted memory into `OutOfMemory`."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"Not enough memory for {what}. {advice}") from error
    except RuntimeError as error:
        # The CPU allocator raises a plain RuntimeError; its text is the only mark.
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory(f"Not enough memory for {what}. {advice}") from error
        raise
