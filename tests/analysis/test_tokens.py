"""Language models by token position and by answer: values that are known, and the command."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eakd import entropy
from eakd.analysis.command import figure
from eakd.analysis.runs import Runs, glob_runs
from eakd.analysis.texts import Texts, TokenValues, answer_weights, token_weights
from eakd.analysis.tokens import binned, check_alike, positions, temperature_of, tokens
from eakd.composing import compose
from eakd.config import ROOT
from eakd.errors import UserError
from eakd.language.batches import TextData
from eakd.language.evaluation import token_values
from eakd.language.loss import Options
from eakd.language.text import Row, Rows
from eakd.training.device import Compute
from eakd.weighting import ea_weight

DATA = ROOT / "eakd" / "language" / "data"
TOKENS = 5


def command(*words):
    return figure(compose(list(words), "figure"))


# Values that are known


class Table(torch.nn.Module):
    """Logits of the next token by the last one alone: a language model that is known by hand."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.config = logits, SimpleNamespace(vocab_size=len(logits))

    @property
    def base_model(self):
        return self

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=self.logits[input_ids])


def rows_of(*answers):
    return Rows([Row((1,), tuple(answer), ("",), "", i) for i, answer in enumerate(answers, 1)])


def asked(student, teacher, *answers, tokens_per_batch=100, **options):
    rows = rows_of(*answers)
    data = TextData(rows, {"test": rows}, batch_size=1, tokens_per_batch=tokens_per_batch)
    compute = Compute.create("cpu", "float32")
    found = token_values(student, teacher, data, "test", compute, TOKENS, Options(**options))
    return TokenValues(**found)


def test_entropies_by_position_that_are_known_by_hand():
    """Behind token k, k + 1 outputs are equally likely: log(k + 1) nats, at any temperature."""
    logits = torch.full((TOKENS, TOKENS), -math.inf).triu(1) + 0.0
    logits = logits.where(logits.isneginf(), 0.0).clamp(min=-1e4)
    sure = torch.full((TOKENS, TOKENS), -1e4).fill_diagonal_(0.0)
    # The tokens before the answers' are 1 (the prompt's), 2, 3 and 1, 0.
    values = asked(Table(logits), Table(sure), (2, 3, 4), (0, 2), entropy_temperature=3.0)
    assert values.lengths.tolist() == [2, 3]  # the shortest row first
    assert values.position.tolist() == [1, 2, 1, 2, 3] and values.row.tolist() == [0, 0, 1, 1, 1]
    known = np.log([2, 1, 2, 3, 4])
    assert values.student_entropy == pytest.approx(known, abs=1e-6)
    assert values.teacher_entropy == pytest.approx(0, abs=1e-6)
    assert values.divergence == pytest.approx(known, abs=1e-5)  # −log p of what the teacher says
    assert binned(values.student_entropy, values.position - 1) == pytest.approx(
        [known[[0, 2]].mean(), known[[1, 3]].mean(), known[4]], abs=1e-6
    )
    assert float(values.bound) == pytest.approx(math.log(TOKENS))


def test_padding_never_counts():
    student, teacher = (Table(torch.randn(TOKENS, TOKENS)) for _ in range(2))
    answers = [(2,), (3, 4, 0, 2, 2, 1), (1, 0), (4, 4, 4)]
    padded = asked(student, teacher, *answers)
    alone = asked(student, teacher, *answers, tokens_per_batch=1)  # a row a batch: no padding
    assert padded.lengths.sum() == 12 and len(padded.ce) == 12
    for name in ("ce", "right", "student_entropy", "teacher_entropy", "divergence"):
        assert np.allclose(getattr(padded, name), getattr(alone, name), atol=1e-6), name


