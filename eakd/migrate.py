"""``eakd-migrate``: a YAML file of mdistiller, or of a fork of it, as one of our commands.

Their code says more than their files do: what a file leaves out has the code's default, and some
keys are read for some methods only. Known are megvii-research/mdistiller ``a08d46f``,
sunshangquan/logit-standardization-KD ``f6e5aa5`` and cpsu00/EA-KD ``6fb4c06``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from eakd.composing import compose
from eakd.config import plain
from eakd.errors import UserError, check_boolean, check_choice, check_number, check_numbers
from eakd.places import command_words
from eakd.training.schedule import Recipe

CODES = ("mdistiller", "logit_standardization", "ea_kd")
METHODS = {"NONE": "none", "KD": "kd", "DKD": "dkd", "REVIEWKD": "reviewkd"}
METHODS |= dict.fromkeys(("MLKD", "KD_ours"), "mld")
DATA = {code: {"cifar100": "cifar100"} for code in CODES}
DATA["mdistiller"]["tiny_imagenet"] = "tiny_imagenet"
SAME_NAME = (
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet8x4", "resnet32x4", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "wrn_28_4"),
    *("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
)
NETWORKS = {name: name for name in SAME_NAME} | {
    "ResNet18": "resnet18",
    "ResNet50": "resnet50",
    "MobileNetV2": "mobilenetv2",
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
}

# Their key -> ours and their default. Every method has the first, the others have a section each.
SOLVER = {
    "SOLVER.EPOCHS": ("recipe.epochs", 240),
    "SOLVER.BATCH_SIZE": ("recipe.batch_size", 64),
    "SOLVER.LR": ("recipe.lr", 0.05),
    "SOLVER.LR_DECAY_STAGES": ("recipe.milestones", [150, 180, 210]),
    "SOLVER.LR_DECAY_RATE": ("recipe.gamma", 0.1),
    "SOLVER.WEIGHT_DECAY": ("recipe.weight_decay", 1e-4),
    "SOLVER.MOMENTUM": ("recipe.momentum", 0.9),
}
KD = {
    "KD.TEMPERATURE": ("distiller.temperature", 4),
    "KD.LOSS.CE_WEIGHT": ("distiller.ce_weight", 0.1),
    "KD.LOSS.KD_WEIGHT": ("distiller.kd_weight", 0.9),
}
DKD = {
    "DKD.CE_WEIGHT": ("distiller.ce_weight", 1),
    "DKD.ALPHA": ("distiller.alpha", 1),
    "DKD.BETA": ("distiller.beta", 8),
    "DKD.T": ("distiller.temperature", 4),
    "DKD.WARMUP": ("distiller.warmup", 20),
}
REVIEWKD = {
    "REVIEWKD.CE_WEIGHT": ("distiller.ce_weight", 1),
    "REVIEWKD.REVIEWKD_WEIGHT": ("distiller.review_weight", 1),
    "REVIEWKD.WARMUP_EPOCHS": ("distiller.warmup_epochs", 20),
}
SECTIONS = {"none": {}, "kd": KD, "mld": KD, "dkd": DKD, "reviewkd": REVIEWKD}
# Where a fork has other defaults.
DEFAULTS = {"logit_standardization": {"KD.TEMPERATURE": 2, "KD.LOSS.KD_WEIGHT": 9}}

# The methods for which a code reads its key of logit standardisation.
STANDARDIZED = {
    "mdistiller": (),
    "logit_standardization": ("kd", "dkd", "mld"),
    "ea_kd": ("dkd", "mld"),
}

# What has no counterpart, or needs none: a key or the beginning of keys -> why.
NEEDLESS = {
    "EXPERIMENT.": "a run's directory and name follow from its config",
    "LOG.WANDB": "tracking=wandb turns it on",
    "LOG.": "every epoch is recorded, and the state is saved by itself",
    "DATASET.NUM_WORKERS": "images lie in memory, no process loads them",
    "DATASET.TEST.": "evaluation has no number that depends on it",
    "REVIEWKD.MAX_MID_CHANNEL": "that code does not use it: 512, as here",
    "REVIEWKD.STU_PREACT": "the student's maps are taken after their activation",
    "REVIEWKD.": "channels and sizes are asked of the networks",
    "SOLVER.DOT.": "eakd has no DOT, which is another optimiser",
}
OTHERS = ("AT", "RKD", "FITNET", "KDSVD", "OFD", "NST", "PKT", "SP", "VID", "CRD")


def migrate(config: DictConfig) -> str:
    """Print the command for the file ``config["from"]``, below comments on what it leaves out.

    Raises:
        UserError: no such file, or one that describes what cannot be trained here.
    """
    path = Path(str(config["from"]))
    check_choice("code", config.code, ("auto", *CODES))
    check_boolean("logit_stand", config.logit_stand)
    for key in ("base_temp", "kd_weight"):
        check_number(key, config[key], above=0)
    given = read(path, plain(config.opts))
    code = guessed(given) if config.code == "auto" else config.code
    flags = {key: config[key] for key in ("base_temp", "kd_weight")} if config.logit_stand else {}
    if flags and code != "logit_standardization":
        if config.code != "auto":
            raise UserError("logit_stand: found true, allowed with code=logit_standardization")
        code = "logit_standardization"
    words, notes = command_of(given, code, flags)
    if config.code == "auto" and code == "mdistiller" and given.get("DISTILLER.TYPE") == "KD":
        notes += [
            f"{key} is not in the file: {KD[key][1]} in mdistiller, {value} in {fork}: code={fork}"
            for fork, values in DEFAULTS.items()
            for key, value in values.items()
            if key not in given
        ]
    lines = [f"# {path}, with the defaults of code={code}", *(f"# {note}" for note in notes)]
    text = "\n".join([*lines, shlex.join([*command_words("train"), *words])])
    print(text)
    return text


def read(path: Path, opts: object = ()) -> dict[str, Any]:
    """The values of a file by dotted key, and over them ``[KEY, VALUE, …]``.

    Raises:
        UserError: it cannot be read, or is no mapping; keys without a value.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"no YAML in line {mark.line + 1}" if mark else " ".join(str(error).split())
        reason = getattr(error, "strerror", None) or where
        raise UserError(f"from: found {str(path)!r} ({reason}), allowed is a YAML file") from error
    if not isinstance(found, dict):
        raise UserError(f"from: found no mapping in {str(path)!r}, allowed are lines KEY: VALUE")
    if not isinstance(opts, list) or len(opts) % 2:
        raise UserError(f"opts: found {opts}, allowed is a list [KEY,VALUE,…]")
    over = {str(key): value for key, value in zip(opts[::2], opts[1::2], strict=True)}
    return {**dict(_leaves(found)), **over}


