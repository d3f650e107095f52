"""Files that visitors may download: a folder for each session, gone with it or with the server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


class Downloads:
    """A folder per session under one root, which is removed when the server stops."""

    def __init__(self) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="qvd-studio-", ignore_cleanup_errors=True)
        self._closed: set[str] = set()

    def folder(self, session: str) -> Path | None:
        """The session's folder, or None if the session has ended."""
        return None if session in self._closed else Path(self._root.name) / session

    def forget(self, session: str) -> None:
        """End the session: remove its files, and take no more."""
        self._closed.add(session)
        shutil.rmtree(Path(self._root.name) / session, ignore_errors=True)
