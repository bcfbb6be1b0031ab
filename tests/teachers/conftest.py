"""A trained little net, published as the public zoo publishes: in an archive, by a local server."""

import argparse
import http.server
import io
import logging
import tarfile
import threading
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from eakd.classification import evaluate_checkpoint
from eakd.composing import compose
from eakd.models.weights import load_state
from eakd.teachers.command import teachers
from eakd.training.run import run

MEMBER = "resnet8_vanilla/ckpt_epoch_240.pth"


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; ``/to/URL`` redirects, ``/cut.tar`` ends too early."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.seen.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/cut.tar":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"short")
        else:
            super().do_GET()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, its URL, and the requests it has seen."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "site"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Server, directory=str(folder))
    )
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", server.seen
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A file in the zoo's format, and its accuracy on digits in float32."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["student=resnet8", "distiller=none", "recipe.epochs=4", "data.train_per_class=40"]
    run(compose([*words, f"run_dir={folder}"]))
    weights = folder / "last.safetensors"
    beside = {"opt": argparse.Namespace(lr=0.05), "best_acc": np.float64(70.0)}
    torch.save({"epoch": 240, "model": load_state(weights), **beside}, folder / "zoo.pth")
    where = ["model=resnet8", "precision=float32", f"checkpoint={weights}"]
    return folder / "zoo.pth", evaluate_checkpoint(compose(where, "evaluate"))["top1"]


@pytest.fixture
def published(trained, tmp_path):
    """Writes a manifest where resnet8 is published for digits; returns its path."""

    def write(*archive, **changes):
        entry = {"top1": round(trained[1], 2), "archive": list(archive), "member": MEMBER}
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump({"digits": {"resnet8": {**entry, **changes}}}))
        return path

    return write


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def command(root, tmp_path):
    """Runs ``scripts/teachers.py`` on digits inside this process."""
    level, handlers = logging.root.level, list(logging.root.handlers)

    def call(manifest, *words):
        common = ["data=digits", "teachers=[resnet8]", f"checkpoint_root={root}"]
        common += [f"output_root={tmp_path / 'outputs'}"]
        teachers(compose([*common, *words], "teachers"), manifest)

    yield call
    logging.root.setLevel(level)  # which Hydra's launchers change
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in handlers:
            logging.root.removeHandler(handler)


def write_tar(path, files, links=()):
    """A tar archive of ``{name: bytes}`` and of other members ``{name: type}``."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind in dict(links).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
