"""Published teachers: fetched, accepted at their published accuracy, and pinned from then on."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from torch import nn

from eakd.classification.teacher import TOLERANCE
from eakd.download import Unreachable, is_secure, retrieve
from eakd.errors import UserError, check_name
from eakd.files import write_atomically, write_json
from eakd.models.weights import save_weights
from eakd.teachers.archive import check_archive, copy_member
from eakd.teachers.teacher import Teacher
from eakd.training.find_teacher import teacher_files, weights_digest
from eakd.training.save_teacher import set_aside

log = logging.getLogger(__name__)

MAX_ARCHIVE = 4 << 30  # bytes; the zoo's has 0.4 GB

# From a model's name and a file of weights: the network with them, and its accuracies in percent,
# {"top1", "top5"}.
Measure = Callable[[str, Path], tuple[nn.Module, dict[str, float]]]


def fetch(
    teachers: Sequence[Teacher],
    measure: Measure,
    archive: Path | None = None,
    mirrors: Sequence[str] | None = None,
) -> dict[str, str]:
    """Take teachers out of their archives; see `accept`.

    Args:
        archive: a local one for all of them.
        mirrors: URLs instead of those of the teachers.

    Returns:
        Why some could not be taken, by name.
    """
    groups: dict[tuple[str, ...], list[Teacher]] = {}
    for teacher in teachers:
        places = () if archive else teacher.archive if mirrors is None else tuple(mirrors)
        groups.setdefault(places, []).append(teacher)
    problems = {}
    for places, group in groups.items():
        try:
            with _archive(archive, places, group[0].root) as (path, label):
                for teacher in group:
                    try:
                        accept(teacher, path, label, measure)
                    except UserError as error:
                        problems[teacher.name] = str(error)
        except UserError as error:
            problems |= {teacher.name: str(error) for teacher in group}
    return problems


@contextmanager
def _archive(local: Path | None, mirrors: Sequence[str], root: Path) -> Iterator[tuple[Path, str]]:
    """An archive and where it is from. What was downloaded is removed in the end."""
    if local is not None:
        yield local, str(local)
        return
    filename = PurePosixPath(urlsplit(mirrors[0]).path).name
    check_name("the name of the archive", filename)
    target = root / filename
    if target.exists():  # put there, or left by a process that was killed
        yield target, str(target)
        return
    label = obtain(mirrors, target)
    try:
        yield target, label
    finally:
        target.unlink(missing_ok=True)


def obtain(mirrors: Sequence[str], target: Path) -> str:
    """Download an archive from the first of its mirrors that has it; that mirror.

    Raises:
        UserError: none has it, or ``target`` cannot be written; nothing is left then.
    """
    for url in mirrors:
        if not is_secure(url):
            raise UserError(f"mirrors: found {url!r}, allowed are URLs of https")
    failures = []
    for url in mirrors:
        try:
            retrieve(
                *(url, target, target.name),
                lambda path, _: check_archive(path, "the download"),
                MAX_ARCHIVE,
            )
            return url
        except (Unreachable, UserError) as error:
            failures.append(f"{url}: {error}")
        except OSError as error:
            raise _unwritable(error, target) from error
    raise UserError(
        f"mirrors: could not download {target.name} ({'; '.join(failures)}); fetch it elsewhere "
        "and pass archive=FILE, or train the teachers: mode=train"
    )


def accept(teacher: Teacher, archive: Path, label: str, measure: Measure) -> None:
    """Make the published teacher in ``archive`` the one that ``teacher.checkpoint=auto`` finds.

    It must load strictly, reach its published accuracy, and be the one that was pinned before, if
    any was. What was found until then is kept under another name.

    Args:
        label: where the archive is from, for messages and the record.

    Raises:
        UserError: it is not that teacher, or the disk refuses it.
    """
    name, member, pin = teacher.name, teacher.member, teacher.pin()
    if member is None or teacher.top1 is None:
        raise UserError(
            f"{name}: found nothing published for {teacher.data}, allowed is mode=train"
        )
    target = teacher_files(teacher.root, teacher.data, name)[0]
    with tempfile.TemporaryDirectory() as scratch:
        file, converted = Path(scratch) / f"{name}.pth", Path(scratch) / target.name
        try:
            digest = copy_member(archive, member, file, label)
            if pin is not None and pin["sha256"] != digest:
                raise UserError(
                    f"{label}: found {member} with SHA-256 {digest}, allowed is {pin['sha256']}, "
                    f"which {teacher.pin_file} pins; delete that to accept another"
                )
            try:
                model, metrics = measure(name, file)
            except UserError as error:
                raise UserError(str(error).replace(str(file), f"{label}, {member}")) from error
            top1 = metrics["top1"]
            if round(abs(top1 - teacher.top1), 2) > TOLERANCE:
                raise UserError(
                    f"{label}: found {member} at {top1:.2f} % top-1 on {teacher.data}, allowed is "
                    f"the published {teacher.top1:.2f} ± {TOLERANCE}: check the file and the data"
                )
            origin = {"source": label, "sha256": digest}
            header = {f"test_{key}": str(value) for key, value in metrics.items()}
            save_weights(model, converted, header | origin)
            weights, before = weights_digest(converted), teacher.file
            if before is not None and weights_digest(before) not in (weights, digest):
                log.info("%s of before is kept as %s", before, set_aside(before))
            # The pin first: a teacher without one counts as trained here.
            write_json(teacher.pin_file, {**origin, "weights": weights, **metrics})
            write_atomically(target, lambda path: shutil.copyfile(converted, path))
        except OSError as error:
            raise _unwritable(error, target) from error
    log.info(
        "%s: %.2f %% top-1 (%.2f published), SHA-256 %s is pinned, saved %s",
        *(name, top1, teacher.top1, digest, target),
    )


def _unwritable(error: OSError, target: Path) -> UserError:
    return UserError(
        f"checkpoint_root: found {error.filename or target} ({error.strerror or error}), allowed "
        "is a folder that can be written, on a disk with room"
    )
