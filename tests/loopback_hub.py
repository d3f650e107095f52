"""A model hub on this machine's loopback address: enough of the protocol for `snapshot_download` and `push_to_hub`.

Repositories are folders of one revision each, which a push changes; to push needs `TOKEN`. Everything asked for
is logged, so that tests can say what was, and what was not, downloaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_loopback_hub"


@dataclass
class LoopbackHub:
    """Repositories by id, and how some of them misbehave.

    Attributes:
        repositories: folder of each id.
        new: where repositories that are created get their folders; None refuses to create any.
        gated: ids that answer like a repository whose terms nobody accepted.
        broken: ids whose weight files end before their announced length.
        requests: "METHOD path" of everything asked for.
        address: where it listens, without a final slash.
    """

    repositories: dict[str, Path]
    new: Path | None = None
    gated: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    requests: list[str] = field(default_factory=list)
    address: str = ""

    @staticmethod
    def commit(repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def revisions(self, repository: str) -> tuple[str, ...]:
        return ("main", "v1.0", self.commit(repository))

    def downloads(self, repository: str) -> set[str]:
        """Paths of the files of `repository` whose contents were asked for."""
        prefix = f"GET /{repository}/resolve/{self.commit(repository)}/"
        return {request.removeprefix(prefix) for request in self.requests if request.startswith(prefix)}


@contextmanager
def serve(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Run `hub` in a thread and fill in its address."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, b"", {"X-Error-Message": "Invalid username or password."}, True)
        if path == "/api/repos/create" and self.hub.new is not None:
            return self._create(json.loads(content))
        *_, owner, name, verb, revision = path.split("/")
        if f"{owner}/{name}" not in self.hub.repositories or revision != "main":
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, True)
        if verb == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(content)["files"]
            ]
            return self._send_json({"files": files})
        return self._commit(f"{owner}/{name}", [json.loads(line) for line in content.splitlines()])

    def _create(self, wanted: dict[str, str]) -> None:
        repository = f"{wanted['organization']}/{wanted['name']}"
        assert self.hub.new is not None
        folder = self.hub.repositories.setdefault(repository, self.hub.new / wanted["name"])
        folder.mkdir(parents=True, exist_ok=True)
        self._send_json({"url": f"{self.hub.address}/{repository}", "name": repository, "id": "0"})

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                file = self.hub.repositories[repository] / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        commit = self.hub.commit(repository)
        url = f"{self.hub.address}/{repository}/commit/{commit}"
        self._send_json({"commitUrl": url, "commitOid": commit, "success": True})

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        verb, revision, *rest = parts[4:] if api else parts[2:]
        if repository not in self.hub.repositories:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        if revision not in self.hub.revisions(repository):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        folder = self.hub.repositories[repository]
        if api:
            described = self._describe(repository, folder) if verb == "revision" else self._tree(folder)
            return self._send(200, json.dumps(described).encode(), {"Content-Type": "application/json"}, body)
        if repository in self.hub.gated:  # what it holds may be listed, but not read
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
        file = folder.joinpath(*rest)
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        return self._send_file(repository, file, body)

    def _describe(self, repository: str, folder: Path) -> dict[str, object]:
        siblings = [{"rfilename": entry["path"]} for entry in self._tree(folder)]
        commit = self.hub.commit(repository)
        return {"_id": "0", "id": repository, "modelId": repository, "sha": commit, "siblings": siblings}

    def _tree(self, folder: Path) -> list[dict[str, object]]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": _etag(path),
            }
            for path in files
        ]

    def _send_file(self, repository: str, file: Path, body: bool) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": self.hub.commit(repository)}
        if body and repository in self.hub.broken and file.suffix == ".safetensors":
            headers["Content-Length"] = str(len(content))
            content = content[: len(content) // 2]
            self.close_connection = True
        self._send(200, content, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
