"""What runs must have in common before a mean is taken over them, and what is only worth a word."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from eakd.reproduce.escaping import one_line

Run = Mapping[str, Any]  # what summary.json holds, with "config", and "finished" where it is known
Key = TypeVar("Key", bound=Hashable)

# What decides a run's numbers and stands in its summary only.
INPUTS = ("data_fingerprint", "teacher_digest")
RECORDED = (*INPUTS, "epochs")
# Sections of a config → the key of a summary that names what is chosen there.
SECTIONS = {"data": "data", "teacher": "teacher", "student": "student", "distiller": "method"}
TOLERANCE = 0.015  # of a teacher's metrics: more than the last of the digits that are shown


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of nested dictionaries; lists count as values."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def facts(run: Run) -> dict[str, Any]:
    """What is known of a run: dotted keys of its config and of its summary, which wins."""
    summary = {key: run[key] for key in run if key not in ("config", "directory", "metrics")}
    known = {key: value for key, value in leaves(summary).items() if value is not None}
    return leaves(run.get("config", {})) | known


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Key → different values, of everything that must be equal in runs that differ in their seed.

    These are the keys of the config, the fingerprint of the data, the teacher's digest and the
    epochs. Where a digest is missing, as in runs of earlier versions, the teacher's metrics stand
    in for it, among runs of one precision on one kind of device.
    """
    settings = []
    for run in runs:
        found = leaves(run.get("config", {}))
        found.pop("seed", None)
        recorded = {key: run[key] for key in RECORDED if run.get(key) is not None}
        settings.append(found | recorded)
    keys = dict.fromkeys(key for found in settings for key in found)
    values = {
        # A summary of an earlier version may lack a key, a config may not.
        key: _distinct(s.get(key) for s in settings if key in s or key not in RECORDED)
        for key in keys
    }
    if any(run.get("teacher_digest") is None for run in runs) and _alike(runs):
        values |= {
            key: _distinct(numbers)
            for key, numbers in teacher_metrics(runs).items()
            if max(numbers) - min(numbers) > TOLERANCE
        }
    return {key: found for key, found in values.items() if len(found) > 1}


def teacher_metrics(runs: Sequence[Run]) -> dict[str, list[float]]:
    """``teacher_<metric>`` → the values of the runs that have it."""
    found = defaultdict(list)
    for run in runs:
        for key, value in run.items():
            if key.startswith("teacher_") and isinstance(value, int | float):
                found[key].append(value)
    return found


def _alike(runs: Sequence[Run]) -> bool:
    places = environment(runs)
    return all(len(set(map(str, places[key]))) == 1 for key in ("precision", "device"))


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def telling(keys: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """The one of `differing` keys that explains most: another student explains its rate too."""
    for section, short in SECTIONS.items():
        if f"{section}.name" in keys:
            named = len({str(run.get(short)) for run in runs}) > 1
            return short if named else f"{section}.name"
    return next(iter(keys))


def described(keys: Mapping[str, Sequence[Any]], limit: int = 6) -> str:
    """``recipe.lr (0.05, 0.1), student.name (resnet8, resnet14) and 3 more``.

    Of another data set, network or method only the name is told.
    """
    named = [section for section in SECTIONS if f"{section}.name" in keys]
    if "distiller" in named:
        named.append("weighting")  # is part of a method's name
    shown = [
        key
        for key in keys
        if key.partition(".")[0] not in named or key.removesuffix(".name") in SECTIONS
    ]
    parts = [f"{one_line(key)} ({', '.join(map(_short, keys[key][:3]))})" for key in shown[:limit]]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(parts) + more


def _short(value: Any) -> str:
    text = "none" if value is None else one_line(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def outdated(
    runs: Mapping[Key, Run], key: str, current: str | None = None
) -> dict[Key, tuple[str, str]]:
    """The runs whose ``key``, one of `INPUTS`, is not the current one: (theirs, the current).

    Args:
        current: what lies there now; by default what the run that finished last was made from.
            Runs that do not know theirs, from earlier versions, are never outdated.
    """
    known = {place: run for place, run in runs.items() if run.get(key) is not None}
    counts = Counter(str(run[key]) for run in known.values())
    if current is None and len(counts) < 2:
        return {}
    if current is None:
        newest = max(known.values(), key=lambda run: (_time(run), counts[str(run[key])]))
        current = str(newest[key])
    return {
        place: (str(run[key]), current) for place, run in known.items() if str(run[key]) != current
    }


def stale_text(key: str, found: str, current: str, place: object = "the newest run") -> str:
    """Why a run is stale, and the way on; ``place`` is what has the ``current`` one."""
    what = {"data_fingerprint": "other data", "teacher_digest": "another teacher"}[key]
    return (
        f"made with {what} ({one_line(found)[:12]}) than {one_line(place)} "
        f"({one_line(current)[:12]}); retry=true trains it again"
    )


def _time(run: Run) -> float:
    try:
        return datetime.strptime(run["finished"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0


# What is worth a word


def environment(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Precision, device, versions and commit: key → one value a run."""
    found = [
        {
            "precision": run.get("precision"),
            "device": str(run.get("device")).split(":")[0],  # cuda:0 and cuda:1 are alike
            **run.get("environment", {}),
        }
        for run in runs
    ]
    # Which core or GPU a worker happened to get changes from launch to launch, and no number.
    places = ("affinity", "visible_devices")
    keys = dict.fromkeys(key for each in found for key in each if key not in places)
    return {key: [each.get(key) for each in found] for key in keys}


def environment_warnings(runs: Sequence[Run]) -> Iterator[str]:
    """A line for each thing in which the runs' environments differ, and for uncommitted changes."""
    for key, values in environment(runs).items():
        if key != "modified":  # has a line of its own
            yield from mixed(key, values)
    modified = sum(bool(run.get("environment", {}).get("modified")) for run in runs)
    if modified:
        yield f"the code had uncommitted changes in {count_runs(modified)}"


def mixed(key: str, values: Sequence[Any]) -> Iterator[str]:
    """``mixed torch among the runs: …``, if they are."""
    if len(set(map(str, values))) > 1:
        yield f"mixed {one_line(key)} among the runs: {counted(values)}"


def counted(values: Iterable[Any]) -> str:
    """``2.9.0 (5 runs), 2.8.0 (1 run)``: the most frequent first."""
    counts = Counter(map(one_line, values))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{text} ({count_runs(count)})" for text, count in ordered)


def count_runs(count: int) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} run" if count == 1 else f"{count} runs"
