"""A teacher that tables need: its file, what is published of it, and what was pinned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eakd.composing import compose
from eakd.errors import UserError
from eakd.reproduce.table import load_table, table_names
from eakd.training.find_teacher import manifest_entry, teacher_files, weights_digest
from eakd.training.reading import read_object


@dataclass(frozen=True)
class Teacher:
    """A trained network for a data set.

    Attributes:
        root: the folder ``checkpoints``.
        data, name: of the data set and of the model.
        top1: its published test accuracy in percent.
        archive: URLs of the archive that holds it; empty if it is not published.
        member: its file there, below any outer folders.
        train: overrides that training it takes besides those that its data set brings.
    """

    root: Path
    data: str
    name: str
    top1: float | None = None
    archive: tuple[str, ...] = ()
    member: str | None = None
    train: tuple[str, ...] = ()

    @classmethod
    def listed(cls, manifest: Path, root: Path, data: str, name: str) -> Teacher:
        """With what ``checkpoints/manifest.yaml`` says of it."""
        entry = manifest_entry(manifest, data, name)
        several = {key: tuple(entry.get(key) or ()) for key in ("archive", "train")}
        return cls(root, data, name, entry.get("top1"), member=entry.get("member"), **several)

    @property
    def file(self) -> Path | None:
        """What ``teacher.checkpoint=auto`` finds, if anything."""
        places = teacher_files(self.root, self.data, self.name)
        return next((path for path in places if path.is_file()), None)

    @property
    def pin_file(self) -> Path:
        """Where it is written which weights were accepted as the published ones."""
        return self.root / self.data / f"{self.name}.pin.json"

    def pin(self) -> dict[str, Any] | None:
        """``sha256`` of the published file, ``weights`` of ours, ``top1``, ``source``.

        Raises:
            UserError: the file is damaged.
        """
        pin = read_object(self.pin_file)
        kinds = {"sha256": str, "weights": str, "source": str, "top1": (int, float)}
        if pin is not None and not all(isinstance(pin.get(k), kinds[k]) for k in kinds):
            raise UserError(f"{self.pin_file}: found a damaged pin; delete it to fetch anew")
        return pin

    def check_pin(self) -> None:
        """Raise `UserError` if its file holds other weights than those that are pinned."""
        path, pin = self.file, self.pin()
        if path and pin and weights_digest(path) not in (pin["weights"], pin["sha256"]):
            raise UserError(
                f"{path}: found other weights than {self.pin_file} pins; mode=fetch replace=true "
                "fetches those, without the pin the file counts as trained here"
            )


def needed(data: str) -> list[str]:
    """The teachers of a data set's tables; of one without a table, what ``train.py`` assumes."""
    tables = [table for table in map(load_table, table_names()) if table["data"] == data]
    names = [pair.partition("-")[0] for table in tables for pair in table["pairs"]]
    return list(dict.fromkeys(names)) or [str(compose().teacher.name)]