def test_bins_of_positions():
    values = TokenValues(np.array([1, 9, 20]), *[np.zeros(30)] * 3, np.array(1.0))
    place, names = positions(values, "doubling")
    assert place[:1].tolist() == [0] and place[1:10].tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert names == {1.0: "1", 2.0: "2", 3.0: "4", 4.0: "8", 5.0: "16"} and place.max() == 4
    place, names = positions(values, "tenths")
    assert place[10:].tolist() == [each // 2 for each in range(20)] and len(names) == 10
    assert place[1:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert binned(np.array([1.0, 3.0]), np.array([0, 2])).tolist()[::2] == [1, 3]


# Real runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows, a teacher, and finished runs of seconds: kd, ea_kd, kd+matched twice."""
    from eakd.language.export import save_directory
    from eakd.language.models import load_tokenizer, tiny_gpt
    from eakd.language.text import read_lines
    from eakd.training.run import run

    folder = tmp_path_factory.mktemp("texts")
    lines = [line for _, line in read_lines(DATA / "python_docs.jsonl.gz")][:60]
    for name, part in (("train", lines[:36]), ("dev", lines[36:])):
        text = "".join(json.dumps(line) + "\n" for line in part)
        (folder / f"{name}.jsonl").write_text(text)
    tokenizer = load_tokenizer(DATA / "python_docs.tokenizer.json")
    torch.manual_seed(7)
    teacher = tiny_gpt(layers=1, width=48, heads=4, positions=128, tokenizer=tokenizer)
    for parameter in teacher.parameters():  # unsure of some answers and sure of others
        parameter.data *= 4 if parameter.dim() > 1 else 1
    save_directory(teacher, tokenizer, folder / "teacher", {})
    words = [
        *("data=text", f"data.train={folder}/train.jsonl", f"data.dev={folder}/dev.jsonl"),
        *(f"data.tokenizer={folder}/teacher", "data.template=plain"),
        *("data.max_prompt_length=64", "data.max_length=128", "data.tokens_per_batch=200"),
        *("teacher=hf", f"teacher.path={folder}/teacher", "student=tiny_gpt_s"),
        *("student.width=32", "student.layers=1", "recipe.epochs=1", "recipe.batch_size=12"),
        *("recipe.lr=0.005", "device=cpu", "precision=float32"),
        *(f"output_root={folder}/outputs", f"checkpoint_root={folder}/checkpoints"),
    ]
    for method in ("distiller=language/kd", "distiller=language/ea_kd"):
        for seed in (0, 1):
            run(compose([*words, method, f"seed={seed}"]))
    run(compose([*words, "distiller=language/kd", "weighting=matched"]))
    run(compose([*words, "distiller=language/sft", f"output_root={folder}/others"]))
    return folder


@pytest.fixture(scope="module")
def texts(place):
    return glob_runs(f"{place}/outputs/**", (), ("kd", "ea_kd"))


def test_values_are_those_of_the_logits(place, texts):
    """Position by position, from whole logits of one row at a time, by the functions of eakd."""
    (run, *_) = texts.of("ea_kd")
    opened = Texts(place / "direct", "cpu", "float32")
    values = opened.values(run, "test", "last", Options("forward_kl", 1.5, 2.0))
    student, teacher = opened.student(run, "last"), opened.teacher(run)
    rows = opened.data(run)[0].others["test"]
    rows = sorted(rows, key=lambda row: len(row.prompt_ids + row.response_ids))
    assert values.lengths.tolist() == [len(row.response_ids) for row in rows]
    seen = 0
    weights, answers = token_weights(run, values), answer_weights(run, values)
    for number, row in enumerate(rows):
        ids = torch.tensor([*row.prompt_ids, *row.response_ids])[None]
        first, count = len(row.prompt_ids) - 1, len(row.response_ids)
        with torch.no_grad():
            whole = [model(input_ids=ids).logits[0] for model in (student, teacher)]
        s, t = (logits[first : first + count] for logits in whole)
        here = slice(seen, seen + count)
        seen += count
        assert values.position[here].tolist() == list(range(1, count + 1))
        h_s, h_t = (entropy(logits, 2.0).numpy() for logits in (s, t))
        assert values.student_entropy[here] == pytest.approx(h_s, abs=1e-4)
        assert values.teacher_entropy[here] == pytest.approx(h_t, abs=1e-4)
        log_s, log_t = ((logits / 1.5).log_softmax(-1) for logits in (s, t))
        kl = (log_t.exp() * (log_t - log_s)).sum(-1).numpy()
        assert values.divergence[here] == pytest.approx(kl, abs=1e-4)
        right = s.argmax(-1) == torch.tensor(row.response_ids)
        assert values.right[here].tolist() == right.tolist()
        assert weights[here] == pytest.approx(ea_weight(s, t, 2.0).numpy(), abs=1e-3)
        bound = math.log(s.shape[-1])
        assert answers[number] == pytest.approx(
            (h_t.mean() + h_t.mean() * h_s.mean() / bound) / 2, abs=1e-3
        )
    assert seen == len(values.ce)
    config = {**run.config, "distiller": {**run.config["distiller"], "level": "token"}}
    each = answer_weights(SimpleNamespace(config=config, entropy_temperature=2.0), values)
    assert each == pytest.approx(values.means(weights))


def test_the_figure_and_its_cache(place, texts, monkeypatch):
    settings = {"output_root": str(place / "cached"), "device": "cpu", "precision": "float32"}
    result = tokens(texts, **settings)
    mean = np.mean([run.summary["token_accuracy_best"] for run in texts.of("kd")])
    assert result.numbers["accuracy.kd"] == pytest.approx(mean, abs=1e-3)
    assert list(result.panels) == [
        *("position.entropy", "position.weight", "position.kl"),
        *("example.weight", "example.kl", "example.accuracy"),
    ]
    for panel in result.panels.values():
        kd, ea, matched = panel.series[:3]
        assert [kd.name, ea.name, matched.name] == ["kd", "ea_kd", "kd+matched"]
        assert len(kd.by_seed) == 2 and np.all((kd.low <= kd.y) & (kd.y <= kd.high))
        assert matched.low is None
    assert set(result.tests) == {"kl.ea_kd-kd", "kl_high.ea_kd-kd", "accuracy.ea_kd-kd"}
    assert result.about["samples"] == 24 and result.about["entropy_temperature"] == 3
    assert "of 24." in result.not_shows
    # A second call opens no network.
    monkeypatch.setattr("eakd.analysis.texts.load_model", None)
    again = tokens(texts, **settings)
    assert again.numbers == result.numbers
    tenths = tokens(texts, bins="tenths", **settings)
    assert len(tenths.panels["position.kl"].x_ticks) == 10
    assert sum(path.stat().st_size for path in (place / "cached").rglob("*.npz")) < 200_000


@pytest.mark.slow
def test_the_command(place, capsys):
    words = [f"runs={place}/outputs/**", f"output_root={place}/drawn", "tokens.device=cpu"]
    text = command("figure=tokens", *words)
    assert "figure tokens: " in text and "EA weighs answers of high teacher entropy" in text
    folder = place / "drawn" / "figures" / "tokens-runs"
    kinds = ("figure.pdf", "figure.svg", "figure.png", "data.npz", "data.csv", "figure.json")
    assert {path.name for path in folder.iterdir()} == {*kinds, "caption.md"}
    caption = (folder / "caption.md").read_text()
    assert "n = 2 (seeds 0, 1)" in caption and "1 epochs" in caption and "τ′ = 3" in caption
    assert "test split" in caption and "commit" in caption
    page = json.loads((folder / "figure.json").read_text())["page"]
    assert [line[2] for line in page["lines"]].count("–") == 0 and len(page["lines"]) == 4
    command("figure=[3,4,5]", *words)  # of real records of texts
    assert "KLD" in (place / "drawn" / "figures" / "5-runs" / "caption.md").read_text()


def test_a_plan_is_table_6s(tmp_path):
    text = command("figure=tokens", "mode=plan", f"output_root={tmp_path}")
    assert "15 runs (15 to do); needs weights, teacher" in text and "protocol default" in text
    with pytest.raises(UserError, match=r"^figure tokens: found no finished run of its plan"):
        command("figure=tokens", "mode=draw", f"output_root={tmp_path}")
    with pytest.raises(UserError, match=r"tokens-default-paper/figure.json: found no file"):
        command("figure=tokens", "compute=false", f"output_root={tmp_path}")


# Bad inputs


def refused(runs, place, message, **settings):
    with pytest.raises(UserError, match=message) as caught:
        tokens(runs, output_root=str(place / "cached"), device="cpu", **settings)
    assert "\n" not in str(caught.value)


def test_bad_settings(place, texts):
    refused(texts, place, r"^select: found 'first', allowed is one of best, last", select="first")
    refused(texts, place, r"^bins: found 'log', allowed is one of doubling, tenths", bins="log")
    refused(texts, place, r"^split: found 'val', allowed is one of test", split="val")
    refused(texts, place, r"^temperature: found 0, ", temperature=0)


def test_runs_that_it_is_not_for(place, texts, trained, tmp_path):
    def run(pattern):
        with pytest.raises(UserError) as caught:
            command("figure=tokens", f"runs={pattern}", f"output_root={tmp_path}/out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out" / "figures" / "tokens-runs").exists()
        return str(caught.value)

    assert run(f"{trained}/**").endswith("Classification, allowed are runs of texts")
    assert "found method sft, allowed for figure tokens is a method with a" in run(
        f"{place}/others/**"
    )
    shutil.copytree(texts[0].directory, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    assert run(f"{tmp_path}/unfinished").startswith("runs: found no finished run in ")
    shutil.copytree(texts[0].directory, tmp_path / "gone")
    for name in ("best", "last"):
        (tmp_path / "gone" / name / "model.safetensors").write_bytes(b"cut off")
    assert "damaged (found no model that can be read" in run(f"{tmp_path}/gone")


def test_runs_that_are_not_alike(texts):
    one, two = texts.of("ea_kd")
    changed = Runs([one, replaced(two, weighting={"entropy_temperature": 1})])
    with pytest.raises(UserError, match=r"^runs: found τ′ 1 and 3, allowed is one; narrow runs$"):
        temperature_of(changed)
    assert temperature_of(texts) == 3
    other = replaced(two, summary={**two.summary, "data_fingerprint": "0"})
    with pytest.raises(UserError, match=r"^runs: found 2 sets of rows, allowed is one; narrow"):
        check_alike(Runs([one, other]))


def replaced(run, summary=None, **config):
    return replace(run, config={**run.config, **config}, summary=summary or run.summary)
