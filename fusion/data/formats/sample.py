"""The sample that every data source yields, and the error for one that cannot be used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One training sample, either a conversation or a document without roles (a page).

    messages: `{"role": "system" | "user" | "assistant", "content": [blocks]}`; a block is `{"type": "text", "text":
    str}` or `{"type": "image", "image": PIL.Image}` (RGB). Assistant turns have a loss: an assistant's image is a
    target, a user's is context. content: blocks without roles, all of which have a loss. Exactly one of the two is
    given, the other is None. source: the name of the source. key: the origin of the sample ("path/metadata.jsonl:17"),
    for messages to users. subject: what the train/validation split goes by; None where a source has no split.
    """

    messages: list[dict] | None
    content: list[dict] | None
    source: str
    key: str
    subject: str | None = None


class BadSample(ValueError):
    """A sample that cannot be used.

    key: which sample it is. reason: what is wrong. Both are one line of printable characters, safe for any terminal or
    file.
    """

    def __init__(self, key: str, reason: str):
        self.key, self.reason = _printable(key), _printable(" ".join(reason.split()))
        super().__init__(f"{self.key}: {self.reason}")

    def __reduce__(self):
        return BadSample, (
            self.key,
            self.reason,
        )  # pickled by its two arguments, not by its message, when a worker process raises it


def _printable(text: str) -> str:
    """Escape control characters and lone surrogates, which names in broken tables may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
