"""Reading files of weights, whoever wrote them, without running what they may hold."""

from __future__ import annotations

import json
import logging
import re
import shlex
import stat
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from eakd.errors import UserError

log = logging.getLogger(__name__)

# Keys under which trainers keep the weights. Of a file that has several, the first of this list
# counts: the weights that were trained come before their running averages.
CONTAINERS = (
    *("model", "state_dict", "model_state_dict", "net", "network", "weights", "params", "student"),
    *("model_ema", "ema_state_dict", "state_dict_ema", "params_ema", "ema"),
)
# Prefixes of wrappers that are no part of any network.
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
# Key of the safetensors header for the weights that several names share, which are stored once:
# a JSON object {further name: name in the file}.
TIED = "tied"


class Unread:
    """Stands for an object beside the weights, of which nothing is built and nothing run."""

    def __new__(cls, *_: object) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


def _plain_list(*_: object) -> list[Any]:
    return []


# What trainers keep beside the weights: torch's restricted unpickler puts these in its place.
HARMLESS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            *("argparse.Namespace", "types.SimpleNamespace", "torch.torch_version.TorchVersion"),
            *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
            *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
            *(f"pathlib.{name}" for name in ("PurePath", "PurePosixPath", "PureWindowsPath")),
            *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),  # Python 3.13
            *("decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
            *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool")),
            *("builtins.range", "builtins.slice", "builtins.frozenset"),
            *("numpy.dtype", "numpy.ndarray", "numpy.core.multiarray._reconstruct"),
            *("numpy._core.multiarray._reconstruct", "numpy._core.numeric._frombuffer"),
            *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        ),
        Unread,
    ),
    # These are filled after they are made, which the unpickler allows of plain ones only.
    **dict.fromkeys(("yacs.config.CfgNode", "easydict.EasyDict"), OrderedDict),
    "collections.defaultdict": _plain_dict,
    "collections.deque": _plain_list,
}

# First bytes of what is no file of weights: what it is, and the way on.
FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer", "`git lfs pull` fetches what it stands for"),
    (b"\x1f\x8b", "a file packed by gzip", "unpack it with gunzip"),
    (b"BZh", "a file packed by bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "a file packed by xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a file packed by zstd", "unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and name the file of weights in it"),
    (b"Rar!", "a rar archive", "unpack it and name the file of weights in it"),
    (b"PK\x05\x06", "an empty zip archive", "fetch it again"),
    (b"\x93NUMPY", "an array of numpy", "save a state dict of tensors with torch.save"),
    (b"\x89HDF", "an HDF5 file, of Keras perhaps", "save a state dict of tensors with torch.save"),
    (b"GGUF", "a GGUF file of quantised weights", "name the safetensors file that it was made of"),
)
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # in the first bytes of torch's files before zip
CONVERT = (
    "import pickle, torch; "
    'w = lambda x: w(x.state_dict()) if hasattr(x, "state_dict") else {k: w(v) for k, v in '
    'x.items() if hasattr(v, "state_dict") or isinstance(v, (dict, torch.Tensor))} '
    "if isinstance(x, dict) else x; "
    'torch.save(w(torch.load(%s, "cpu", pickle)), %s)'
)
CONVERT_SCRIPT = 'import torch; torch.save(torch.jit.load(%s, "cpu").state_dict(), %s)'


