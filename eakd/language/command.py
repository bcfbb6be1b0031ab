"""``scripts/evaluate_text.py``: ROUGE-L of any checkpoint on the test sets."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import nn

from eakd.config import plain
from eakd.errors import UserError, check_choice, check_folder, check_name, check_number, shortened
from eakd.files import write_json
from eakd.language.evaluate import Protocol, evaluate_rows
from eakd.language.generate import Sampling, check_positions
from eakd.language.hub import directory_digest, find_directory
from eakd.language.models import check_vocabulary, load_model
from eakd.language.predictions import Predictions
from eakd.language.rouge import has_words
from eakd.language.sets import SETS, Missing, Prepared, prepare
from eakd.language.text import Row, fingerprint, load_rows
from eakd.language.tokens import load_tokenizer
from eakd.targets import build
from eakd.training.device import Compute
from eakd.training.environment import environment
from eakd.training.lock import RunLock
from eakd.training.parallel import Processes
from eakd.training.run import build_compute

log = logging.getLogger(__name__)

LONGEST = 1 << 30
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


class Loaded(NamedTuple):
    """A set, and its rows as a tokenizer reads them: those whose prompt is not too long."""

    prepared: Prepared
    rows: Sequence[Row]


def evaluate_checkpoint(config: DictConfig) -> dict[str, Any]:
    """Do what ``configs/evaluate_text.yaml`` describes; print and return the result.

    Under torchrun, the processes share the rows, and the first one writes.

    Raises:
        UserError: a wrong value, named; nothing has been sampled then.
    """
    processes = Processes.launched()
    protocol = build(config.evaluation, "evaluation", Protocol)
    names = check_sets(plain(config.sets), plain(config.data.files) or {})
    check_number("batch_size", config.batch_size, at_least=1, integer=True)
    compute = processes.in_turn(lambda: build_compute(config, processes))
    directory = processes.in_turn(lambda: find_directory(config.checkpoint, "checkpoint"))
    tokenizer = _tokenizer(config, directory)
    digest = directory_digest(directory)
    name = f"{directory.resolve().name}-{digest[:8]}"
    folder = Path(config.results or Path(config.output_root, "evaluations", protocol.name, name))
    check_folder("results", str(folder))
    with RunLock(folder) if processes.first else contextlib.nullcontext():
        sets = processes.from_first(lambda: load_sets(config, names, folder, tokenizer, protocol))
        model = compute.move(_model(config, directory, tokenizer, compute))
        with _at("evaluation"):
            for each in sets.values():
                check_positions(model, (len(row.prompt_ids) for row in each.rows), protocol)
        how = {name: getattr(protocol, name) for name in [f.name for f in fields(Sampling)]}
        about = {"checkpoint": digest, "precision": compute.precision, "sampling": how}
        stores = {
            name: processes.from_first(
                lambda name=name, rows=rows: {
                    seed: Predictions(
                        folder / "predictions" / f"{name}-{seed}.jsonl",
                        {**about, "set": name, "rows": fingerprint(rows), "seed": seed},
                        config.replace,
                    )
                    for seed in protocol.seeds
                }
            )
            for name, (_, rows) in sets.items()
        }
        scores = {
            name: evaluate_rows(
                model,
                tokenizer,
                rows,
                seeds=protocol.seeds,
                protocol=protocol,
                batch_size=config.batch_size,
                compute=compute,
                predictions=stores[name],
                progress=name if config.progress else "",
            )
            for name, (_, rows) in sets.items()
        }
        result = {
            "checkpoint": str(directory),
            "checkpoint_digest": digest,
            "protocol": {"name": protocol.name, "seeds": list(protocol.seeds), **how},
            "precision": compute.precision,
            "device": str(compute.device),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "metrics": table_metrics(scores),
            "sets": {name: _of_set(each, scores[name]) for name, each in sets.items()},
            "environment": environment(),
        }
        if processes.first:
            write_json(folder / "result.json", result)
            print(describe(result, folder))
    return result


def check_sets(names: object, files: object) -> list[str]:
    """The sets to evaluate, each once.

    Raises:
        UserError: none, or one that is neither ours nor has a file; with the allowed ones.
    """
    if not isinstance(files, dict) or not all(isinstance(each, str) for each in files.values()):
        raise UserError(f"data.files: found {shortened(files)}, allowed are NAME: FILE")
    for name in files:
        check_name("data.files", name)
    if not isinstance(names, list) or not names:
        raise UserError(f"sets: found {shortened(names)}, allowed is a list of {', '.join(SETS)}")
    for name in names:
        check_choice("sets", name, dict.fromkeys((*SETS, *files)))
    return list(dict.fromkeys(names))


def load_sets(
    config: DictConfig, names: Sequence[str], folder: Path, tokenizer: Any, protocol: Protocol
) -> dict[str, Loaded]:
    """The sets that are there; a line is logged for each that is not.

    Raises:
        UserError: none of them is there; a row that cannot be used, with its line.
    """
    found: dict[str, Loaded] = {}
    missing = []
    for name in names:
        try:
            prepared = prepare(
                name,
                Path(config.data.root),
                folder / "sets",
                lambda: load_tokenizer(config.data.tokenizer, "data.tokenizer"),
                (plain(config.data.files) or {}).get(name),
            )
        except Missing as error:
            missing.append(str(error))
            log.warning("%s; its column stays empty", error)
            continue
        with _at("evaluation"):
            rows = load_rows(
                prepared.path,
                tokenizer,
                max_prompt_length=protocol.max_prompt_length,
                max_length=LONGEST,  # of references, which are not cut,
                template=config.data.template,
                key=f"data.files.{name}",
            )
        used = [row for row in rows if row.line <= prepared.last_line]
        if not any(has_words(text) for row in used for text in row.references):
            raise UserError(
                f"{prepared.path}: found references without a word that ROUGE sees, allowed are "
                "texts with letters or digits of ASCII"
            )
        counts = " → ".join(f"{count:,} {rule}" for rule, count in prepared.counts.items())
        log.info("%s: %s; sha256 %s", name, counts, prepared.sha256)
        if prepared.known is False:
            log.warning(
                "%s: these are not the rows of the published tables (sha256 %s), whose numbers "
                "cannot be compared with these",
                name,
                prepared.sha256,
            )
        found[name] = Loaded(prepared, used)
    if not found:
        raise UserError(f"data.root: {missing[0]}, and none of the other sets" if missing[1:]
                        else f"data.root: {missing[0]}")  # fmt: skip
    return found


def table_metrics(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What tables show, ``rouge_l_<set>``, with ``_sampling_std`` where there are several seeds.

    ``rouge_l_average`` is over the five sets of the tables, and only there if all are.
    """
    metrics = {}
    for name, values in scores.items():
        metrics[f"rouge_l_{name}"] = values["rouge_l"]
        if "sampling_std" in values:
            metrics[f"rouge_l_{name}_sampling_std"] = values["sampling_std"]
    if SETS.keys() <= scores.keys():
        metrics["rouge_l_average"] = statistics.fmean(scores[name]["rouge_l"] for name in SETS)
        seeds = [key for key in scores[next(iter(SETS))] if key.startswith("rouge_l_seed")]
        each = [statistics.fmean(scores[name][seed] for name in SETS) for seed in seeds]
        if len(each) > 1:
            metrics["rouge_l_average_sampling_std"] = statistics.stdev(each)
    return metrics


