"""The tiny LLM: both tokenizers are lossless, and pretraining makes a Hugging Face model that beats unigrams."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from fusion.common.config import ConfigError, load_config
from fusion.recipes.llm import (
    Pretraining,
    PretrainingError,
    TextData,
    batches,
    new_model,
    perplexity,
    pretrain,
    read_corpus,
    stream_of,
    unigram_perplexity,
)
from fusion.recipes.tokenizer import END_OF_TEXT, train_sentencepiece_model, train_tokenizer
from fusion.training.metrics import read

KINDS = ("bpe", "sentencepiece")
WORDS = "a red circle stands left of the small blue square and above that green cross on white".split()
TRICKY = [
    "",
    " ",
    "a  b",
    "  red",
    "red \n\n\tcircle ",
    "naïve Ü 漢字 🙂",
    "<|endoftext|> typed, <0x41> <unk> too",
    "é" * 9,
    "\x00\x7f",
    "640x480",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Grammatical nonsense of four to ten words, easy to predict: each word is followed by one of two."""
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        word, text = int(draw.integers(len(WORDS))), []
        for _ in range(int(draw.integers(4, 11))):
            text.append(WORDS[word])
            word = (word * 2 + int(draw.integers(2))) % len(WORDS)
        texts.append(" ".join(text) + ".")
    return texts


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return train_tokenizer(request.param, sentences(500), 600)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(1500)))
    return path


def settings(tmp_path, path, **changes) -> Pretraining:
    sizes = {
        "vocab_size": 400,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "context": 32,
        "rows": 8,
        "tokens": 30_000,
        "seconds": 60.0,
    }
    made = Pretraining(out=str(tmp_path / "llm"), data=TextData(path=str(path), held_out=0.05), **(sizes | changes))
    made.optim.lr, made.optim.warmup = 1e-2, 5
    return made


def test_every_text_comes_back(tokenizer):
    for text in [*TRICKY, *sentences(20, seed=1)]:
        ids = tokenizer.encode(text, split_special_tokens=True)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids
        assert len(ids) == 0 or max(ids) < len(tokenizer) <= 600


def test_words_and_sides_of_images_are_single_tokens(tokenizer):
    for word in WORDS:
        assert len(tokenizer.encode(f" {word}")) == 1, word
    assert [tokenizer.decode([i]) for i in tokenizer.encode("32x64")] == ["32", "x", "64"]


def test_a_saved_tokenizer_is_the_same_beside_a_llama(tokenizer, tmp_path):
    new_model(Pretraining(width=32, layers=1, heads=2), tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        loaded.eos_token == END_OF_TEXT
        and loaded.eos_token_id == tokenizer.eos_token_id
        and len(loaded) == len(tokenizer)
    )
    for text in TRICKY:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_which_word_was_read_is_still_there_behind_the_last_layer(tokenizer):
    model = new_model(Pretraining(width=64, layers=6, heads=2), tokenizer)
    words = torch.cat(
        [torch.tensor([[7, 8]]).expand(6, -1), torch.arange(20, 26)[:, None]], dim=1
    )  # six texts that end in another word
    with torch.no_grad():
        first, *later = model.model(words, output_hidden_states=True).hidden_states
    assert first.std() == pytest.approx(1.0, rel=0.1)
    for hidden in later:
        last = hidden[:, -1]
        assert (last - last.mean(0)).square().mean() / last.square().mean() > 0.4  # independent words: 5 / 6
        assert last.std() < 2 * first.std()


def test_an_embedding_that_is_the_head_too_gives_logits_of_unit_scale(tokenizer):
    model = new_model(Pretraining(width=64, layers=2, heads=2, tied=True), tokenizer)
    with torch.no_grad():
        assert 0.5 < model(torch.arange(20)[None]).logits.std() < 2


def test_the_fast_unigram_tokenizer_segments_as_sentencepiece_does():
    texts = sentences(500)
    reference, fast = train_sentencepiece_model(texts, 600), train_tokenizer("sentencepiece", texts, 600)
    for text in [*TRICKY, *sentences(50, seed=2)]:
        assert fast.encode(text, split_special_tokens=True) == reference.encode(text)


@pytest.mark.parametrize(("kind", "size", "word"), [("words", 600, "words"), ("bpe", 200, "200")])
def test_an_impossible_tokenizer_is_refused(kind, size, word):
    with pytest.raises(ValueError, match=word):
        train_tokenizer(kind, ["text"], size)


def test_batches_show_every_token_once_per_pass():
    stream = torch.arange(1000)
    drawn = batches(stream, rows=4, context=9, seed=0)
    first_pass = [next(drawn) for _ in range(27)]
    rows = torch.cat(first_pass)
    assert all(((row[1:] - row[:-1]) % 1000 == 1).all() for row in rows)
    targets = rows[:, 1:].flatten()
    assert targets.unique().numel() == targets.numel()
    again = batches(stream, rows=4, context=9, seed=0)
    assert all(torch.equal(next(again), batch) for batch in first_pass)


