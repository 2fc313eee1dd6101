"""A judge behind an OpenAI-compatible endpoint, which gets the image and one question at a time.

Endpoints are vLLM, SGLang, llama.cpp, or a hosted model.

The API key, where the endpoint requires one, is the environment's OPENAI_API_KEY; it is sent to that endpoint alone and
not stored.
"""

import base64
import io
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from PIL import Image

from fusion.evaluation.benchmarks.judges.vqa import ASKED, Judge, load_judge

LENGTH = 16  # most tokens of an answer
LIKELIEST = 20  # most probable tokens that a server returns with probabilities: as many as vLLM and OpenAI do
TRIES, PAUSE, PATIENCE = (
    5,
    1.0,
    120,
)  # tries of a request, seconds before the second (then twice as long each time), and timeout in seconds
BUSY = {408, 429, 500, 502, 503, 504}


class Server:
    """A judge behind an OpenAI-compatible endpoint; see fusion.evaluation.benchmarks.judges.vqa.Judge.

    url: up to /v1. model: its name at the endpoint; the only one there, if not given. Raises ValueError, in one line,
    where the endpoint cannot be reached, refuses, or returns something else than an answer.
    """

    at_once = 8

    def __init__(self, url: str, model: str | None = None):
        self.url = url.rstrip("/")
        self.model = model or self._only_model()
        self.name = f"served {self.model}"

    def answers(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Return the answer to each yes-or-no question about the image, unparsed."""
        shown = block(image)
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(
                pool.map(lambda question: self._say([shown, block(ASKED.format(question=question))], LENGTH), questions)
            )

    def say(self, parts: Sequence[str | Image.Image], length: int) -> str:
        """Return the answer to texts and images in their order, unparsed, in at most `length` tokens."""
        return self._say([block(part) for part in parts], length)

    def likely(self, image: Image.Image, texts: Sequence[str], openings: Sequence[Sequence[str]]) -> list[float]:
        """Return for each text the probability that the answer to it begins as one of its openings does.

        It sums the first tokens with which an opening begins, of the LIKELIEST most probable ones.
        """
        shown = block(image)
        with ThreadPoolExecutor(self.at_once) as pool:
            rows = pool.map(lambda text: self._beginnings([shown, block(text)]), texts)
            return [
                sum(p for token, p in row if opens(token, words)) for row, words in zip(rows, openings, strict=True)
            ]

    def _say(self, content: list[dict], length: int) -> str:
        said = self._talk(content, max_tokens=length)
        try:
            text = said["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"{self.url}: no answer but {json.dumps(said)[:120]}; does {self.model} see and speak?")
        return text

    def _beginnings(self, content: list[dict]) -> list[tuple[str, float]]:
        """Return the most probable first tokens of the answer, with their probabilities."""
        said = self._talk(content, max_tokens=1, logprobs=True, top_logprobs=LIKELIEST)
        try:
            return [
                (one["token"], math.exp(one["logprob"]))
                for one in said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            ]
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                f"{self.url}: no probabilities but {json.dumps(said)[:120]}; take a server that tells logprobs"
            ) from None

    def _talk(self, content: list[dict], **how) -> Any:
        asked = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0, **how}
        return self._call("chat/completions", asked)

    def _only_model(self) -> str:
        said = self._call("models")
        try:
            names = [str(one["id"]) for one in said["data"]]
        except (KeyError, TypeError):
            raise ValueError(
                f"{self.url}: no list of models but {json.dumps(said)[:120]}; give an address that ends in /v1"
            ) from None
        if len(names) != 1:
            raise ValueError(
                f"{self.url}: {len(names)} models are served ({', '.join(names)[:120]}); name one with --served"
            )
        return names[0]

    def _call(self, path: str, body: dict | None = None) -> Any:
        """Send a request (POST if it has a body) and return its JSON; retry after a pause where it is busy or away."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/{path}", None if body is None else json.dumps(body).encode(), headers
        )
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
                    data = reply.read()
                break
            except urllib.error.HTTPError as error:
                trouble = f"{error.code} {error.reason}: {error.read(200).decode(errors='replace')}"
                if error.code not in BUSY:
                    raise ValueError(f"{self.url}/{path}: refused ({trouble})") from None
            except (OSError, HTTPException) as error:  # away, too slow, or cut off
                trouble = str(error)
        else:
            raise ValueError(f"{self.url}/{path}: no answer in {TRIES} tries ({trouble}); is it running?")
        try:
            return json.loads(data)
        except ValueError:
            raise ValueError(
                f"{self.url}/{path}: not JSON but {data[:80]!r}; give an address that ends in /v1"
            ) from None


def opens(token: str, words: Sequence[str]) -> bool:
    """Return whether one of the words begins with the token, if that is not blank."""
    return bool(token.strip()) and any(word.startswith(token) for word in words)


def block(part: str | Image.Image) -> dict[str, Any]:
    """Convert a text, or an image as PNG, to a block of a chat message."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = io.BytesIO()
    part.save(data, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"},
    }


def judge_of(name: str, served: str | None = None, device: str | None = None) -> Judge:
    """Return a Server for an address, and a local model for a folder or hub id.

    served: the server's name of the model. Raises ValueError, in one line, where there is no such judge.
    """
    if name.startswith(("http://", "https://")):
        return Server(name, served)
    if served is not None:
        raise ValueError("--served names a model of a server: give its address with --judge")
    return load_judge(name, device)
