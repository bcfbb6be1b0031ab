"""What cannot be trained is refused in one line, before anything is written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from eakd.composing import compose
from eakd.errors import UserError
from eakd.language.models import load_model, load_tokenizer
from eakd.training.run import run
from language.networks import gpt2, llama


def refusal(words, tmp_path, *more):
    with pytest.raises(UserError) as caught:
        # Another network has other keys.
        others = tuple(f"{word.partition('=')[0]}." for word in more if "resnet" in word)
        words = [word for word in words if not others or not word.startswith(others)]
        run(compose([*words, *more, f"run_dir={tmp_path / 'run'}"]))
    text = str(caught.value)
    assert "\n" not in text and not (tmp_path / "run").exists()
    return text


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            ["distiller=kd"],
            "distiller: found kd, a method for eakd.classification.Classification, allowed with "
            "data=text is language/jsd, language/kd, language/none, language/rkld, language/sft",
        ),
        (
            ["student=resnet8"],
            "student: found resnet8, a network for eakd.classification.Classification, allowed "
            "with data=text is gpt2, ",
        ),
        (
            ["teacher=resnet8"],
            "teacher: found resnet8, a network for eakd.classification.Classification, allowed "
            "with data=text is gpt2, ",
        ),
        (["data.max_length=200"], "data.max_length: found 200, allowed is at most 128, the positi"),
        (["data.max_prompt_length=128"], "data.max_prompt_length: found 128 with max_length 128"),
        (["data.max_prompt_length=4"], "data.max_prompt_length: found 4, which leaves none of 48"),
        (["data.tokens_per_batch=0"], "data.tokens_per_batch: found 0"),
        (["data.rouge_samples=-1"], "data.rouge_samples: found -1"),
        (["data.template=chat"], "data.template: found 'chat', allowed is one of alpaca, plain"),
        (["data.train=nowhere.jsonl"], "data.train: found no file 'nowhere.jsonl'"),
        (["data.dev=null"], "data.dev: found none, allowed is a file"),
        (["data.tokenizer=null"], "data.tokenizer: found none for tiny_gpt_s, which begins with"),
        (["recipe.batch_size=49"], "recipe.batch_size: found 49, allowed is at most 48"),
        (["precision=fp16"], "precision: found 'fp16', allowed is one of auto, bf16, float32"),
        (["distiller.level=word"], "distiller.level: found 'word', allowed is one of sequence"),
        (["distiller.temperature=0"], "distiller.temperature: found 0"),
        (["student.width=30", "student.heads=4"], "student.width: found 30, allowed is a multiple"),
        (["teacher.checkpoint=nowhere"], "teacher.checkpoint: found no nowhere here and could not"),
        (["teacher.checkpoint=./nowhere"], "teacher.checkpoint: found no config.json in './nowhe"),
    ],
)
def test_one_line_that_names_the_key(words, tmp_path, monkeypatch, more, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal(words, tmp_path, *more).startswith(expected)


def test_language_on_images_is_refused_too(tmp_path):
    text = refusal(["data=digits", "distiller=language/ea_kd"], tmp_path)
    assert text.startswith("distiller: found kd, a method for eakd.language.Language, allowed with")
    assert "dkd" in text and "language/" not in text
    words = ["data=digits", "distiller=none", "student=tiny_gpt_s"]
    text = refusal(words, tmp_path)
    assert text.startswith(
        "student: found tiny_gpt_s, a network for eakd.language.Language, allowed with data=digits "
    )
    assert "resnet8" in text and "gpt" not in text.partition("allowed")[2]


def test_an_untaught_gpt2_is_no_teacher(words, tmp_path):
    words = [word for word in words if not word.startswith("teacher")]
    text = refusal([*words, "teacher=gpt2_xl"], tmp_path)
    assert "teacher.checkpoint: found no trained gpt2_xl for text" in text
    assert "train.py" in text and "student=gpt2_xl" in text and "distiller=language/sft" in text
    assert "save_teacher=true" in text and "distiller=none" not in text


@pytest.fixture
def folder(place, tmp_path):
    """A copy of the teacher, to be damaged."""
    return shutil.copytree(place / "teacher", tmp_path / "model")


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_models_that_are_no_causal_language_models(folder):
    for values, words in (
        ({"architectures": ["BertForMaskedLM"]}, "found BertForMaskedLM, allowed is a causal"),
        ({"is_encoder_decoder": True}, "found GPT2LMHeadModel, allowed is a causal"),
        (
            {"is_encoder_decoder": False, "auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
            "found a model that runs code of its own, allowed with student.trust_remote_code=true",
        ),
    ):
        change(folder, **{"architectures": ["GPT2LMHeadModel"], **values})
        with pytest.raises(UserError) as caught:
            load_model(folder, "student.path")
        assert f"student.path: {words}" in str(caught.value)


def test_damaged_and_missing_weights_are_named(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    missing = {k: v for k, v in weights.items() if k != "transformer.ln_f.weight"}
    save_file(missing, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"path: found no transformer\.ln_f\.weight in .*lacks 1 "):
        load_model(folder)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="path: found no model that can be read in"):
        load_model(folder)
    file.unlink()
    with pytest.raises(UserError, match="path: found no model that can be read in"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="path: found a damaged"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"path: found no config\.json in"):
        load_model(folder)


def test_a_pickle_that_runs_code_is_not_read(folder, tmp_path):
    """Weights as ``pytorch_model.bin`` are read, but nothing is called that they name."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="found no model that can be read"):
        load_model(folder)
    assert not (tmp_path / "evil").exists()


