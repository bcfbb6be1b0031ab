"""The benchmark runs its loops with language models, for real, and all do the same work."""

import json
import statistics

import pytest
import torch
from torch.utils._pytree import tree_leaves

from eakd.benchmark import benchmark
from eakd.composing import compose
from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.training.run import build_compute
from eakd.weighting import Weighting

pytest.importorskip("transformers")

from eakd.benchmark import language
from eakd.language.generate import Request, Sampling, generate

SMALL = [
    *("data=python_docs", "teacher=tiny_gpt_t", "teacher.layers=1", "student=tiny_gpt_s"),
    *("student.layers=1", "batch_size=6", "steps=2", "rounds=1", "device=cpu", "threads=1"),
]


@pytest.fixture(scope="module")
def texts():
    config = compose([*SMALL, "distiller=language/kd", "precision=float32"], "benchmark")
    return config, language.load_data(config), build_compute(config)


@pytest.mark.slow
def test_it_measures_training_memory_and_answers(tmp_path):
    output = tmp_path / "speed.json"
    words = [*SMALL, "distiller=language/kd", "precision=bf16", "table=true", f"output={output}"]
    text = benchmark(compose(words, "benchmark"))
    numbers = json.loads(output.read_text())
    loops = {"ours", "ours, float32", "ours, EA weighting", "limit", "plain"}
    loops |= {"ours, teacher's table", "student alone"}
    assert set(numbers["samples_per_second"]) == set(numbers["step_seconds"]) == loops
    assert all(value > 0 for value in numbers["samples_per_second"].values())
    for key in ("memory_above_weights_bytes", "answers_per_second"):
        assert set(numbers[key]) == {"ours", "plain"}
        assert all(value > 0 for value in numbers[key].values())
    assert f"ours with a table / plain: {numbers['table_over_plain']:.2f}" in text
    assert "memory of a step above the networks, MB: ours " in text
    assert "answers per second, float32: ours " in text


def test_all_loops_have_one_loss_and_gradient(texts):
    """Ours, with and without the teacher's states known, and the plain one, in float64."""
    config, (rows, tokenizer), compute = texts
    found = []
    for table in (False, True):
        distiller, data, *_ = language.build_method(
            config, (rows, tokenizer), compute, Weighting("uniform")
        )
        distiller.student.double()
        distiller.teacher.double()
        if table:
            data.hidden = language._ask(distiller, data, compute)
        loss = 0.0
        for batch in next(data.epoch(1)):
            total = distiller.total(distiller(batch, Progress(0, 1, 0)))
            total.loss.backward()
            loss += total.loss.item()
        found.append((loss, [p.grad for p in distiller.student.parameters()]))
    student = distiller.student
    student.zero_grad(set_to_none=True)
    step = [data.train[i] for i in next(data.step_rows(1))]
    tokens, labels = language.padded(step, config.data.max_length, tokenizer.eos_token_id)
    count = sum(len(row.response_ids) for row in step)
    assert int((labels >= 0).sum()) == count
    loss = language.plain_loss(student, distiller.teacher, tokens, labels) / count
    loss.backward()
    found.append((loss.item(), [p.grad for p in student.parameters()]))
    for loss, gradients in found[:2]:
        assert loss == pytest.approx(found[2][0], abs=1e-9)
        for one, other in zip(gradients, found[2][1], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["kd", "sft"])
def test_passes_reach_every_weight(texts, method):
    config, data, compute = texts
    config = compose([*SMALL, f"distiller=language/{method}", "precision=float32"], "benchmark")
    distiller, batches, *_ = language.build_method(config, data, compute, Weighting("uniform"))
    batch = next(batches.epoch(1))[0]
    made = tree_leaves(distiller.passes(batch, Progress(0, 1, 0)))
    assert [x.requires_grad for x in made] == [True, False][: len(made)]
    assert len(made) == (2 if method == "kd" else 1)
    assert all(x.shape == (len(batch.targets), len(data[1])) for x in made)
    made[0].sum().backward()
    assert all(p.grad is not None for p in distiller.trainable_parameters())


def test_answers_end_after_so_many_tokens_on_average(texts):
    config, (_, tokenizer), compute = texts
    _, student = language.build_networks(config, tokenizer, compute)
    student, end = language.ending(student, tokenizer.eos_token_id, 6.0), tokenizer.eos_token_id
    requests = [Request(row, 0, [5, 6, 7]) for row in range(400)]
    answers = [
        answer
        for batch in generate(student, requests, Sampling(max_new_tokens=60), end={end})
        for _, answer in batch
    ]
    lengths = [len(answer.tokens) + answer.ended for answer in answers]
    assert statistics.fmean(lengths) == pytest.approx(6.0, abs=1.0)  # four standard errors: 1.1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["distiller=kd"], "distiller: found kd, a method for"),
        (["student=resnet8"], "student: found resnet8, "),
        (["methods=[kd]"], r"methods: found \['kd'\], allowed with data=python_docs is none"),
        (["steps=1"], "steps: found 1, allowed is an integer >= 2"),
        (["batch_size=0"], "batch_size: found 0"),
    ],
)
def test_what_texts_do_not_have_is_one_line(words, line):
    small = [word for word in SMALL if "layers" not in word]
    with pytest.raises(UserError, match=f"^{line}"):
        benchmark(compose([*small, "distiller=language/kd", *words], "benchmark"))