def load_state(path: str | Path, wanted: Collection[str] = ()) -> dict[str, Tensor]:
    """Read a state dict onto the CPU, without running any code the file may hold.

    Args:
        path: a safetensors or a torch file, whatever its name: a state dict, plain or under one of
            `CONTAINERS`, also nested. If there are several, the first of that list is taken and
            the log says so. What else lies beside the weights is not read.
        wanted: the names that the weights are wanted under. Prefixes common to all names are
            removed, and the one of a wrapper around the network is added, as far as more of the
            names become wanted ones by it. Those of data parallel and compiled wrappers always
            are removed.

    Returns:
        Every tensor under its name. Names that were tied when the file was written hold one and
        the same tensor; files of other programs may leave out all but one of them.

    Raises:
        UserError: the file is missing, truncated, or holds something else, or weights that are
            sparse, quantised, complex or without values; the message tells the way on.
    """
    path = Path(path)
    try:
        tree = _reader(path)(path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or _line(error)})") from error
    except Exception as error:  # torch, zipfile and safetensors raise many kinds on damaged bytes
        raise UserError(
            f"{path}: truncated, or not a file of weights ({_line(error)}): fetch it again"
        ) from error
    found = list({id(state): (at, state) for at, state in _states(tree)}.values())
    if not found:
        raise UserError(
            f"{path}: found no weights but {_contents(tree)}, allowed is a state dict of tensors, "
            f"plain or under {', '.join(CONTAINERS)}: save the part that holds them by itself"
        )
    at, state = found[0]
    if len(found) > 1:
        others = " and ".join(name for name, _ in found[1:])
        log.warning("%s: took the weights under %s, not those under %s", path, at, others)
    _check_dense(path, state)
    return _named(state, wanted)


