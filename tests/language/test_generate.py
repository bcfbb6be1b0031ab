"""Sampled answers: a function of row and seed alone, and otherwise what transformers does."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eakd.errors import UserError
from eakd.language.generate import (
    Request,
    Sampling,
    _Text,
    answer_together,
    choose,
    generate,
    left_padded,
    uniforms,
)
from language.tiny_models import gpt2, tokenizer, unpacked

ENDS = frozenset(range(0, 300, 17))  # many, so that answers end at different lengths
SAMPLING = Sampling(max_new_tokens=40, no_repeat_ngram_size=3)


def prompts(count=23):
    return [[(7 * i + 3 * j * j) % 290 + 1 for j in range(1 + (5 * i) % 19)] for i in range(count)]


def requests(seeds=(10, 20), of=None):
    return [Request(i, k, p) for i, p in enumerate(of or prompts()) for k in seeds]


def answers(model, wanted, sampling=SAMPLING, batch_size=64, end=ENDS, **more):
    batches = generate(model, wanted, sampling, end=end, batch_size=batch_size, **more)
    return {(r.row, r.seed): answer for batch in batches for r, answer in batch}


@pytest.fixture(scope="module")
def model():
    return gpt2()


@pytest.mark.parametrize(
    "sampling", [SAMPLING, Sampling(temperature=0, no_repeat_ngram_size=1, max_new_tokens=12)]
)
def test_batches_and_order_change_nothing(model, sampling):
    wanted = requests()
    alone = answers(model, wanted, sampling, batch_size=1)
    lengths = {len(answer.tokens) for answer in alone.values()}
    assert len(lengths) > 3 and any(answer.ended for answer in alone.values())
    for size in (7, 64):
        assert answers(model, wanted, sampling, batch_size=size) == alone
    assert answers(model, wanted[::-1], sampling, batch_size=5) == alone
    part = wanted[3::4]
    assert answers(model, part, sampling) == {(r.row, r.seed): alone[r.row, r.seed] for r in part}


def test_real_prompts_to_a_trained_model_in_batches_of_1_7_and_64(real_data, tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from eakd.language.text import load_rows

    stories = unpacked(real_data, tmp_path_factory, "tiny-lm") / "stories260K"
    texts = unpacked(real_data, tmp_path_factory, "instruct") / "dolly" / "valid.jsonl"
    rows = load_rows(texts, AutoTokenizer.from_pretrained(stories), max_prompt_length=200)[:64]
    speaker = AutoModelForCausalLM.from_pretrained(stories).eval()
    wanted = [Request(row.line, 10, row.prompt_ids) for row in rows]
    sampling = Sampling(max_new_tokens=16, no_repeat_ngram_size=6)
    one, seven, all_of_them = (
        answers(speaker, wanted, sampling, size, end={2}) for size in (1, 7, 64)
    )
    assert len(one) == 64 and one == seven == all_of_them


def test_left_padding_gives_the_logits_of_the_text_alone(model):
    texts = prompts(6)
    ids, mask = left_padded(texts, torch.device("cpu"))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        alone = [model(input_ids=torch.tensor([text])).logits[0, -1] for text in texts]
    torch.testing.assert_close(padded, torch.stack(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ban", [0, 1, 2, 3, 6])
def test_greedy_is_what_transformers_generates(model, ban):
    sampling = Sampling(temperature=0, no_repeat_ngram_size=ban, max_new_tokens=24)
    end = tokenizer().eos_token_id
    found = answers(model, requests((0,)), sampling, end={end})
    for row, prompt in enumerate(prompts()):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            no_repeat_ngram_size=ban,
            pad_token_id=end,
        )[0, len(prompt) :].tolist()
        tokens, ended = found[row, 0]
        assert tokens + [end] * ended == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6), st.integers(0, 29))
def test_bans_are_those_of_transformers(tokens, size, split):
    from transformers import NoRepeatNGramLogitsProcessor

    text = _Text(tokens[:split], size)
    for token in tokens[split:]:
        text.append(token)
    scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), torch.zeros(1, 4))
    assert set(text.banned()) == set(scores[0].isinf().nonzero().flatten().tolist())


def test_no_answer_repeats_a_run_of_its_prompt_or_itself(model):
    wanted = requests(of=[prompt * 2 for prompt in prompts()])
    for (row, _), answer in answers(model, wanted, end=()).items():
        text = prompts()[row] * 2 + answer.tokens
        runs = Counter(zip(text, text[1:], text[2:], strict=False))
        before = Counter(zip(*(wanted[2 * row].prompt[i:] for i in range(3)), strict=False))
        assert all(count == max(before[run], 1) for run, count in runs.items())


@pytest.mark.parametrize(
    "how",
    [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 2.0, "top_p": 0.9}],
    ids=str,
)
def test_tokens_have_the_probabilities_of_transformers(how):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(1, 40) * 2
    expected = logits
    if "temperature" in how:
        expected = TemperatureLogitsWarper(how["temperature"])(None, expected)
    if "top_k" in how:
        expected = TopKLogitsWarper(how["top_k"])(None, expected)
    if "top_p" in how:
        expected = TopPLogitsWarper(how["top_p"])(None, expected)
    count = 20_000
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = choose(logits.expand(count, -1), draws, Sampling(**how))
    found = torch.bincount(tokens, minlength=40) / count
    torch.testing.assert_close(found, expected.softmax(-1)[0], rtol=0, atol=1.01 / count)


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((2, 5), -torch.inf)
    logits[:, 2] = 0.0
    ends = torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64)
    assert choose(logits, ends, Sampling()).tolist() == [2, 2]


def test_streams_belong_to_row_and_seed():
    # Philox 4x64-10 is fixed: other numbers mean that all published answers change.
    pinned = [0.3282843685010448, 0.5942853357410058, 0.8017155629349872]
    assert uniforms(3, 10, 3).tolist() == uniforms(3, 10, 256)[:3].tolist() == pinned
    streams = {tuple(uniforms(row, seed, 4)) for row in range(50) for seed in range(50)}
    assert len(streams) == 2500
    numbers = torch.from_numpy(uniforms(0, 0, 100_000))
    assert numbers.min() > 0 and numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.005)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=0.002)


def test_rows_that_have_ended_leave_and_answers_share_a_prompt(model):
    shapes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    wanted = requests(seeds=(1, 2, 3))
    found = answer_together(model, wanted, SAMPLING, ENDS)
    handle.remove()
    assert shapes[0][0] == len(prompts()) and shapes[1][1] == 1
    sizes = [rows for rows, _ in shapes[1:]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    # Each pass of a row makes one more token; the first one came from the prompt.
    made = [len(answer.tokens) + answer.ended for answer in found]
    assert sum(sizes) == sum(made) - len(wanted)


def test_outputs_beyond_the_vocabulary_are_never_drawn():
    wide = gpt2(vocab=340)
    used = {t for a in answers(wide, requests(), end=()).values() for t in a.tokens}
    assert max(used) >= 300
    cut = answers(wide, requests(), end=(), vocabulary=300)
    assert max(t for answer in cut.values() for t in answer.tokens) < 300


def test_what_cannot_be_sampled_is_refused_in_one_line(model):
    with pytest.raises(UserError, match="max_new_tokens: found 500 after a prompt of 19 tokens"):
        answers(model, requests(), Sampling(max_new_tokens=500))
    broken = gpt2()
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(torch.nan)
    for sampling in (SAMPLING, Sampling(temperature=0, max_new_tokens=4)):
        with pytest.raises(UserError, match="found logits that are NaN or infinite"):
            answers(broken, requests(), sampling)


@pytest.mark.parametrize(
    "key, value",
    [("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("top_k", 1.5), ("max_new_tokens", 0),
     ("no_repeat_ngram_size", -1), ("temperature", float("nan"))],
)  # fmt: skip
def test_values_are_checked(key, value):
    with pytest.raises(UserError, match=f"^{key}: found "):
        Sampling(**{key: value})
