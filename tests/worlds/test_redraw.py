"""Images of a pool's texts: new every time, and true of the same words."""

import numpy as np
import pytest

from fusion.data.curriculum import Curriculum, Stage
from fusion.data.formats import WorldSource
from fusion.data.formats.builtin_world import STRIPES
from fusion.worlds.shapes import Options, World, judge
from fusion.worlds.shapes.redraw import redrawn

DRAWN = Options(tasks={"text_to_image": 1.0}, open=0.3)


@pytest.mark.parametrize("options", [DRAWN, Options(tasks={"text_to_image": 1.0}, placed=True, distinct=True)])
def test_what_a_caption_says_holds_of_the_scene_drawn_anew(options):
    rng, changed = np.random.default_rng(0), 0
    for _ in range(60):
        sample = World(options).sample(rng)
        other = redrawn(rng, sample)
        image = other.messages[-1]["content"][0]["image"]
        assert other.messages[0] == sample.messages[0] and other.expectation == sample.expectation
        assert judge.check(image, sample.expectation).ok
        assert sorted(other.scenes[0].kinds) == sorted(sample.scenes[0].kinds), "no new pair of kinds comes up"
        changed += not np.array_equal(image, sample.messages[-1]["content"][0]["image"])
    assert changed > 50


def test_documents_of_other_tasks_stay_as_they_are():
    rng = np.random.default_rng(1)
    for task in ("edits", "questions", "chat", "stories"):
        sample = World().sample(rng, task)
        assert redrawn(rng, sample) is sample


def words(source, numbers) -> set[str]:
    return {source[i].messages[0]["content"][0]["text"] for i in numbers}


def test_a_pool_has_few_texts_and_endless_images_and_ranks_divide_it():
    source = WorldSource(World(DRAWN), 1, pool=64)
    everything = words(source, range(600))
    assert 30 < len(everything) <= 64
    halves = [words(source, range(rank, 600, 2)) for rank in (0, 1)]
    assert max(map(len, halves)) <= 32, "a rank of two reads half of the texts"
    images = {source[i].messages[1]["content"][0]["image"].tobytes() for i in range(200)}
    assert len(images) > 150
    assert STRIPES % 16 == 0 and source[7].messages == WorldSource(World(DRAWN), 1, pool=64)[7].messages


def test_stages_may_end_at_shares_of_the_run():
    stages = [Stage(0.25, tasks={"text_to_image": 1.0}), Stage(tasks={"chat": 1.0})]
    curriculum = Curriculum(stages, documents=40)
    tasks = [curriculum.sample(i).key.split(":")[-1] for i in range(20)]
    assert tasks == ["text_to_image"] * 10 + ["chat"] * 10
    with pytest.raises(ValueError, match=r"until=0.25: a share of the run needs its number of documents"):
        Curriculum(stages)
    with pytest.raises(ValueError, match=r"pool=0: at least one text"):
        Stage(pool=0)