def test_too_little_text_for_one_row_is_said():
    with pytest.raises(ValueError, match="give more text"):
        next(batches(torch.arange(8), rows=1, context=8, seed=0))


def test_perplexities_against_arithmetic(tokenizer):
    class Constant(LlamaForCausalLM):
        def forward(self, ids, **_):
            return super().forward(ids * 0, use_cache=False)  # the same logits everywhere

    model = Constant(new_model(Pretraining(width=32, layers=1, heads=2), tokenizer).config)
    stream = torch.randint(0, len(tokenizer), (77,))
    log = model(torch.zeros(1, 1, dtype=torch.long)).logits.log_softmax(-1)[0, 0]
    expected = math.exp(-log[stream[1:]].mean().item())
    assert perplexity(model, stream, context=10) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, stream, context=200) == pytest.approx(expected, rel=1e-5)
    even = torch.arange(50).repeat(2)
    assert unigram_perplexity(even, even, 50) == pytest.approx(50.0)


@pytest.mark.parametrize("kind", KINDS)
def test_pretraining_beats_unigrams_and_loads_with_transformers(kind, tmp_path, text_file):
    out = pretrain(settings(tmp_path, text_file, tokenizer=kind))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert isinstance(model, LlamaForCausalLM) and model.config.vocab_size == len(tokenizer)
    held_out = stream_of(tokenizer, read_corpus(TextData(path=str(text_file), held_out=0.05)).held_out)
    rows = read(out / "metrics.jsonl")
    assert perplexity(model, held_out, context=32) == pytest.approx(rows[-1]["perplexity"], rel=1e-3)
    assert rows[-1]["perplexity"] < rows[-1]["unigram_perplexity"] / 5
    assert rows[-1]["seen"] == 30_208  # the first whole step at or beyond 30,000
    assert load_config(Pretraining, out / "config.yaml") == settings(tmp_path, text_file, tokenizer=kind)


def test_the_same_seed_gives_the_same_weights(tmp_path, text_file):
    first = AutoModelForCausalLM.from_pretrained(pretrain(settings(tmp_path / "a", text_file, tokens=2000)))
    second = AutoModelForCausalLM.from_pretrained(pretrain(settings(tmp_path / "b", text_file, tokens=2000)))
    other = AutoModelForCausalLM.from_pretrained(pretrain(settings(tmp_path / "c", text_file, tokens=2000, seed=1)))
    weights = [model.lm_head.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_cap_in_seconds_ends_a_run(tmp_path, text_file, capsys):
    out = pretrain(settings(tmp_path, text_file, tokens=10**9, seconds=0.5))
    assert read(out / "metrics.jsonl")[-1]["seen"] < 10**7
    assert "the time was up" in capsys.readouterr().out


def test_a_loss_that_is_no_number_stops_before_the_update(tmp_path, text_file, monkeypatch):
    updates = []
    monkeypatch.setattr("fusion.recipes.llm.next_token_loss", lambda model, rows: model.lm_head.weight.sum() * math.nan)
    monkeypatch.setattr("fusion.training.optim.Optimizers.step", lambda self: updates.append(1))
    with pytest.raises(PretrainingError, match=r"step 0: the loss is nan.*lower optim\.lr"):
        pretrain(settings(tmp_path, text_file))
    assert not updates and not (tmp_path / "llm" / "config.json").exists()


def test_bad_rows_are_left_out_and_listed(tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": text}) for text in sentences(300)]
    path.write_text("\n".join([*rows, '{"text": 7}', '{"text": ""}', "{broken"]) + "\n")
    corpus = read_corpus(TextData(path=str(path), held_out=0.1))
    assert len(corpus.train) + len(corpus.held_out) <= 300 and len(corpus.skipped) == 3
    assert {reason.split(":")[1] for reason in corpus.skipped} == {"301", "302", "303"}
    assert not set(corpus.train) & set(corpus.held_out)


def test_the_built_in_world_holds_out_whole_texts():
    corpus = read_corpus(TextData(texts=300, held_out=0.1))
    assert len(corpus.held_out) == 30 and 0 < len(corpus.train) <= 270
    assert not set(corpus.train) & set(corpus.held_out)
    assert (
        corpus
        == read_corpus(TextData(texts=300, held_out=0.1))
        != read_corpus(TextData(texts=300, held_out=0.1), seed=1)
    )


@pytest.mark.parametrize("path", ["nowhere.txt", "nowhere.jsonl"])
def test_a_missing_file_is_one_clear_line(tmp_path, path):
    with pytest.raises(ValueError, match=r"nowhere\.\w+: no .*file") as caught:
        read_corpus(TextData(path=str(tmp_path / path)))
    assert "\n" not in str(caught.value)


def test_the_config_file_is_the_default(root):
    assert load_config(Pretraining, root / "configs" / "llm.yaml") == Pretraining()
    with pytest.raises(ConfigError, match="widht"):
        load_config(Pretraining, root / "configs" / "llm.yaml", ["widht=3"])