def test_a_teacher_that_is_not_whole_is_found_before_training(words, folder, tmp_path):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["transformer.ln_f.bias"][0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    text = refusal(words, tmp_path, f"teacher.path={folder}")
    assert text.startswith("teacher: found non-finite logits")


def test_vocabularies(words, folder, tmp_path, caplog):
    """Padding of the same tokenizer is cut and told, a model that is too small is refused."""
    caplog.set_level("INFO")
    file = folder / "model.safetensors"
    weights, embedding = load_file(file), "transformer.wte.weight"
    padding = torch.full((24, 48), 5.0)
    save_file(
        weights | {embedding: torch.cat([weights[embedding], padding])}, file, {"format": "pt"}
    )
    change(folder, vocab_size=1048)
    run(compose([*words, f"teacher.path={folder}", f"run_dir={tmp_path / 'padded'}"]))
    assert "teacher: 1048 logits are cut to the 1024 tokens of the tokenizer" in caplog.text
    run(compose([*words, f"run_dir={tmp_path / 'plain'}"]))
    a, b = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("padded", "plain"))
    a, b = (json.loads(text.splitlines()[-1]) for text in (a, b))
    assert a["train_loss_kd"] == pytest.approx(b["train_loss_kd"], rel=1e-4)

    save_file(weights | {embedding: weights[embedding][:1000].clone()}, file, {"format": "pt"})
    change(folder, vocab_size=1000)
    text = refusal(words, tmp_path, f"teacher.path={folder}")
    assert text.startswith("teacher: found 1000 embeddings, allowed is at least 1024, the token")


def test_a_tokenizer_without_an_end_is_refused(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="found a tokenizer without an end-of-text token"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="found no tokenizer in"):
        load_tokenizer(folder)


def test_a_model_that_reads_ahead_is_refused():
    from eakd.language.models import check_causal

    model = llama()
    check_causal(model, "student", range(20))
    check_causal(gpt2(), "student", range(20))

    class Backwards(type(model)):
        def forward(self, input_ids, **more):
            return super().forward(input_ids.flip(1), **more)

    other = Backwards(model.config)
    with pytest.raises(UserError, match="student: found Backwards, which reads ahead"):
        check_causal(other, "student", range(20))
