"""Tokenizers trained from text, byte-level BPE or sentencepiece unigram; both give every text back unchanged."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

# Sizes of images are written as text ("64x48"). Whatever the text, the trainers see every size whose sides have two
# digits and divide by four this often, so that such a side is one token.
SIDES = range(12, 100, 4)
SIZE_COUNT = 40


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer with at most `vocab_size` entries, learned from the texts; its EOS is `<|endoftext|>`, it adds
    no BOS.

    kind: "bpe" (byte-level, as in GPT-2) or "sentencepiece" (unigram with byte fallback, Kudo 2018, arXiv:1804.10959).
    Raises ValueError for another kind, and for a size that cannot hold the bytes.
    """
    trainers_of = {"bpe": _train_bpe, "sentencepiece": _train_sentencepiece}
    if kind not in trainers_of:
        raise ValueError(f"tokenizer {kind!r} is unknown; choose from {', '.join(trainers_of)}")
    if vocab_size < 300:
        raise ValueError(f"vocab_size {vocab_size} leaves no room beside the 256 bytes; give 300 or more")
    return PreTrainedTokenizerFast(
        tokenizer_object=trainers_of[kind](texts, vocab_size), eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def _with_sizes(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for _ in range(SIZE_COUNT):
        yield from (f"{width}x{height}" for width in SIDES for height in SIDES)


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_sizes(texts), trainer)
    return tokenizer


def train_sentencepiece_model(texts: Iterable[str], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """A unigram model that changes nothing about the text: no normalisation, no added or removed space, bytes as
    fallback."""
    texts = list(_with_sizes(texts))
    # Candidates are the substrings that different characters follow. In plain sentences a space follows "▁and" every
    # time, so that "▁and" would not be one; alone, the end does too.
    words = sorted({f" {word}" for text in texts for word in re.findall(r"\w+", text)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts + words),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        user_defined_symbols=["<"],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        eos_id=1,
        eos_piece=END_OF_TEXT,
        bos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _train_sentencepiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The learned pieces and scores in a fast tokenizer, which finds the same best segmentation.

    To the fast model every piece is text, also the names of control and byte pieces (`<|endoftext|>`, `<0x41>`). They
    begin with "<", which is cut off from what follows, here as there: so nobody can type them.
    """
    learned = train_sentencepiece_model(texts, vocab_size)
    pieces = [(learned.id_to_piece(token), learned.get_score(token)) for token in range(learned.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=learned.unk_id(), byte_fallback=True))
    cut, spaces = pre_tokenizers.Split("<", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, spaces])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer
