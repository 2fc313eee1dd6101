"""Finds evaluation texts that occur verbatim in training documents: scores on others are not due to memory alone.

The built-in world generates each document from its number, so that a run's documents can be regenerated after it.
"""

from collections.abc import Iterable, Iterator

from fusion.data.curriculum import Curriculum
from fusion.data.formats import Sample


def texts_of(sample: Sample) -> list[str]:
    """Return the texts of a training sample in order, without its images."""
    if sample.messages is None:
        contents = [sample.content or []]
    else:
        contents = [message["content"] for message in sample.messages]
    return [block["text"] for content in contents for block in content if block["type"] == "text"]


def seen_in(asked: Iterable[str], samples: Iterable[Sample]) -> frozenset[str]:
    """Return the texts of `asked` that occur in training samples.

    In a conversation a text has to be a whole text block; in a page it may occur anywhere. Spelling, capitals and
    punctuation have to agree.
    """
    wanted = frozenset(asked)
    seen: set[str] = set()
    for sample in samples:
        texts = texts_of(sample)
        if sample.messages is None:
            seen.update(one for one in wanted if any(one in text for text in texts))
        else:
            seen.update(wanted.intersection(texts))
    return frozenset(seen)


def first_documents(curriculum: Curriculum, count: int) -> Iterator[Sample]:
    """Regenerate the first `count` documents of a curriculum, those that a run of as many documents trained on."""
    return (curriculum.sample(number) for number in range(count))
