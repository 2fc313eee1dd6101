"""Replay: an LLM's own answers to prompts that ship with the package, so that training keeps its chat.

What a model was taught last it says most. Mixed into other data, these conversations teach when nothing is to be drawn.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion.common.atomic import save
from fusion.common.llm_files import llm_folder
from fusion.data.formats import Chat

BATCH = 16


def prompts() -> list[str]:
    """Return the prompts that ship with the package: questions and requests that no image answers."""
    return _lines("replay_prompts.txt")


def questions() -> list[str]:
    """Return 50 other questions, never replayed, by which it is measured what training did to the chat."""
    return _lines("chat_questions.txt")


def _lines(name: str) -> list[str]:
    return (files("fusion.data") / name).read_text(encoding="utf-8").split("\n")[:-1]


@torch.inference_mode()
def answers(llm: str | Path, asked: Sequence[str], tokens: int = 24) -> list[str]:
    """Return an LLM's greedy answers, of at most so many tokens each, to prompts in its own chat template."""
    place = llm_folder(llm)
    tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, trust_remote_code=False).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    said = []
    for start in range(0, len(asked), BATCH):
        chats = [[{"role": "user", "content": text}] for text in asked[start : start + BATCH]]
        inputs: Any = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        said += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def replayed(llm: str | Path, file: Path) -> Chat:
    """Return the conversations as a source; the LLM is asked for its answers now unless the file has them."""
    if not file.is_file():
        asked = prompts()
        turns = zip(asked, answers(llm, asked), strict=True)
        said = [[{"role": "user", "content": text}, {"role": "assistant", "content": answer}] for text, answer in turns]
        save("".join(json.dumps({"messages": one}) + "\n" for one in said if one[1]["content"].strip()), file)
    return Chat(file)
