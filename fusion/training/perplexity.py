"""Whether a model still writes as well as the LLM it came from: held-out perplexity of plain text, before and after."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fusion.common.llm_files import llm_folder
from fusion.generation import api
from fusion.worlds.shapes import plain_text

ROWS = 32
PROSE = 0x7E47  # no trainer spawns this many children


@dataclass(frozen=True)
class Kept:
    """Perplexity per token of the same tokens under the LLM (`before`) and under the model made of it (`after`)."""

    before: float
    after: float
    tokens: int

    @property
    def rise(self) -> float:
        """By which share the perplexity rose; below 0 where the model writes better than the LLM."""
        return self.after / self.before - 1


def kept(llm: str | Path, fusion_folder: str | Path, texts: Sequence[str], context: int = 256) -> Kept:
    """Perplexity before and after, both in fp32 with the LLM's own tokenizer."""
    place = llm_folder(llm)
    tokenizer = AutoTokenizer.from_pretrained(place)
    ids = encode(tokenizer, texts, context)
    llm = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    model = api.load(fusion_folder, dtype=torch.float32).model
    return Kept(perplexity(llm, ids), perplexity(model, ids), sum(len(one) - 1 for one in ids))


def kept_texts(llm: str | Path, model: str | Path, count: int = 160, seed: int = 1) -> dict:
    """What `kept` says of the built-in world's prose, as figures by name."""
    found = kept(llm, model, prose(count, seed))
    return asdict(found) | {"rise": found.rise}


def prose(count: int, seed: int = 1) -> list[str]:
    """Texts of the built-in world, drawn for evaluation alone."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PROSE,)))
    return [plain_text(rng) for _ in range(count)]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> list[list[int]]:
    """Each text as ids with the end of text behind it, cut to `context`; ValueError where not one gives two tokens."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = [
        ([*one, *end])[:context]
        for one in tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ]
    encoded = [one for one in encoded if len(one) > 1]
    if not encoded:
        raise ValueError("no text of two tokens or more: give texts to measure the perplexity of")
    return encoded


@torch.inference_mode()
def perplexity(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> float:
    """exp of the mean cross-entropy of every token but each text's first, given the text before it.

    Only the LLM's own vocabulary takes part: a FusionModel's forward on ids gives its first V logits.
    """
    total = count = 0
    ordered = sorted(ids, key=len)  # texts of like length share a batch
    for start in range(0, len(ordered), ROWS):
        part = ordered[start : start + ROWS]
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in part], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(one) for one in part], batch_first=True, padding_value=-100
        )
        total += float(_cross_entropy(model, rows.to(model.device), labels.to(model.device)))
        count += int((labels[:, 1:] != -100).sum())
    return math.exp(total / count)


def _cross_entropy(model: PreTrainedModel, rows: Tensor, labels: Tensor) -> Tensor:
    """A sum. Rows are padded on the right, where no earlier token looks."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
