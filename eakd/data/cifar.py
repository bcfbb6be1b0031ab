"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): the authors' files, or image files of a mirror."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from eakd.data.base import ImageData
from eakd.data.cache import Allocate, Labels, cached
from eakd.data.folders import Listing, class_folders, load, locate
from eakd.data.source import (
    MAX_FILE_BYTES,
    Source,
    open_source,
    printable,
    read_regular,
    signature,
)
from eakd.download import Archive
from eakd.errors import UserError, check_choice

TRAIN_SIZE, TEST_SIZE = 50_000, 10_000


@dataclass(frozen=True)
class _Version:
    """What differs between the two sets.

    Attributes:
        name, num_classes: of the set.
        archive: the authors' file.
        folder: what it contains.
        train, test, meta: files in the folder and their MD5, as the authors publish them.
        labels, names: keys in these files.
    """

    name: str
    num_classes: int
    archive: Archive
    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    meta: Mapping[str, str]
    labels: str
    names: str

    @property
    def files(self) -> dict[str, str]:
        return {**self.train, **self.test, **self.meta}


CIFAR10 = _Version(
    "cifar10",
    10,
    Archive(
        "CIFAR-10",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    labels="labels",
    names="label_names",
)
CIFAR100 = _Version(
    "cifar100",
    100,
    Archive(
        "CIFAR-100",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
    "cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    labels="fine_labels",
    names="fine_label_names",
)


def cifar10(
    root: str | Path,
    download: bool = True,
    *,
    allow_subset: bool = False,
    cache_dir: str | Path | None = None,
) -> ImageData:
    """CIFAR-10: 50,000 and 10,000 images of 32x32 in 10 classes. As `cifar100`, but for names."""
    return _load(CIFAR10, root, download, allow_subset, cache_dir)


def cifar100(
    root: str | Path,
    download: bool = True,
    *,
    allow_subset: bool = False,
    cache_dir: str | Path | None = None,
) -> ImageData:
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 in 100 classes.

    Args:
        root: a folder that holds ``cifar-100-python`` (the authors' and torchvision's files),
            ``cifar-100-python.tar.gz``, or ``cifar100``, ``cifar100.zip`` or ``cifar100-*.zip``
            (class folders, as mirrors ship them), or one of these itself. Class folders are
            labelled in alphabetical order, which is the official one, or by number if they are
            numbers.
        download: fetch the authors' archive into ``root`` if nothing is there.
        allow_subset: accept other numbers of images, and files other than the authors'.
        cache_dir: see `eakd.data.cache.default_cache_dir`.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    return _load(CIFAR100, root, download, allow_subset, cache_dir)


def _load(
    version: _Version,
    root: str | Path,
    download: bool,
    allow_subset: bool,
    cache_dir: str | Path | None,
) -> ImageData:
    check_choice("download", download, (True, False))
    check_choice("allow_subset", allow_subset, (True, False))
    name = version.name
    places = [version.folder, version.archive.filename, name, f"{name}.zip", f"{name}-*.zip"]
    landmarks = ("train", *version.test)
    path = locate(root, landmarks, places, version.archive, fetch=download)
    files = [path / file for file in version.files]
    if os.path.isfile(path) and path.suffix.lower() != ".zip":
        key, members = signature(path), partial(_tar_members, version, path)
    elif any(map(os.path.isfile, files)):
        for file in files:
            if not os.path.isfile(file):
                raise UserError(
                    f"root: found no {printable(file)}, allowed is a complete "
                    f"{version.folder}: fetch the set again"
                )
        key, members = " ".join(map(signature, files)), partial(_file_members, files)
    else:
        return _load_folders(version, path, allow_subset, cache_dir)

    def build(allocate: Allocate) -> Labels:
        return _unpack(version, path, members(), allocate, allow_subset)

    return cached(version.name, f"authors {allow_subset} {key}", cache_dir, build)


def _load_folders(
    version: _Version, path: Path, allow_subset: bool, cache_dir: str | Path | None
) -> ImageData:
    with closing(open_source(path)) as source:

        def arrange(source: Source) -> Listing:
            listing = class_folders(source, numbered=True)
            _check_size(version, path, *map(len, listing), allow_subset)
            return listing

        key = f"folders {allow_subset}"
        return load(version.name, source, arrange, cache_dir, key, size=(32, 32))


def _check_size(
    version: _Version, path: Path, classes: int, train: int, test: int, allow_subset: bool
) -> None:
    if classes != version.num_classes:
        raise UserError(
            f"root: found {classes} classes in {path}, allowed is {version.num_classes}, as "
            f"{version.archive.title} has"
        )
    if (train, test) != (TRAIN_SIZE, TEST_SIZE) and not allow_subset:
        raise UserError(
            f"root: found {train} training and {test} test images in {path}, allowed is "
            f"{TRAIN_SIZE} and {TEST_SIZE}: fetch the set again, or set data.allow_subset=true"
        )


def _file_members(files: list[Path]) -> dict[str, bytes]:
    members = {}
    for file in files:
        try:
            members[file.name], _ = read_regular(file)
        except OSError as error:
            raise _damaged(file, error.strerror or error) from error
    return members


def _tar_members(version: _Version, path: Path) -> dict[str, bytes]:
    """The expected files of the authors' archive, read without writing any of them."""
    wanted = {f"{version.folder}/{file}": file for file in version.files}
    members = {}
    try:
        with tarfile.open(path) as archive:
            for info in archive:
                if info.name in wanted and info.isfile() and info.size <= MAX_FILE_BYTES:
                    members[wanted[info.name]] = archive.extractfile(info).read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _damaged(path, error) from error
    missing = sorted(set(version.files) - set(members))
    if missing:
        raise _damaged(path, f"no {version.folder}/{missing[0]} in it")
    return members


def _damaged(path: Path, reason: object) -> UserError:
    reason = " ".join(str(reason).split()) or type(reason).__name__
    return UserError(
        f"root: found {printable(path)} damaged ({reason}), allowed is a complete copy: fetch it "
        f"again"
    )


class _Unpickler(pickle.Unpickler):
    """Builds arrays and plain containers only.

    The authors' files are pickles, and a pickle can name any function to be called while it is
    read. This one can name those that NumPy's arrays need; so even a file that was tampered with
    does nothing worse than fail.
    """

    def find_class(self, module: str, name: str):
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a CIFAR file")


# NumPy's own function, taken from where NumPy says it is: its module moved with version 2.
_reconstruct = np.empty(0).__reduce__()[0]


def _unpack(
    version: _Version,
    path: Path,
    members: Mapping[str, bytes],
    allocate: Allocate,
    allow_subset: bool,
) -> Labels:
    contents = {}
    for file, md5 in version.files.items():
        where = path / file
        found = hashlib.md5(members[file], usedforsecurity=False).hexdigest()
        if found != md5 and not allow_subset:
            raise _damaged(where, f"its MD5 is {found}, not {md5}")
        try:
            contents[file] = _Unpickler(io.BytesIO(members[file]), encoding="latin1").load()
            if file in version.meta:
                classes = tuple(map(str, contents[file][version.names]))
            else:
                pixels = np.asarray(contents[file]["data"])
                labels = np.asarray(contents[file][version.labels], dtype=np.int64)
                if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
                    raise ValueError(f"pixels of type {pixels.dtype} and shape {pixels.shape}")
                contents[file] = pixels, labels
        except Exception as error:  # a damaged pickle can raise anything
            raise _damaged(where, error) from error

    splits = []
    for files in (version.train, version.test):
        pixels, labels = (
            np.concatenate(parts) for parts in zip(*(contents[f] for f in files), strict=True)
        )
        splits.append((pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels))
    (train, train_labels), (test, test_labels) = splits
    _check_size(version, path, len(classes), len(train), len(test), allow_subset)
    for labels in (train_labels, test_labels):
        if len(labels) and not 0 <= labels.min() <= labels.max() < version.num_classes:
            raise _damaged(path, f"labels from {labels.min()} to {labels.max()}")
    allocate("train_images", train.shape)[:] = train
    allocate("test_images", test.shape)[:] = test
    return Labels(classes, train_labels, test_labels)
