"""Pretrains a small language model of the Llama architecture, and its tokenizer, on text.

Usage: `python -m train.llm configs/llm.yaml out=out/llm`
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from fusion.common.atomic import new_folder
from fusion.common.config import load, save_config
from fusion.data.formats import BadSample, PlainText, Split
from fusion.recipes.tokenizer import train_tokenizer
from fusion.training.metrics import Metrics
from fusion.training.optim import Optim, Optimizers, rate
from fusion.training.precision import autocast
from fusion.worlds.shapes import World, plain_text


class PretrainingError(RuntimeError):
    """Pretraining cannot go on; the message is one line."""


@dataclass
class TextData:
    """What to read: a .txt file, a folder of them or a table with a column `text` (path), or else `texts` texts of the
    built-in world.

    held_out: the share of texts (of files, in a folder) kept for the perplexity. max_chars: where longer texts are cut.
    """

    path: str | None = None
    texts: int = 8_000
    held_out: float = 0.02
    max_chars: int = 1000


@dataclass
class Pretraining:
    """A run: the folder it writes, its text, tokenizer (bpe or sentencepiece), network, and how long it trains.

    kv_heads: heads of keys and values, as many as heads unless given; feed_forward: its inner width, 8/3 of the width
    unless given, so that a gated one is as large as a plain one of 4; tied: one matrix for token embeddings and head.
    context: tokens per row; positions: the longest position that the saved model accepts. Training ends after `tokens`
    tokens or `seconds` seconds, whichever comes first, and the learning rate falls along whichever is ahead.
    """

    out: str = "out/llm"
    seed: int = 0
    data: TextData = field(default_factory=TextData)
    tokenizer: str = "bpe"
    vocab_size: int = 1000
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    feed_forward: int | None = None
    tied: bool = False
    positions: int = 4096
    context: int = 128
    rows: int = 16
    tokens: int = 300_000
    seconds: float = 90.0
    precision: str = "auto"
    optim: Optim = field(default_factory=lambda: Optim(optimizer="muon", lr=1e-2, warmup=10))


@dataclass(frozen=True)
class Corpus:
    """Texts to train on, texts held out, and why which samples were left out ("path:line: reason").

    turns: what is said in conversations of the built-in world, for the tokenizer alone: words that begin a turn are
    words of their own to a byte-level BPE, and prose has few of them.
    """

    train: list[str]
    held_out: list[str]
    skipped: list[str]
    turns: list[str] = field(default_factory=list)


def read_corpus(data: TextData, seed: int = 0) -> Corpus:
    """All texts of the data, shuffled; a text that is held out is never trained on, however often it occurs."""
    if data.path is None:
        draw = np.random.default_rng(seed)
        texts, skipped = [plain_text(draw) for _ in range(data.texts)], []
        count = max(1, round(data.held_out * data.texts))
        held_out, train, turns = texts[:count], texts[count:], spoken(data.texts // 2, draw)
    else:
        held_out, skipped = _read(PlainText(data.path, Split("validation", data.held_out), max_chars=data.max_chars))
        train, more = _read(PlainText(data.path, Split("train", data.held_out), max_chars=data.max_chars))
        skipped, turns = skipped + more, []
    kept_apart = set(held_out)
    train = [text for text in train if text not in kept_apart]
    if not train or not held_out:
        because = f" ({len(skipped)} left out, the first is {skipped[0]})" if skipped else ""
        raise ValueError(
            f"{data.path or 'the built-in world'}: nothing to train on, or nothing held out; give more texts{because}"
        )
    np.random.default_rng(seed).shuffle(train)
    return Corpus(train, held_out, skipped, turns)


def spoken(documents: int, draw: np.random.Generator) -> list[str]:
    """The texts of so many conversations of the built-in world, turn by turn."""
    samples = (World().sample(draw) for _ in range(documents))
    return [
        block["text"]
        for sample in samples
        for turn in sample.messages
        for block in turn["content"]
        if block["type"] == "text"
    ]


def _read(source: PlainText) -> tuple[list[str], list[str]]:
    texts, skipped = [], []
    for index in range(len(source)):
        try:
            texts.append(source[index].content[0]["text"])
        except BadSample as bad:
            skipped.append(str(bad))
    return texts, skipped


def stream_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Int[Tensor, " tokens"]:
    """All texts as one stream of ids, EOS before the first and behind each."""
    ids = [tokenizer.eos_token_id]
    for encoded in tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    return torch.tensor(ids)


def batches(
    stream: Int[Tensor, " tokens"], rows: int, context: int, seed: int
) -> Iterator[Int[Tensor, "rows context+1"]]:
    """Rows cut from the stream, endlessly and shuffled; each pass cuts it at other places, so that no token is always
    left over."""
    if len(stream) <= context:
        raise ValueError(f"the text has {len(stream)} tokens, a row {context + 1}; give more text or a smaller context")
    draw = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, context + 1, dtype=stream.dtype)
    while True:
        offset = int(torch.randint(len(stream), (), generator=draw))
        cut = stream.roll(-offset).unfold(0, context + 1, context)
        waiting = torch.cat([waiting, cut[torch.randperm(len(cut), generator=draw)]])
        while len(waiting) >= rows:
            yield waiting[:rows]
            waiting = waiting[rows:]


def new_model(settings: Pretraining, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama of the settings' size."""
    if settings.width % (2 * settings.heads):
        raise ValueError(
            f"width {settings.width} does not give {settings.heads} heads of even size; choose a multiple of "
            f"{2 * settings.heads}"
        )
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward or 16 * round(settings.width / 6),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=settings.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    initialise(model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def initialise(model: LlamaForCausalLM) -> None:
    """Unit embeddings, matrices that keep the scale, and small steps of the layers: which word was read stays in the
    residual stream.

    Begun with Llama's own 0.02 throughout, a trained model's first layer outweighs the embeddings a hundred times, and
    of what a colour word becomes there, three hundredths of the variance tell which colour it is: images then learn
    its colours later (docs/log.md). What leaves a layer starts at 1 / sqrt(2 layers) of the scale that is kept (GPT-2).
    An embedding that is the head too keeps logits at scale 1.
    """
    config = model.config
    model.get_input_embeddings().weight.normal_(std=config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0)
    depth = (2 * config.num_hidden_layers) ** -0.5
    for name, weight in model.model.layers.named_parameters():
        if weight.ndim == 2:
            leaves = name.endswith(("o_proj.weight", "down_proj.weight"))
            weight.normal_(std=weight.shape[1] ** -0.5 * (depth if leaves else 1.0))


def next_token_loss(
    model: LlamaForCausalLM, rows: Int[Tensor, "b context+1"], reduction: str = "mean"
) -> Float[Tensor, ""]:
    """Cross-entropy in nats of each token given those before it in its row, in fp32."""
    logits = model(rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, stream: Int[Tensor, " tokens"], context: int, rows: int = 16) -> float:
    """Perplexity per token, EOS among them, of every token of the stream but the first, in rows of `context` tokens."""
    whole = stream.unfold(0, context + 1, context) if len(stream) > context else stream.new_empty(0, context + 1)
    rest = stream[len(whole) * context :][None]
    parts = [*whole.split(rows), rest] if rest.shape[1] > 1 else whole.split(rows)
    model.eval()
    total = sum(next_token_loss(model, part.to(model.device), "sum").item() for part in parts if len(part))
    return math.exp(total / (len(stream) - 1))


def unigram_perplexity(train: Int[Tensor, " tokens"], held_out: Int[Tensor, " tokens2"], vocab_size: int) -> float:
    """Perplexity of the held-out stream under the training stream's token frequencies, each counted once more
    (Laplace)."""
    counts = torch.bincount(train, minlength=vocab_size).double() + 1
    return torch.exp(-(counts / counts.sum()).log()[held_out[1:]].mean()).item()


def pretrain(settings: Pretraining, progress: Callable[..., tqdm] = tqdm) -> Path:
    """Train tokenizer and model, and save both to `settings.out`, where AutoModelForCausalLM and AutoTokenizer find
    them.

    progress: makes the progress bar; called as tqdm is. The folder also gets config.yaml and metrics.jsonl, whose last
    row has `perplexity` and `unigram_perplexity` of the held-out texts. Raises ValueError for unusable data or
    settings, and PretrainingError when the loss is no longer a number.
    """
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    save_config(settings, out / "config.yaml")
    corpus = read_corpus(settings.data, settings.seed)
    for reason in corpus.skipped:
        tqdm.write(f"left out {reason}", file=sys.stderr)
    tokenizer = train_tokenizer(settings.tokenizer, corpus.train + corpus.turns, settings.vocab_size)
    stream, held_out = stream_of(tokenizer, corpus.train), stream_of(tokenizer, corpus.held_out)
    model = new_model(settings, tokenizer)
    tqdm.write(
        f"{len(corpus.train):,} texts, {len(stream):,} tokens of {len(tokenizer)} kinds, "
        f"{model.num_parameters() / 1e6:.1f} M parameters; "
        f"trains on {settings.tokens:,} tokens, at most {settings.seconds:.0f} s"
    )
    metrics = Metrics(out / "metrics.jsonl")
    step, seen, seconds = _train(model, stream, settings, metrics, progress)
    figures = {
        "perplexity": perplexity(model, held_out, settings.context),
        "unigram_perplexity": unigram_perplexity(stream, held_out, len(tokenizer)),
    }
    metrics.log(step, seen, seconds, **figures)
    _save(out, model, tokenizer)
    stopped = "the time was up" if seen < settings.tokens else "all tokens seen"
    tqdm.write(
        f"{seen:,} tokens in {seconds:.0f} s ({stopped}); held-out "
        + ", ".join(f"{k} {v:.2f}" for k, v in figures.items())
    )
    return out


def _train(
    model: LlamaForCausalLM, stream: Tensor, settings: Pretraining, metrics: Metrics, progress: Callable
) -> tuple[int, int, float]:
    """Steps, tokens and seconds that it took."""
    model.train()
    optimizers = Optimizers(model, settings.optim)
    context = autocast(settings.precision, model.device)
    drawn = batches(stream, settings.rows, settings.context, settings.seed)
    layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
    step, seen, seconds, share, began = 0, 0, 0.0, 0.0, time.monotonic()
    with progress(total=settings.tokens, desc="language model", unit="tok", unit_scale=True, bar_format=layout) as bar:
        while share < 1:
            optimizers.set_rate(rate(settings.optim, step, share))
            loss = _step(model, next(drawn), optimizers, context, step)
            tokens = settings.rows * settings.context
            step, seen, seconds = step + 1, seen + tokens, time.monotonic() - began
            share = max(seen / settings.tokens, seconds / settings.seconds)
            bar.update(tokens)
            if step % 10 == 0 or share >= 1:
                bar.set_postfix_str(f"loss {loss:.3f}, {seconds * (1 / share - 1):.0f} s left")
                metrics.log(step, seen, seconds, loss=loss, tokens_per_second=seen / seconds)
    return step, seen, seconds


def _step(model: LlamaForCausalLM, rows: Tensor, optimizers: Optimizers, context: torch.autocast, step: int) -> float:
    with context:
        loss = next_token_loss(model, rows.to(model.device))
    if not math.isfinite(value := loss.item()):
        raise PretrainingError(f"step {step}: the loss is {value}, nothing was updated with it; lower optim.lr")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), optimizers.settings.clip)
    optimizers.step()
    optimizers.zero_grad()
    return value


def _save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write model and tokenizer, config.json last: a folder without one is not yet a model."""
    with new_folder(out, last="config.json") as aside:
        model.eval().save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def main(argv: Sequence[str]) -> int:
    """`python -m train.llm [config.yaml] [key=value ...]`"""
    logging.disable_progress_bar()  # of writing shards: there is one
    try:
        pretrain(load(Pretraining, argv))
    except (PretrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
