"""The hub's own client, on its cache and against a server of our own."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import processes
import pytest

import eakd
from eakd.composing import compose
from eakd.errors import UserError
from eakd.hub.export import export

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(scope="module")
def finished(trained):
    (found,) = trained.glob("digits/*/kd/seed0-*")
    return found


def test_a_name_on_the_hub(finished, tmp_path, monkeypatch):
    """What has been downloaded before is found without a network; a revision is another folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    place = tmp_path / "cache" / "models--someone--student"
    for name, which in (("main", "last"), ("v1", "best")):
        commit = which.encode().hex().ljust(40, "0")
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / name).write_text(commit)
        words = [f"run={finished}", f"to={place / 'snapshots' / commit}", f"which={which}"]
        export(compose(words, "export"))
    assert eakd.load("someone/student").exported["epoch"] == "last"
    assert eakd.load("someone/student", revision="v1").exported["epoch"] == "best"
    with pytest.raises(UserError, match="load: found no folder 'someone/other' here") as error:
        eakd.load("someone/other", "v2")
    assert "from the hub at v2" in str(error.value) and "\n" not in str(error.value)


class Hub(BaseHTTPRequestHandler):
    """Takes uploads as the hub does, every file as part of the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        place = f"http://127.0.0.1:{self.server.server_port}/someone/student"
        if self.path == "/api/repos/create":
            answer = {"url": place, "id": "someone/student"}
            self.server.created = json.loads(body)
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **modes} for file in files]}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        else:
            self.server.commits.append([json.loads(line) for line in body.splitlines()])
            answer = {"commitOid": "0" * 40, "commitUrl": f"{place}/commit/0", "success": True}
        self.answer(answer)

    def do_GET(self):
        self.answer({"id": "someone/student", "siblings": [], "sha": "0" * 40})

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.commits = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(finished, to, endpoint, token):
    """The command in a process of its own: the client reads its settings when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**kept, "HF_HOME": str(to.parent / "home"), "HF_ENDPOINT": endpoint}
    if token:
        environment["HF_TOKEN"] = token
    words = [f"run={finished}", f"to={to}", "push=someone/student"]
    return processes.run(["scripts/export.py", *words], env=environment)


def test_an_upload(finished, tmp_path, hub):
    result = pushed(finished, tmp_path / "a", f"http://127.0.0.1:{hub.server_port}", "hf_token")
    assert result.returncode == 0, result.stderr
    (commit,) = hub.commits
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == {"README.md", "config.json", "model.safetensors"}
    # The client's words for it: of older versions, and of newer ones.
    assert hub.created.get("private") or hub.created.get("visibility") == "private"
    assert f"{hub.server_port}/someone/student/commit/0" in result.stdout


def test_an_upload_without_a_network_leaves_the_folder_whole(finished, tmp_path):
    result = pushed(finished, tmp_path / "a", "http://127.0.0.1:9", "hf_token")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: push: could not upload to someone/student (")
    assert line.endswith(f"`hf upload someone/student {tmp_path / 'a'}` tries again")
    assert eakd.load(tmp_path / "a").exported["epoch"] == "last"


def test_an_upload_without_credentials_writes_nothing(finished, tmp_path):
    result = pushed(finished, tmp_path / "a", "http://127.0.0.1:9", None)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: push: found no credentials of the hub, allowed after `hf auth")
    assert not (tmp_path / "a").exists()


def test_without_the_library(finished, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"push: found no huggingface_hub.* 'eakd\[hub\]'"):
        export(compose([f"run={finished}", f"to={tmp_path / 'a'}", "push=a/b"], "export"))
    with pytest.raises(UserError, match="load: found no huggingface_hub"):
        eakd.load("someone/student")
    assert not (tmp_path / "a").exists()
