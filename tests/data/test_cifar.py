"""CIFAR in the authors' files and in class folders."""

import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from synthetic import class_files, write_folder, write_zip
from test_files import refused

from eakd.data import cifar10, cifar100
from eakd.data.cifar import CIFAR10, CIFAR100
from eakd.errors import UserError

NAMES = tuple(f"class_{number:02d}" for number in range(100))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def load(root, cache, function=cifar100, **options):
    return function(
        root, **{"download": False, "allow_subset": True, "cache_dir": cache, **options}
    )


class Python2(pickle._Pickler):
    """Writes strings as bytes, as Python 2 did when the authors wrote their files."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, text):
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = save_text


def dumps(value):
    buffer = io.BytesIO()
    Python2(buffer, 2).dump(value)
    return buffer.getvalue()


def authors_files(version, count=2):
    """Files as the authors made them, pixels channel by channel."""
    rng = np.random.default_rng(0)
    names = list(NAMES[: version.num_classes])

    def batch(count):
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.integers(0, version.num_classes, count).tolist()
        return dumps({"data": data, version.labels: labels, "filenames": ["a"]})

    files = {file: batch(count) for file in (*version.train, *version.test)}
    return files | {file: dumps({version.names: names}) for file in version.meta}


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(("function", "version"), [(cifar10, CIFAR10), (cifar100, CIFAR100)])
def test_authors_files(tmp_path, cache, function, version):
    files = authors_files(version)
    folder = write_folder(tmp_path / "data" / version.folder, files)
    inside = {f"{version.folder}/{name}": content for name, content in files.items()}
    archive = write_tar(
        tmp_path / version.archive.filename, inside | {"../evil": b"x", "other": b"x"}
    )
    loaded = [
        load(root, cache, function) for root in (folder, folder.parent, archive, archive.parent)
    ]
    assert len({data.fingerprint for data in loaded}) == 1
    data = loaded[0]
    assert data.classes == NAMES[: version.num_classes] and data.name == version.name
    assert len(data.train_labels) == 2 * len(version.train) and len(data.test_labels) == 2
    last = pickle.loads(files[list(version.train)[-1]], encoding="latin1")  # written by this test
    assert data.train_labels[-1] == last[version.labels][-1]
    expected = last["data"][-1].reshape(3, 32, 32)
    assert np.array_equal(data.train_images[-1].transpose(2, 0, 1), expected)


def test_torchvision_reads_the_same(tmp_path, cache, monkeypatch):
    from torchvision.datasets import CIFAR100 as Reference

    files = authors_files(CIFAR100)
    write_folder(tmp_path / CIFAR100.folder, files)
    monkeypatch.setattr(Reference, "_check_integrity", lambda self: True)
    monkeypatch.setitem(
        Reference.meta, "md5", hashlib.md5(files["meta"], usedforsecurity=False).hexdigest()
    )
    data = load(tmp_path, cache)
    for train, images, labels in (
        (True, data.train_images, data.train_labels),
        (False, data.test_images, data.test_labels),
    ):
        reference = Reference(tmp_path, train=train)
        assert np.array_equal(reference.data, images) and reference.targets == labels.tolist()
        assert tuple(reference.classes) == data.classes


def test_authors_files_are_verified(tmp_path, cache):
    write_folder(tmp_path / CIFAR100.folder, authors_files(CIFAR100))
    refused(lambda: load(tmp_path, cache, allow_subset=False), "MD5", "train", cache=cache)


class Evil:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('evil').touch()",))


@pytest.mark.parametrize("where", [*CIFAR100.files])
def test_pickles_run_no_code(tmp_path, cache, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    files = authors_files(CIFAR100) | {where: dumps({"data": Evil()})}
    write_folder(tmp_path / CIFAR100.folder, files)
    refused(lambda: load(tmp_path, cache), where, "exec is not part of", cache=cache)
    assert not (tmp_path / "evil").exists()


def test_pickles_of_any_numpy_are_read(tmp_path, cache):
    files = authors_files(CIFAR100)
    old = b"cnumpy.core.multiarray\n_reconstruct\n"
    new = b"cnumpy._core.multiarray\n_reconstruct\n"
    assert old in files["train"] or new in files["train"]
    fingerprints = set()
    for name, change in (("a", (new, old)), ("b", (old, new))):
        changed = {file: content.replace(*change) for file, content in files.items()}
        write_folder(tmp_path / name / CIFAR100.folder, changed)
        fingerprints.add(load(tmp_path / name, cache).fingerprint)
    assert len(fingerprints) == 1


FILES = authors_files(CIFAR100)
TEST = pickle.loads(FILES["test"], encoding="latin1")  # made above


@pytest.mark.parametrize(
    ("where", "content", "part"),
    [
        ("train", FILES["train"][:100], "damaged"),
        ("train", b"", "damaged"),
        ("test", dumps({**TEST, "data": TEST["data"][:, :9]}), "shape (2, 9)"),
        ("test", dumps({**TEST, "fine_labels": [0]}), "shape (2, 3072)"),
        ("test", dumps({**TEST, "fine_labels": [0, 100]}), "labels from 0 to 100"),
        ("meta", dumps({}), "fine_label_names"),
        ("meta", dumps({"fine_label_names": ["a"]}), "found 1 classes"),
    ],
)
def test_wrong_authors_files_are_refused(tmp_path, cache, where, content, part):
    write_folder(tmp_path / CIFAR100.folder, FILES | {where: content})
    refused(lambda: load(tmp_path, cache), part, CIFAR100.folder, cache=cache)


def test_missing_authors_file_is_refused(tmp_path, cache):
    files = {name: content for name, content in FILES.items() if name != "meta"}
    write_folder(tmp_path / CIFAR100.folder, files)
    refused(lambda: load(tmp_path, cache), "no", "meta", cache=cache)


def test_wrong_archives_are_refused(tmp_path, cache):
    inside = {f"{CIFAR100.folder}/{name}": content for name, content in FILES.items()}
    archive = write_tar(tmp_path / CIFAR100.archive.filename, inside)
    content = archive.read_bytes()
    for size in (0, 20, len(content) // 2):
        archive.write_bytes(content[:size])
        refused(lambda: load(archive, cache), archive, "damaged", cache=cache)
    del inside[f"{CIFAR100.folder}/test"]
    write_tar(archive, inside)
    refused(lambda: load(archive, cache), "no cifar-100-python/test", cache=cache)


# --- class folders ---


def test_class_folders(tmp_path, cache):
    files = class_files(NAMES, train=1, test=1)
    nested = {f"images/{name}": content for name, content in files.items()}
    write_zip(tmp_path / "cifar100-images.zip", files)
    loaded = [
        load(root, cache)
        for root in (
            write_folder(tmp_path / "plain", files),
            write_folder(tmp_path / "nested", nested),
            write_folder(tmp_path / "shared" / "cifar100", files).parent,
            tmp_path / "cifar100-images.zip",
            tmp_path,
        )
    ]
    assert len({data.fingerprint for data in loaded}) == 1
    assert loaded[0].classes == NAMES and loaded[0].train_labels.tolist() == list(range(100))


def test_numbered_class_folders_keep_their_numbers(tmp_path, cache):
    names = tuple(map(str, range(100)))
    data = load(write_folder(tmp_path / "set", class_files(names, train=1, test=1)), cache)
    assert data.classes == names


def test_cifar10_does_not_take_cifar100(tmp_path, cache):
    write_zip(tmp_path / "cifar100-images.zip", class_files(NAMES, train=1, test=1))
    refused(lambda: load(tmp_path, cache, cifar10), "CIFAR-10 itself", cache=cache)


def test_wrong_numbers_are_refused(tmp_path, cache):
    root = write_folder(tmp_path / "few", class_files(NAMES[:99], train=1, test=1))
    refused(lambda: load(root, cache), "99 classes", "100", cache=cache)
    root = write_folder(tmp_path / "short", class_files(NAMES, train=1, test=1))
    load_all = lambda: load(root, cache, allow_subset=False)  # noqa: E731
    refused(load_all, "100 training and 100 test images", "50000 and 10000", cache=cache)


def test_wrong_size_is_refused(tmp_path, cache):
    root = write_folder(tmp_path / "s", class_files(NAMES, train=1, test=1, size=(28, 28)))
    refused(lambda: load(root, cache), "28x28", "32x32", cache=cache)


def test_absent_set_says_what_to_fetch(tmp_path, cache):
    for root in (tmp_path, tmp_path / "nothing"):
        refused(
            lambda root=root: load(root, cache), root, CIFAR100.archive.url, "download=true",
            cache=cache,
        )  # fmt: skip
    assert not (tmp_path / "nothing").exists()


def test_arguments_are_checked(tmp_path):
    for name in ("download", "allow_subset"):
        with pytest.raises(UserError, match=f"{name}: found 'no'"):
            cifar100(tmp_path, **{name: "no"})
