"""Downloads are complete and checked, or leave nothing behind. A local server plays the author."""

import hashlib
import http.server
import threading
from dataclasses import replace
from functools import partial

import pytest
from synthetic import tiny_files, write_zip

import eakd.data.folders as folders
from eakd.data import tiny_imagenet
from eakd.download import Archive, download
from eakd.errors import UserError


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path != "/cut.bin":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"short")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder and its URL."""
    folder = tmp_path_factory.mktemp("site")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Server, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_download(site, tmp_path):
    folder, url = site
    content = bytes(range(256)) * 9999
    (folder / "set.bin").write_bytes(content)
    archive = Archive("Set", f"{url}/set.bin", hashlib.sha256(content).hexdigest())
    path = download(archive, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "set.bin" and path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]

    wrong = replace(archive, sha256="0" * 64)
    with pytest.raises(UserError, match=r"SHA-256 .*allowed is the published file; fetch"):
        download(wrong, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("name", "reason"), [("cut.bin", "5 of 1000 bytes|IncompleteRead"), ("absent.bin", "404")]
)
def test_failures_say_what_to_do(site, tmp_path, name, reason):
    archive = Archive("Set", f"{site[1]}/{name}", "0" * 64)
    with pytest.raises(UserError, match=reason) as caught:
        download(archive, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and archive.url in message and str(tmp_path / name) in message
    assert not list(tmp_path.iterdir())


def test_no_server(tmp_path):
    archive = Archive("Set", "http://127.0.0.1:9/set.bin", "0" * 64)
    with pytest.raises(UserError, match="could not download"):
        download(archive, tmp_path)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"root: found .*file"):
        download(Archive("Set", "http://127.0.0.1:9/set.bin", ""), tmp_path / "file")


def test_first_start_downloads_and_second_does_not(site, tmp_path, monkeypatch):
    folder, url = site
    path = write_zip(folder / "tiny-imagenet-200.zip", tiny_files())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    archive = Archive("Tiny-ImageNet-200", f"{url}/{path.name}", digest)
    monkeypatch.setattr(folders, "TINY_IMAGENET", archive)
    options = {"allow_subset": True, "cache_dir": tmp_path / "cache"}
    first = tiny_imagenet(tmp_path / "data", **options)
    path.unlink()
    assert tiny_imagenet(tmp_path / "data", **options).fingerprint == first.fingerprint
