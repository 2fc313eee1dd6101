"""Texts of evaluation that occur in training: whole texts of conversations, any part of a page, nothing else."""

from collections import Counter

from fusion.data.curriculum import TRAINING_SEED, Curriculum, Stage, Texts
from fusion.data.formats import Sample
from fusion.evaluation.overlap import first_documents, seen_in, texts_of


def chat(*texts: str) -> Sample:
    blocks = [{"type": "image", "image": None}, *({"type": "text", "text": text} for text in texts)]
    return Sample([{"role": "user", "content": blocks}], None, "chats", "0")


def test_a_text_of_a_conversation_counts_if_it_is_the_whole_of_it():
    samples = [chat("draw a circle", "and a square"), chat("draw a cross left of a square")]
    asked = ["draw a circle", "draw a cross", "Draw a circle", "and a square"]
    assert seen_in(asked, samples) == {"draw a circle", "and a square"}


def test_a_text_counts_wherever_it_stands_in_a_page():
    page = Texts(["ben says: draw a circle. anna draws."]).sample(0, None)
    assert texts_of(page) == ["ben says: draw a circle. anna draws."]
    assert seen_in(["draw a circle", "draw a cross"], [page]) == {"draw a circle"}


def test_documents_drawn_again_are_those_of_the_run():
    curriculum = Curriculum([Stage()], TRAINING_SEED)
    drawn = list(first_documents(curriculum, 40))
    walk = curriculum.stream()
    assert [one.key for one in drawn] == [next(walk).key for _ in range(40)]
    prompts = Counter(text for one in drawn for text in texts_of(one))
    assert seen_in(prompts, drawn) == set(prompts) and seen_in(prompts, drawn[:1]) < set(prompts)
