"""Files written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qvd_core.errors import StorageError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EACCES: "permission is denied; choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
    errno.EISDIR: "a folder of that name is in the way; choose another name",
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch file beside `path` that takes its place once the block ends well.

    Missing folders are made. On any failure the scratch file is removed and `path` is what it was.

    Raises:
        StorageError: the operating system refuses; the message says why and what to do.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = _scratch(path)
        try:
            yield scratch
            scratch.chmod(0o666 & ~_umask())  # mkstemp makes it private
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def replacing_in(folder: Path, *names: str) -> Iterator[tuple[Path, ...]]:
    """`replacing` for several files of one folder that make sense only together: all of them change, or none.

    The folder is made if it is missing, and removed again if nothing came to be in it.
    """
    with storage_errors(folder):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        scratches: list[Path] = []
        old: list[tuple[Path, Path]] = []  # (where it belongs, where it waits)
        placed: list[Path] = []
        try:
            for name in names:
                scratches.append(_scratch(folder / name))
            yield tuple(scratches)
            for name, scratch in zip(names, scratches, strict=True):
                scratch.chmod(0o666 & ~_umask())
                if (folder / name).exists():
                    waiting = _scratch(folder / name)
                    old.append((folder / name, waiting))
                    (folder / name).replace(waiting)
            for name, scratch in zip(names, scratches, strict=True):
                placed.append(folder / name)
                scratch.replace(folder / name)
        except BaseException:
            for path in placed:
                path.unlink(missing_ok=True)
            for path, waiting in old:
                if not path.exists():
                    waiting.replace(path)
            raise
        finally:
            for scratch in (*scratches, *(waiting for _, waiting in old)):
                scratch.unlink(missing_ok=True)
            if new:
                with suppress(OSError):
                    folder.rmdir()


def _scratch(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=path.suffix)
    os.close(handle)
    return Path(name)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into `StorageError`, with reason and advice."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {_REASONS.get(error.errno or 0, str(error))}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
