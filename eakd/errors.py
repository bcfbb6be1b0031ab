"""The errors a user can cause, each one line: the key or file, what was found, what is allowed."""

from __future__ import annotations

import difflib
import errno
import os
import signal
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something the user can put right. Entry points print it as one line, exit status 2."""


def one_line_of(error: BaseException, most: int = 120) -> str:
    """An error's message in one line, cut behind ``most`` characters; without one, its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    integer: bool = False,
) -> Any:
    """Raise `UserError` unless ``value`` is a finite number inside the stated bounds.

    numpy's numbers and tensors without dimensions are numbers, booleans and texts are not.

    Returns:
        Python's own number, an int or a float.
    """
    number = _python_number(value)
    if (
        not isinstance(number, int if integer else (int, float))
        or isinstance(number, bool)
        or not abs(number) <= sys.float_info.max  # NaN, infinite, or an integer beyond any float
        or (above is not None and number <= above)
        or (at_least is not None and number < at_least)
        or (at_most is not None and number > at_most)
    ):
        kind = "an integer" if integer else "a number"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in ((">", above), (">=", at_least), ("<=", at_most))
            if bound is not None
        ]
        allowed = " ".join([kind, " and ".join(bounds)]).strip()
        found = shortened(value).replace("\n", " ")  # arrays are shown in several lines
        raise UserError(f"{name}: found {found}, allowed is {allowed}")
    return number


def _python_number(value: Any) -> Any:
    # This module is read before torch, by all that only plans; what is not loaded made no value.
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, numpy.number):
        return value.item()
    if torch is not None and isinstance(value, torch.Tensor) and value.dim() == 0:
        return value.item()
    return value


def check_numbers(
    name: str, values: object, length: int | None = None, **bounds: Any
) -> list[int | float]:
    """Raise `UserError` unless ``values`` is a list of numbers, of that length if one is given.

    Args:
        **bounds: of each number, see `check_number`.

    Returns:
        Python's own numbers.
    """
    listed = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)
    found = list(values) if listed else []
    if not listed or len(found) != (len(found) if length is None else length):
        many = "numbers" if length is None else f"{length} numbers"
        raise UserError(f"{name}: found {shortened(values)}, allowed is a list of {many}")
    return [check_number(name, value, **bounds) for value in found]


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `UserError` unless ``value`` is one of ``allowed``."""
    allowed = list(allowed)
    # True equals 1, and is not meant by it.
    if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
        raise UserError(
            f"{name}: found {shortened(value)}, allowed is one of {', '.join(map(str, allowed))}"
        )


def check_name(name: str, value: object) -> None:
    """Raise `UserError` unless ``value`` is text that can be the name of a file or folder.

    It is part of paths, so it must not lead elsewhere, hide what is called by it, or be too long
    for what is added to it: 1 to 100 bytes of UTF-8, printable, without slashes and backslashes,
    no dot at the start, no blank at either end.
    """
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 1 <= len(value.encode()) <= 100
        or value.startswith(".")
        or value != value.strip()
        or "/" in value
        or "\\" in value
    ):
        raise UserError(
            f"{name}: found {shortened(value)}, allowed is a "
            f"name of 1 to 100 bytes, printable, without / and \\, no dot first, no blank first or "
            f"last"
        )


def check_boolean(name: str, value: object) -> None:
    """Raise `UserError` unless ``value`` is true or false; 1 and ``"true"`` are neither."""
    if not isinstance(value, bool):
        raise UserError(f"{name}: found {shortened(value)}, allowed is true or false")


def check_text(name: str, value: object) -> None:
    """Raise `UserError` unless ``value`` is text, and not empty."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise UserError(
            f"{name}: found the number {shortened(value)}, allowed is a text, in quotes of its own "
            f"if it looks like a number: '{name}=\"{shortened(value)}\"'"
        )
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise UserError(f"{name}: found {shortened(value)}, allowed is a text that is not empty")


def check_folder(name: str, value: object) -> None:
    """Raise `UserError` unless ``value`` is the path of a folder, or of one that can be made."""
    check_text(name, value)
    path = Path(str(value))
    problem = _unusable(path)
    if problem:
        raise UserError(f"{name}: found {shortened(value)}, allowed is a folder's path ({problem})")


def check_file(name: str, value: object) -> None:
    """Raise `UserError` unless a file can be written to the path ``value``."""
    check_text(name, value)
    path = Path(str(value))
    problem = "that is a folder" if os.path.isdir(path) else _unusable(path.parent, path.name)
    if problem:
        raise UserError(f"{name}: found {shortened(value)}, allowed is a file's path ({problem})")


def _unusable(folder: Path, *names: str) -> str | None:
    """Why there can be no such folder, or no such name in it."""
    try:
        if any(len(os.fsencode(part)) > 255 for part in (*folder.parts, *names)):
            return os.strerror(errno.ENAMETOOLONG)
        for place in (folder, *folder.parents):
            try:
                is_folder = stat.S_ISDIR(place.stat().st_mode)
            except FileNotFoundError:
                if place.is_symlink():
                    return f"{place} is a link to nothing"
                continue
            return None if is_folder else f"{place} is no folder"
    except (OSError, ValueError) as error:  # a cycle of links, a folder that may not be entered
        return str(getattr(error, "strerror", None) or error)
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """``is one of a, b, c``, with the ones that look like ``name`` at the end again."""
    known = [str(each) for each in known]
    if not known:
        return "is none"
    alike = [each for each in known if name and (name in each or each in name)]
    alike += difflib.get_close_matches(name, known, n=2)
    hint = f"; nearest is {' or '.join(dict.fromkeys(alike[:2]))}" if alike else ""
    return f"is one of {', '.join(known)}{hint}"


def shortened(value: object) -> str:
    """``repr`` of a value, in one line of at most 120 characters."""
    text = value if isinstance(value, str) else ""
    found = repr(value) if not text or text.isprintable() else ascii(value)
    return found if len(found) <= 120 else f"{found[:120]}..."


class Diverged(RuntimeError):
    """The loss became infinite or NaN."""


class Interrupted(RuntimeError):
    """A signal stopped a run after its state was saved.

    Args:
        number: the signal; the process exits with ``128 + number``.
        checkpoint: where the state is.
    """

    def __init__(self, number: int, checkpoint: str):
        name = signal.Signals(number).name
        super().__init__(f"{name}: state saved to {checkpoint}; the same command continues the run")
        self.number, self.checkpoint = number, checkpoint
        self.exit_status = 128 + number

    def __reduce__(self) -> tuple[Any, ...]:
        # Launchers pickle a job's error, and an exception is made again from its message only.
        return type(self), (self.number, self.checkpoint), self.__dict__

    def hand_on(self) -> None:
        """Give the signal to the scheduler's tool that waits for it, to requeue the job and exit.

        To be called when everything is closed. SIGTERM and SIGINT have done their work by then.
        """
        if self.number not in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(self.number)