def describe(result: Mapping[str, Any], folder: Path) -> str:
    """The result as a table for people."""
    protocol = result["protocol"]
    lines = [f"{'set':<12}{'rows':>7}{'ROUGE-L':>10}{'± std':>8}{'ended %':>9}{'tokens':>8}"]
    for name, scores in result["sets"].items():
        std = scores.get("sampling_std")
        lines.append(
            f"{name:<12}{scores['counts']['evaluated']:>7,}{scores['rouge_l']:>10.2f}"
            f"{'–' if std is None else f'{std:.2f}':>8}{scores['ended']:>9.1f}"
            f"{scores['answer_length']:>8.1f}"
        )
    ban = protocol["no_repeat_ngram_size"]
    quoting = f"no run of {ban} tokens twice" if ban else "no ban"
    lines.append(
        f"Protocol {protocol['name']}: temperature {protocol['temperature']:g}, top-k "
        f"{protocol['top_k']}, top-p {protocol['top_p']:g}, {quoting}, up to "
        f"{protocol['max_new_tokens']} tokens; mean of {len(protocol['seeds'])} samplings, ± their "
        f"standard deviation; {result['precision']}. {folder / 'result.json'}"
    )
    return "\n".join(lines)


def _of_set(loaded: Loaded, scores: Mapping[str, float]) -> dict[str, Any]:
    prepared = loaded.prepared
    return {
        "file": str(prepared.path),
        "sha256": prepared.sha256,
        "of_the_tables": prepared.known,
        "counts": {**prepared.counts, "evaluated": len(loaded.rows)},
        **scores,
    }


def _tokenizer(config: DictConfig, directory: Path) -> Any:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer, "tokenizer", config.trust_remote_code)
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"checkpoint: found no {TOKENIZER_FILES[0]} in {directory}, allowed is a directory "
            "with one, or tokenizer=DIRECTORY"
        )
    return load_tokenizer(directory, "checkpoint", config.trust_remote_code)


def _model(config: DictConfig, directory: Path, tokenizer: Any, compute: Compute) -> nn.Module:
    try:
        model = load_model(directory, "checkpoint", config.trust_remote_code, compute.dtype)
    except UserError as error:  # the key is one of its own here
        raise UserError(str(error).replace("checkpoint.trust", "trust")) from error
    check_vocabulary(model, tokenizer, "checkpoint")
    return model


@contextlib.contextmanager
def _at(key: str) -> Iterator[None]:
    """Let errors about a protocol's values name the node that they are in."""
    try:
        yield
    except UserError as error:
        for prefix, place in (("max_", key), ("template", "data")):
            if str(error).startswith(prefix):
                raise UserError(f"{place}.{error}") from error
        raise
