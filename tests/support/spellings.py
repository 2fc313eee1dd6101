"""Small tokenizers of each kind that decoder LLMs come with, trained on a few sentences in a moment."""

import tempfile
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTSw3Tokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fusion.testing.tiny_llms import CORPUS, tiny_tokenizer

# Every character that the tests write, and the halves of `<s>`, which a careless tokenizer joins.
LETTERS = " ".join(
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 <|>[]/_.,!?'-:= <s s> </ [INST] im_start"
)
SENTENCES = [*CORPUS * 20, *[LETTERS, "<s s> </s ss x<s>"] * 10]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' "
    "[/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def byte_level() -> PreTrainedTokenizerBase:
    """As GPT-2, Llama 3 and Qwen: byte-level BPE, no token begins a text."""
    return tiny_tokenizer()


def byte_level_chatml() -> PreTrainedTokenizerBase:
    """As Qwen: the same with chat tokens of its own, one of them not called special, and a template."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = CHATML + "{# <think> #}"
    return tokenizer


def byte_level_with_space() -> PreTrainedTokenizerBase:
    """Byte-level BPE that begins every text with a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def sentencepiece_bpe() -> PreTrainedTokenizerBase:
    """As Llama 2 and Mistral: sentencepiece BPE with bytes for unknown characters, `<s>` before every text."""
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return LlamaTokenizer.from_pretrained(str(_sentencepiece("bpe", 420, **options).parent))


def unigram() -> PreTrainedTokenizerBase:
    """A unigram model whose vocabulary holds `<s>` and `</s>` as pieces like any other."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0)]
    pieces += [(letter, -5.0) for letter in sorted(set(LETTERS) - {" "})] + [
        ("▁red", -4.0),
        ("▁a", -4.0),
        ("make", -4.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def slow() -> PreTrainedTokenizerBase:
    """A tokenizer in Python around the sentencepiece library."""
    options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return GPTSw3Tokenizer(str(_sentencepiece("unigram", 100)), name_or_path="gpt-sw3-126m", **options)


@cache
def _sentencepiece(kind: str, size: int, **options) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="spelling-"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "tokenizer"),
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **options,
    )
    return folder / "tokenizer.model"


TOKENIZERS = {
    make.__name__: make
    for make in (byte_level, byte_level_chatml, byte_level_with_space, sentencepiece_bpe, unigram, slow)
}
