"""Which texts of evaluation occur verbatim in training documents: a score on others is not one of memory alone.

The built-in world draws its documents from their numbers, so that those of a run can be drawn again when it is over.
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
    """Return those of the texts that training samples have: as a whole text of a conversation, or anywhere in a page.

    Spelling, capitals and punctuation have to agree.
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
    """Draw the first documents of a curriculum again, those that a run of so many documents trained on."""
    return (curriculum.sample(number) for number in range(count))
