"""Checkpoints go to the hub as they lie: against a stand-in of its API on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gqakit.checkpoint.upload import check_upload, upload
from gqakit.checkpoint.workspace import MARKER
from gqakit.errors import OutputError, UsageError

TOKEN = "hf_" + "a" * 34


class Hub(ThreadingHTTPServer):
    """As much of the hub's API as an upload of small files takes: who am I, make a repository, ask how, commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.made: list[str] = []


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, value: object, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # http.server's name
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path.startswith("/api/whoami"):
            self._answer({"name": "me", "type": "user"})
        else:
            self._answer({"sha": "0" * 40, "siblings": [], "id": "me/small"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body)["name"])
            self._answer({"url": f"{address}/me/small", "name": "me/small", "id": "1"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            kinds = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            self._answer({"files": kinds})
        elif re.search(r"/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {"commitUrl": f"{address}/me/small/commit/1", "commitOid": "1" * 40, "success": True}
            )
        else:
            self._answer({}, 404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_everything_but_unfinished_work_goes_up(hub: Hub, tmp_path: Path) -> None:
    content = {
        "config.json": b"{}",
        "README.md": b"# card",
        "gqakit-plan.json": b"{}",
        "LICENSE": b"x",
        "1_Pooling/config.json": b"{}",
    }
    for name, data in {**content, MARKER: b"{}", "model.safetensors.gqakit-partial": b"half"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    check_upload("me/small")
    assert "me/small" in upload(tmp_path, "me/small")
    assert hub.files == content
    assert hub.made == ["small"]


def test_a_wrong_token_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    with pytest.raises(OutputError, match="check the token") as seen:
        check_upload("me/small")
    assert "\n" not in str(seen.value)


def test_nobody_logged_in_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._auth.get_token", lambda: None)
    with pytest.raises(OutputError, match=r"hf auth login|check the token"):
        check_upload("me/small")


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="cannot be reached"):
        check_upload("me/small")


@pytest.mark.parametrize("name", ["small", "me/", "../me/small", "me/a/b", "me/sm all"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="organisation/name"):
        check_upload(name)
