"""Groups of runs that a mean is taken over, and which of them may be compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eakd.errors import UserError
from eakd.reproduce.agreement import INPUTS, described, differing, facts, telling
from eakd.reproduce.escaping import one_line


def label(run: Mapping[str, Any], by: Sequence[str] = ("method",)) -> str:
    """The name of the group that a run belongs to.

    Args:
        run: one of `read_runs`.
        by: keys of the summary, or dotted keys of the config such as
            ``weighting.entropy_temperature``; a run without that key leaves it out.
    """
    return ", ".join(filter(None, _parts(run, by)))


def _parts(run: Mapping[str, Any], by: Sequence[str]) -> tuple[str, ...]:
    """What `label` says of each of ``by``."""
    known, plain = facts(run), ("method", "data", "teacher", "student")
    values = ((key, known.get(key)) for key in by)
    return tuple(
        "" if value is None else str(value) if key in plain else f"{key.rpartition('.')[2]}={value}"
        for key, value in values
    )


Groups = dict[tuple[str, ...], list[dict[str, Any]]]


def grouped(runs: Iterable[dict[str, Any]], by: Sequence[str]) -> Groups:
    """The runs of each group; what `label` joins is the key."""
    groups: Groups = defaultdict(list)
    for run in runs:
        groups[_parts(run, by)].append(run)
    return groups


def check_groups(runs: Sequence[dict[str, Any]], by: Sequence[str]) -> None:
    """Refuse to take a mean over runs that differ in more than their seed.

    Raises:
        UserError: a key of ``by`` that no run has; or runs of one group that differ in a key of
            their config, in data, teacher or epochs, or in nothing at all, with what to add to
            ``by``.
    """
    known = dict.fromkeys(key for run in runs for key in facts(run))
    for key in by if runs else ():
        if key not in known:
            names = ", ".join(one_line(n) for n in known if not n.endswith(("_last", "_best")))
            raise UserError(f"by: found {one_line(key)!r}, allowed is a list of {names}")
    for group in grouped(runs, by).values():
        keys = differing(group)
        seeds = Counter(run["seed"] for run in group)
        seed, count = seeds.most_common(1)[0]
        twice = f"two runs of {label(group[0], by)} with seed {seed}" if count > 1 else ""
        if keys:
            raise UserError(_refusal(twice or f"runs of {label(group[0], by)}", keys, runs, by))
        if twice:
            first, second = [run["directory"] for run in group if run["seed"] == seed][:2]
            raise UserError(
                f"runs: found {one_line(twice)} that differ in nothing but their place, {first} "
                f"and {second}; narrow runs"
            )


def _refusal(
    who: str, keys: Mapping[str, list[Any]], runs: Sequence[dict[str, Any]], by: Sequence[str]
) -> str:
    wanted = list(by)
    while True:  # adds a key each time that splits a group, or ends
        groups = grouped(runs, wanted).values()
        found = next(((group, d) for group in groups if (d := differing(group))), None)
        key = found and telling(found[1], found[0])
        if key is None or key in wanted:
            break
        wanted.append(key)
    if wanted == list(by):  # the groups are fine, and are compared with each other
        wanted += [key for key in keys if key not in by]
    return (
        f"by: found {one_line(who)} that differ in {described(keys)}; add what tells them apart, "
        f"by=[{','.join(map(one_line, wanted))}], or narrow runs"
    )


def baselines(groups: Groups, baseline: str | None) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Group → the group that it is compared with.

    Raises:
        UserError: there is no ``baseline``; the message says what there is.
    """
    labels = {", ".join(filter(None, name)): name for name in groups}
    firsts = {name[0] for name in groups if name}
    if baseline is not None and baseline not in {*labels, *firsts}:
        names = ", ".join(repr(one_line(name)) for name in dict.fromkeys([*labels, *firsts]))
        raise UserError(
            f"baseline: found {one_line(baseline)!r}, allowed is one of {names}, or null for kd, "
            "where there is one"
        )
    baseline, found = baseline or "kd", {}
    for name in groups:
        same = (baseline, *name[1:])  # of the same student, say, where by tells students apart
        other = same if same in groups else labels.get(baseline)
        if other not in (None, name):
            found[name] = other
    return found


def check_comparable(
    group: list[dict[str, Any]],
    other: list[dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    by: Sequence[str],
) -> None:
    """Refuse the difference of groups that were made from other data or another teacher's file."""
    found = differing([*group, *other])
    keys = {key: found[key] for key in INPUTS if key in found}
    if "teacher.name" in found:  # who compares two teachers has two files
        keys.pop("teacher_digest", None)
    if keys:
        who = f"{label(group[0], by)} and its baseline {label(other[0], by)}"
        raise UserError(_refusal(who, keys, runs, by))