def _reader(path: Path) -> Callable[[Path], Any]:
    """What reads the file: its first bytes tell, its name does not.

    Raises:
        UserError: they are those of something else. OSError: it cannot be opened.
    """

    def refused(what: str, remedy: str) -> UserError:
        return UserError(f"{path}: found {what}, allowed is a file of weights: {remedy}")

    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pth"))
        raise refused("a folder", f"name the file in it{_such_as(inside)}")
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise refused("a pipe, socket or device", "copy what it gives to a file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise refused("an empty file", "fetch it again")
    for magic, what, remedy in FOREIGN:
        if head.startswith(magic):
            raise refused(what, remedy)
    # Eight bytes with the length of a header of JSON, of which safetensors allows 100 MB.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1e8:
        return _load_safetensors
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()
        parts = {name.rpartition("/")[2] for name in names}
        if "constants.pkl" in parts:
            command = _command(CONVERT_SCRIPT, path)
            raise refused("a TorchScript archive", f"convert it in its folder: {command}")
        if "data.pkl" not in parts:
            remedy = f"unpack it and name the file of weights in it{_such_as(names)}"
            raise refused("a zip archive of something else", remedy)
        if damaged:  # torch itself does not look at the checksums
            raise refused(f"a damaged record {damaged}", "fetch it again")
        return _load_torch
    if MAGIC in head[:40]:
        return _load_torch
    if head[257:262] == b"ustar":
        remedy = "unpack it and name the file of weights in it; a file of torch before 0.2 must "
        raise refused("a tar archive", remedy + "be saved again by a newer one")
    if head[:1] == b"\x80":
        remedy = "unpickle it where it was written and torch.save a state dict of tensors"
        raise refused("a pickle that torch did not write", remedy)
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if text.startswith("<"):
        raise refused("a web page, of a login or an error perhaps", "download the file itself")
    if text.startswith(("{", "[")):
        raise refused("JSON", "name the file of weights that it belongs to")
    first = text.split("\n")[0].rstrip()[:60]
    if first.isprintable() and len(text.encode()) > 0.9 * len(head.strip()) > 0:
        raise refused(f"a text ({first!r})", "fetch the file itself")
    raise refused("a file of an unknown kind, or a damaged one", "fetch it again")


def _such_as(names: Collection[str]) -> str:
    first = [name for name in names if not name.endswith("/")][:2]
    return f", such as {' or '.join(first)}" if first else ""


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file under all their names.

    Raises:
        ValueError: the note of tied names is damaged.
        SafetensorError, OSError: as safetensors raises them.
    """
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not iterable
        note = (file.metadata() or {}).get(TIED, "{}")
    try:
        tied = {key: state[name] for key, name in json.loads(note).items()}
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"damaged note of tied weights: {note}") from error
    return tied | state


def _load_torch(path: Path) -> Any:
    """What a torch file holds, with `Unread` in the place of what is not read.

    Raises:
        UserError: it holds objects of other classes; the message tells how to be rid of them.
    """
    replaced = [(stand_in, name) for name, stand_in in HARMLESS.items()]
    try:
        with (
            path.open("rb") as file,  # newer versions of torch believe what a name ends in
            warnings.catch_warnings(),
            torch.serialization.safe_globals(replaced),
        ):
            warnings.simplefilter("ignore")  # about versions of pickle, which is of no interest
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        named = re.search(r"GLOBAL ([\w.<>]+)", str(error))
        what = f"an object of class {named[1]}" if named else None
        if "Unsupported operand" in str(error):
            what = "a version of pickle"
        if what is None:
            raise
        raise UserError(
            f"{path}: found {what}, which is not loaded because that could run code; if you trust "
            "the file, save its tensors alone, in its folder where it was written: "
            f"{_command(CONVERT, path)}"
        ) from error


def _command(code: str, path: Path) -> str:
    """A command for a shell in the folder of ``path`` that writes its weights beside it."""
    names = (path.name, f"{path.stem}.weights.pth")
    return f"python -c {shlex.quote(code % tuple(map(json.dumps, names)))}"


def _states(tree: Any, at: str = "") -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every state dict in a file and where it lies, the one to take first."""
    if not isinstance(tree, Mapping) or at.count(".") > 3:  # a file may contain itself
        return
    if tree and all(isinstance(k, str) and isinstance(x, Tensor) for k, x in tree.items()):
        yield at, tree
        return
    for name in CONTAINERS:
        yield from _states(tree.get(name), f"{at}.{name}" if at else name)


def _contents(tree: Any, deeper: int = 3) -> str:
    """What a file holds, in a few words."""
    if not isinstance(tree, Mapping):
        return f"an object of type {type(tree).__name__}"
    if not tree:
        return "nothing"
    for name in CONTAINERS if deeper else ():
        if isinstance(tree.get(name), Mapping):
            return f"{_contents(tree[name], deeper - 1)} under {name}"
    # What is no tensor is what is in the way.
    parts = sorted(tree.items(), key=lambda part: isinstance(part[1], Tensor))
    text = ", ".join(f"{str(key)[:60]} ({type(x).__name__})" for key, x in parts[:4])
    return text + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


def _check_dense(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise `UserError` for tensors that are no plain arrays of real numbers."""
    kinds: dict[str, list[str]] = {}
    for key, x in state.items():
        if x.is_nested or x.layout != torch.strided:
            kinds.setdefault("sparse or nested", []).append(key)
        elif x.is_quantized:
            kinds.setdefault("quantised", []).append(key)
        elif x.is_complex():
            kinds.setdefault("complex", []).append(key)
        elif x.is_meta:
            kinds.setdefault("empty (meta)", []).append(key)
    for kind, keys in kinds.items():
        raise UserError(
            f"{path}: found {kind} weights {listed(keys)}, allowed are dense tensors of real "
            "numbers: save them as float32, x.to_dense() or x.dequantize()"
        )


def _named(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The weights under the names that most of ``wanted`` know; see `load_state`."""
    # Of how many weights torch.optim.swa_utils.AveragedModel is the average.
    others = {key: x for key, x in state.items() if key != "n_averaged"}
    if "n_averaged" not in wanted and _prefix(others) == "module.":
        state = others
    while (prefix := _prefix(state)) in PREFIXES:
        state = {key.removeprefix(prefix): x for key, x in state.items()}
    most, best, names, wrapper = 0, list(state), list(state), _prefix(wanted)
    while True:
        for added in ("", wrapper):
            known = sum(added + name in wanted for name in names)
            if known > most:  # of several ways that fit as well, the least change
                most, best = known, [added + name for name in names]
        if not (prefix := _prefix(names)):
            return dict(zip(best, state.values(), strict=True))
        names = [name.removeprefix(prefix) for name in names]


def _prefix(names: Collection[str]) -> str:
    """What stands before the first dot of all names, with the dot, or nothing."""
    heads = {"".join(name.partition(".")[:2]) for name in names}
    head = heads.pop() if len(heads) == 1 else ""
    return head if head.endswith(".") else ""


def listed(keys: Collection[str]) -> str:
    """The first three of many names."""
    return ", ".join(list(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _line(error: Exception) -> str:
    """The first line of an error's message, short enough for one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 120 else text[:117] + "…"