def _leaves(node: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def guessed(given: Mapping[str, Any]) -> str:
    """Whose file it is, by what the others do not have."""
    kind = given.get("DISTILLER.TYPE")
    if kind == "KD_ours" or given.keys() & {"DISTILLER.EA", "DISTILLER.LS", "DISTILLER.t"}:
        return "ea_kd"
    if kind == "MLKD" or "EXPERIMENT.LOGIT_STAND" in given:
        return "logit_standardization"
    return "mdistiller"


def command_of(
    given: Mapping[str, Any], code: str, flags: Mapping[str, float]
) -> tuple[list[str], list[str]]:
    """The words after the program's name, and a line for each key that they do not hold.

    Args:
        given: their values by dotted key; what is absent has the default of ``code``.
        flags: ``base_temp`` and ``kd_weight`` of ``--logit-stand``, or empty.

    Raises:
        UserError: data, network or method that is not here, or a value that cannot be.
    """
    reading = Reading(given)
    data = reading.choice("DATASET.TYPE", "cifar100", DATA[code])
    method = reading.choice("DISTILLER.TYPE", "NONE", METHODS)
    if flags and method not in STANDARDIZED[code]:
        raise UserError(f"logit_stand: found true with {method}, which that code does not read")
    standardized = _standardized(reading, code, method) or bool(flags)
    weighted = code == "ea_kd" and method != "none" and reading.switch("DISTILLER.EA")
    networks = {**NETWORKS}
    if data == "tiny_imagenet":  # where they have another network of that name
        networks["MobileNetV2"] = "mobilenetv2_tiny"
    student = reading.choice("DISTILLER.STUDENT", "resnet32", networks)
    base = [f"data={data}", f"student={student}"]
    if method != "none":
        base.insert(1, f"teacher={reading.choice('DISTILLER.TEACHER', 'ResNet50', networks)}")
    base.append(f"distiller={'ea_' * weighted}{method}{'_ls' * standardized}")

    wanted = {}
    for key, (ours, default) in {**SOLVER, **SECTIONS[method]}.items():
        value = reading.number(key, DEFAULTS.get(code, {}).get(key, default))
        wanted[ours] = value
    if method == "dkd" and standardized:
        # Their weight of the whole term, which multiplies alpha and beta.
        in_file = reading.number("KD.LOSS.KD_WEIGHT", 0.9) if code == "ea_kd" else 1
        wanted["distiller.kd_weight"] = in_file
    if flags:
        wanted["distiller.temperature"] = flags["base_temp"]
        wanted["distiller.kd_weight"] = flags["kd_weight"]
        for key in ("DKD.T",) if method == "dkd" else ("KD.TEMPERATURE", "KD.LOSS.KD_WEIGHT"):
            reading.remarks[key] = "logit_stand=true brings another value"
    if weighted:
        if method in ("kd", "dkd"):
            wanted["weighting.max_entropy"] = 100  # in that code, whatever the number of classes
        if method in ("kd", "reviewkd"):
            wanted["weighting.entropy_temperature"] = reading.number("DISTILLER.t", 3.0)
        else:
            wanted["weighting.entropy_temperature"] = 3.0
    reading.check_solver(method)
    return _overrides(base, wanted), reading.notes(code, method)


def _standardized(reading: Reading, code: str, method: str) -> bool:
    """Whether the logits are standardised, by the key of the code."""
    key = "DISTILLER.LS" if code == "ea_kd" else "EXPERIMENT.LOGIT_STAND"
    return method in STANDARDIZED[code] and reading.switch(key)


def _overrides(base: list[str], wanted: Mapping[str, Any]) -> list[str]:
    """``base`` and what must be said besides, because our value would be another; composed."""
    config = compose(base)
    words = list(base)
    for key, value in wanted.items():
        if plain(OmegaConf.select(config, key)) != value:
            words.append(f"{key}={value}".replace(" ", ""))
    composed = compose(words) if words != base else config
    wrong = [key for key in wanted if plain(OmegaConf.select(composed, key)) != wanted[key]]
    assert not wrong, wrong
    recipe = plain(composed.recipe)
    Recipe(**{key: recipe[key] for key in recipe if key != "_target_"})  # checks the values
    return words


class Reading:
    """Their values, and which of them were asked for.

    Args:
        given: value by dotted key.
    """

    def __init__(self, given: Mapping[str, Any]):
        self.given, self.taken, self.remarks = given, set(), {}

    def value(self, key: str, default: Any) -> Any:
        self.taken.add(key)
        return self.given.get(key, default)

    def choice(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """Our name of what a key names."""
        found = self.value(key, default)
        if not isinstance(found, str) or found not in known:
            advice = {
                "DISTILLER.TYPE": ": docs/add-a-method.md adds one",
                "DATASET.TYPE": ": docs/extend.md shows how to bring your own",
            }.get(key, "")
            raise UserError(f"{key}: found {found!r}, allowed is one of {', '.join(known)}{advice}")
        return known[found]

    def switch(self, key: str) -> bool:
        """Whether something is on, which is off by default."""
        found = self.value(key, False)
        check_choice(key, found, (False, True, 0, 1))
        return bool(found)

    def number(self, key: str, default: Any) -> Any:
        """A number, or a list of them where the default is one; ``5e-4`` is a text in YAML 1.1."""
        found = self.value(key, default)
        if isinstance(default, list):
            found = [*map(_number, found)] if isinstance(found, list) else found
            return check_numbers(key, found)
        return check_number(key, _number(found))

    def check_solver(self, method: str) -> None:
        """What trains is SGD, by the loop of their method."""
        check_choice("SOLVER.TYPE", self.value("SOLVER.TYPE", "SGD"), ["SGD"])
        trainer = self.value("SOLVER.TRAINER", "base")
        if trainer not in ("base", "ours" if method == "mld" else "base"):
            self.remarks["SOLVER.TRAINER"] = f"eakd has no trainer {trainer!r}, this is plain SGD"

    def notes(self, code: str, method: str) -> list[str]:
        """A line for each key of the file that the command does not hold."""
        remarks = dict(self.remarks)
        for key in self.given.keys() - self.taken:
            remarks[key] = why_not(key, code, method)
        ordered = [key for key in self.given if key in remarks]
        return [f"not converted: {key}: {remarks[key]}" for key in ordered]


def _number(value: Any) -> Any:
    try:
        value = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def why_not(key: str, code: str, method: str) -> str:
    """Why a key of theirs is not in the command."""
    section = key.partition(".")[0]
    if key == "DISTILLER.TEACHER":
        return "distiller=none has no teacher"
    if key in ("DISTILLER.EA", "DISTILLER.LS", "DISTILLER.t", "EXPERIMENT.LOGIT_STAND"):
        return f"without effect on {method} in the code {code}"
    if any(key in keys for keys in SECTIONS.values()) or section in OTHERS:
        return f"of another method than {method}"
    for beginning, reason in NEEDLESS.items():
        if key.startswith(beginning):
            return reason
    return f"no key of the code {code}"
