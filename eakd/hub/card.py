"""The card of an exported network: ``README.md`` as the hub reads it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf

from eakd import __version__
from eakd.hub.folder import BOXES, IMAGES, TEXT, WEIGHTS
from eakd.training.protocol import describe_recipe

# The hub's names of metrics, where it has one.
TYPES = {"top1": "accuracy", "top5": "top_5_accuracy", "ap": "mean_average_precision"}
PAPER = "EA-KD: Entropy-based Adaptive Knowledge Distillation"
SOFTWARE = "eakd: entropy-based adaptive knowledge distillation"
CITATION = f"""\
@inproceedings{{ea_kd,
  title = {{{PAPER}}},
  author = {{Su, Chi-Ping and Tseng, Ching-Hsun and Pu, Bin and Zhao, Lei and Yang, Jiewen and
            Chen, Zhuangzhuang and Lee, Shin-Jye}},
  booktitle = {{Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)}},
  year = {{2025}},
  pages = {{731--740}}
}}

@software{{eakd,
  title = {{{SOFTWARE}}},
  author = {{{{The eakd authors}}}},
  version = {{{__version__}}}
}}
"""


class Facts(NamedTuple):
    """What a card tells of.

    Attributes:
        which: ``last`` or ``best``, the epoch whose weights these are.
        config: what identifies the run, its ``config.json``.
        summary: its ``summary.json``.
        section: what the export's ``config.json`` says, see `eakd.hub.folder`.
        library: the one that opens the folder by itself: ``eakd``, ``timm`` or ``transformers``.
        license: an identifier of the hub's.
    """

    which: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    section: Mapping[str, Any]
    library: str
    license: str


def card(facts: Facts) -> str:
    """The whole text."""
    header = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# {title(facts)}",
        _introduction(facts),
        f"## Results\n\n{_results(facts)}",
        f"## Use\n\n{_use(facts)}",
        f"## Training\n\n{_training(facts)}",
        f"## Citation\n\n```bibtex\n{CITATION}```",
    ]
    return "\n\n".join(parts) + "\n"


def title(facts: Facts) -> str:
    """``resnet8 on digits, ea_kd``."""
    summary = facts.summary
    return _safe(f"{summary['student']} on {summary['data']}, {summary['method']}")


def front_matter(facts: Facts) -> dict[str, Any]:
    """What the hub reads: library, licence, task, and the results of these weights."""
    summary, task = facts.summary, facts.section["task"]
    chosen = _label(facts, facts.which)
    results = [
        {
            "type": TYPES.get(name, name),
            "name": f"{heading}, {chosen}",
            "value": summary[f"{name}_{facts.which}"],
        }
        for name, heading in summary["metrics"].items()
    ]
    dataset = {"name": str(summary["data"]), "type": str(summary["data"]), "split": "test"}
    return {
        "library_name": facts.library,
        "license": facts.license,
        "pipeline_tag": task,
        "tags": ["eakd", "knowledge-distillation", str(summary["method"])],
        "metrics": [TYPES.get(name, name) for name in summary["metrics"]],
        "model-index": [
            {
                "name": title(facts),
                "results": [{"task": {"type": task}, "dataset": dataset, "metrics": results}],
            }
        ],
    }


def _label(facts: Facts, which: str) -> str:
    if which == "last":
        return f"last epoch ({facts.summary['epochs']})"
    first, selection = next(iter(facts.summary["metrics"])), facts.summary["selection"]
    return f"best epoch ({facts.summary[f'{first}_best_epoch']}, chosen on {selection})"


def _introduction(facts: Facts) -> str:
    teacher = facts.summary.get("teacher")
    how = f"distilled from `{_safe(teacher)}`" if teacher else "trained without a teacher"
    return (
        f"A `{_safe(facts.summary['student'])}` {how}, written by `eakd-export` of eakd "
        f"{__version__}. The weights are those of the {_label(facts, facts.which)}."
    )


def _results(facts: Facts) -> str:
    summary = facts.summary
    columns = ["last", "best"]
    heads = [_label(facts, which) + ", these weights" * (which == facts.which) for which in columns]
    lines = [["test split", *heads], ["---"] * 3]
    for name, heading in summary["metrics"].items():
        values = (summary[f"{name}_{which}"] for which in columns)
        lines.append([heading, *(f"{value:.4f}" for value in values)])
    text = "\n".join(f"| {' | '.join(map(_safe, line))} |" for line in lines)
    if summary["selection"] == "test":
        text += (
            "\n\nThe best epoch was chosen on the test split itself, as in most published numbers: "
            "it tends to be higher than what other images would show."
        )
    return text


def _use(facts: Facts) -> str:
    section = facts.section
    blocks = {
        IMAGES: (
            "logits = model(images).logits  # images (N, 3, H, W): (pixels / 255 - mean) / std\n"
            'model.exported["mean"], model.exported["std"], model.exported["classes"]'
        ),
        BOXES: "model.categories  # id and name of label 1, 2, …; `model.detect` finds boxes\n",
        TEXT: "model.generate(…)  # a model of transformers",
    }
    text = '```python\nimport eakd\n\nmodel = eakd.load("FOLDER")  # or "OWNER/NAME" on the hub\n'
    text += f"{blocks[section['task']].rstrip()}\n```\n\n"
    if section["task"] == IMAGES:
        size, mean, std = (section[key] for key in ("image_size", "mean", "std"))
        side = f"{size} pixels a side, " if size else ""
        text += f"Images: {side}channels RGB, mean {mean}, standard deviation {std}."
    if facts.library == "timm":
        text += (
            '\n\n```python\nimport timm\n\nmodel = timm.create_model("local-dir:FOLDER", '
            'pretrained=True)  # or "hf-hub:OWNER/NAME"\n```\n\n'
            "Alone, the network takes images of its own size and normalisation, which timm knows: "
            "`timm.data.resolve_model_data_config(model)`."
        )
    elif facts.library == "transformers":
        text += (
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```'
        )
    else:
        text += (
            f'\n\nWithout eakd, `safetensors.torch.load_file("{WEIGHTS}")` is the state dict of '
            f"`{_safe(section['network']['constructor'])}`."
        )
    return text.strip()


def _training(facts: Facts) -> str:
    config, summary, section = _without_places(facts.config), facts.summary, facts.section
    recipe = OmegaConf.create(config["recipe"])
    rows = {
        "data": f"`{_safe(summary['data'])}`, SHA-256 {summary.get('data_fingerprint', 'unknown')}",
        "best epoch chosen on": summary["selection"],
        "teacher": _teacher(facts),
        "method": f"`{_safe(summary['method'])}`: {_settings(config['distiller'])}",
        "weighting": _settings(config["weighting"]),
        "recipe": describe_recipe(recipe, str(summary.get("recipe", "custom"))),
        "seed": summary["seed"],
        "precision": summary.get("precision", "unknown"),
        "parameters": summary.get("parameters", "unknown"),
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in summary.get("environment", {}).items()
            if name in ("eakd", "torch", "torchvision", "timm", "python") and version
        ),
        "weights": ", ".join(f"`{name}` {digest}" for name, digest in section["weights"].items()),
    }
    table = "\n".join(f"| {name} | {_safe(value)} |" for name, value in rows.items())
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return (
        f"| | |\n|---|---|\n{table}\n\nThe digest of weights is over names, types, shapes and "
        f"values of the tensors.\n\nThe whole configuration:\n\n```yaml\n{text}```"
    )


def _without_places(value: Any) -> Any:
    """A config whose absolute paths, which are nobody's business, are names."""
    if isinstance(value, Mapping):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _teacher(facts: Facts) -> str:
    summary = facts.summary
    if not summary.get("teacher"):
        return "none: labels alone"
    numbers = [
        f"{heading} {summary[f'teacher_{name}']:.4f}"
        for name, heading in summary["metrics"].items()
        if f"teacher_{name}" in summary
    ]
    digest = summary.get("teacher_digest", "unknown")
    return ", ".join([f"`{summary['teacher']}`", *numbers, f"weights {digest}"])


def _settings(node: Any) -> str:
    """``kind=ea, entropy_temperature=3``: the keys of a config's node."""
    if not isinstance(node, Mapping):
        return str(node)
    values = {key: value for key, value in node.items() if key not in ("_target_", "name")}
    return ", ".join(f"{key}={json.dumps(value, default=str)}" for key, value in values.items())


def _safe(value: Any) -> str:
    """In one line of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
