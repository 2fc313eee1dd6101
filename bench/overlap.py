"""How much of the scored items occurs in training: `python -m bench.overlap world 52000` or `... configs/demo.yaml N`

Draws the first N documents of the built-in world as its options are by default, or as the stages of a config of
train.demo have them, and counts which scored prompts occur among them verbatim, by category, and which scored images of
questions and of edits byte for byte. Several configs stand for runs of which each goes on from the one before. With
`--model`, that model draws the prompts, and the shares of right drawings are counted apart.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain

from PIL import Image
from tqdm import tqdm

from bench import measure
from fusion.common.config import load_config
from fusion.common.statistics import Score
from fusion.data.curriculum import TRAINING_SEED, Curriculum, Stage, Texts
from fusion.data.formats import Sample
from fusion.evaluation import scorecard
from fusion.evaluation.overlap import first_documents, seen_in
from fusion.evaluation.run import params_of
from fusion.evaluation.subjects import load_subject
from fusion.evaluation.suites import Drawing
from fusion.recipes.demo import Demo, curriculum_of
from fusion.recipes.llm import read_corpus
from fusion.worlds.shapes import SCORED_SEED, evaluation_edits, evaluation_prompts, evaluation_questions

PROMPTS, QUESTIONS, EDITS = 200, 200, 100  # that the demo is scored on
WORLD = "world"


class Watched:
    """Samples that pass by, and which of the scored texts and images they have. images: whether they are looked at."""

    def __init__(self, images: bool):
        self.prompts = [
            (one.category.replace("_", " "), one.held_out, one.prompt) for one in evaluation_prompts(PROMPTS)
        ]
        self.questions = [one.image.tobytes() for one in evaluation_questions(QUESTIONS)]
        self.edits = [one.image.tobytes() for one in evaluation_edits(EDITS)]
        self.images = images
        self.texts_seen: frozenset[str] = frozenset()
        self.images_seen: set[bytes] = set()

    def look(self, samples: Iterator[Sample]) -> None:
        """Read the samples to their end."""
        wanted = {*self.questions, *self.edits}
        self.texts_seen |= seen_in((prompt for *_, prompt in self.prompts), self._passed(samples, wanted))

    def _passed(self, samples: Iterator[Sample], wanted: set[bytes]) -> Iterator[Sample]:
        for sample in samples:
            if self.images:
                self.images_seen |= wanted.intersection(image.tobytes() for image in images_of(sample))
            yield sample

    def figures(self) -> dict:
        """Counts of what occurs, by category of prompts."""
        found: dict[str, dict] = {"all": {"prompts": 0, "seen": 0}}
        for category, held_out, prompt in self.prompts:
            for name in ("all", f"{category}, held out" if held_out else category):
                row = found.setdefault(name, {"prompts": 0, "seen": 0})
                row["prompts"] += 1
                row["seen"] += prompt in self.texts_seen
        images = {"question images": self.questions, "edit images": self.edits} if self.images else {}
        return {"prompts": found} | {
            name: {"images": len(wanted), "seen": sum(one in self.images_seen for one in wanted)}
            for name, wanted in images.items()
        }


def images_of(sample: Sample) -> list[Image.Image]:
    """The images of a training sample, in order."""
    blocks = chain.from_iterable(message["content"] for message in sample.messages or [])
    return [block["image"] for block in blocks if block["type"] == "image"]


def documents(source: str, count: int) -> Iterator[Sample]:
    """The first documents of the world by default, or those of a config of train.demo behind its language model's
    texts."""
    if source == WORLD:
        return first_documents(Curriculum([Stage()], TRAINING_SEED), count)
    config = load_config(Demo, source)
    corpus = read_corpus(config.llm.data, config.llm.seed)
    texts = Texts(corpus.train)
    pages = (texts.sample(number, None) for number in range(len(texts)))
    return chain(pages, first_documents(curriculum_of(config, corpus), count))


def shares(model: str, params: Sequence[str], seen: frozenset[str]) -> dict[str, Score]:
    """Right drawings of a model, of prompts that training had and of others."""
    card = scorecard.score(load_subject(model, params_of(params)), {Drawing.name: PROMPTS}, SCORED_SEED, progress=True)
    names = (scorecard.SEEN, scorecard.UNSEEN, scorecard.OVERALL)
    return {score.name: score for score in replace(card, seen=seen).scores[Drawing.name] if score.name in names}


def main(argv: Sequence[str]) -> int:
    """Print what was found, and record it."""
    parser = argparse.ArgumentParser(prog="python -m bench.overlap", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="SOURCE COUNT", help="`world` or a config, and how many documents")
    parser.add_argument("--name", default="overlap", help="of the record")
    parser.add_argument("--texts-only", action="store_true", help="do not look at images")
    parser.add_argument("--model", help="a model whose right drawings are counted apart, such as shapes")
    parser.add_argument("--params", nargs="*", default=[], help="of its sampler: guidance=2 steps=20")
    options = parser.parse_args(argv)
    runs = list(zip(options.runs[::2], map(int, options.runs[1::2]), strict=True))
    watched = Watched(not options.texts_only)
    for source, count in runs:
        watched.look(tqdm(documents(source, count), desc=source, unit="documents", mininterval=10))
    figures = watched.figures()
    if options.model:
        drawn = shares(options.model, options.params, watched.texts_seen)
        figures["drawings"] = {name: asdict(score) for name, score in drawn.items()}
    print(figures)
    command = "python -m bench.overlap " + " ".join(argv)
    print(measure.write(options.name, {"command": command, "runs": runs, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
