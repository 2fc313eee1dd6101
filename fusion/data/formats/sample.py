"""Sample: what every source of data yields, and the error that leaves one out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One training sample, either a conversation or a page.

    messages: `{"role": "system" | "user" | "assistant", "content": [blocks]}`; a block is `{"type": "text", "text":
    str}` or `{"type": "image", "image": PIL.Image}` (RGB). Assistant turns are learned: an assistant's image is a
    target, a user's is context. content: blocks without roles, all of them learned. Exactly one of the two is given,
    the other is None. source: the name of the source. key: where it comes from ("path/metadata.jsonl:17"), for messages
    to people. subject: what decides the side of the split; None where a source has no split.
    """

    messages: list[dict] | None
    content: list[dict] | None
    source: str
    key: str
    subject: str | None = None


class BadSample(ValueError):
    """A sample that cannot be used. `key` says which, `reason` what is wrong, in one line that any terminal and any
    file takes."""

    def __init__(self, key: str, reason: str):
        self.key, self.reason = _printable(key), _printable(" ".join(reason.split()))
        super().__init__(f"{self.key}: {self.reason}")

    def __reduce__(self):
        return BadSample, (
            self.key,
            self.reason,
        )  # a worker process sends it to its parent by its two arguments, not by its message


def _printable(text: str) -> str:
    """Control characters and halves of surrogate pairs, which names in broken tables may hold, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
