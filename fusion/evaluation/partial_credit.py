"""Partial credit for images that are rarely entirely right: the share of the request that the judge finds done."""

from fusion.worlds.shapes import EditVerdict, Expectation, Verdict

WORDS = {
    "drawing": "the share of what was asked that is right: how many objects; all objects with their shapes, colours, "
    "sizes and places; that this "
    "is true of a clean image; and, where they are asked for, the colours whatever their shapes, and the relations",
    "edits": "nothing without the asked change, so that a copy is worth nothing; with it a third, another third times "
    "the share of the other "
    "pixels that were kept, and a third where the edit is done and nothing else",
}


def of_drawing(verdict: Verdict, asked: Expectation) -> float:
    """Return the partial credit of a generated image, in [0, 1]; see WORDS.

    It is 1 if and only if the image is right, and 0 for a blank one.
    """
    found = [verdict.count_right, verdict.objects_right, verdict.ok]
    found += [verdict.colours_present] if asked.colours else []
    found += [verdict.relations_right] if asked.relations else []
    return sum(found) / len(found)


def of_edit(verdict: EditVerdict) -> float:
    """Return the partial credit of an edit, in [0, 1]; see WORDS.

    It is 1 only if the edit is done, and 0 for a copy of the source.
    """
    return verdict.asked * (1 + verdict.kept + verdict.done) / 3
