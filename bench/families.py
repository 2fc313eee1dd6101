"""Test the laws on a tiny model of every decoder family in transformers and write docs/families.md.

Usage: `python -m bench.families`

A family without an adapter in fusion.unified.backbone is tried with the plain one, so that the table can say what
prevents its support. *text* is law 1 (bit-identical to the LLM), *sight* law 3 (a change affects exactly the positions
that the attention mask lets see it), *sampling* law 4 (the cached sampler's prediction is that of the training pass).
tests/test_laws_*.py test all laws for those that pass.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fusion.common.atomic import save
from fusion.generation.drawing import Canvas, draw
from fusion.generation.prefix import Prefix
from fusion.generation.sampling import Sampling
from fusion.testing.mixed_documents import (
    CONTROL,
    TOLERANCE,
    answer,
    changed,
    error,
    fresh_fusion,
    image_piece,
    packed_rows,
    stirred,
    text,
)
from fusion.testing.tiny_llms import VOCAB, tiny_config, tiny_llm
from fusion.unified.backbone import FAMILIES, Family, family_of
from fusion.unified.model import FusionModel

LARGEST = 30_000_000  # parameters; a config that is larger than this at our sizes has other names for its sizes
TARGET = Path("docs/families.md")
SECOND_NAME = "a second name of"  # a note that begins so is of no family of its own


@dataclass(frozen=True)
class Verdict:
    """The result for a family: it passes, or `note` says why it is refused."""

    family: str
    passes: bool
    note: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a family of its own, and not a second name of another."""
        return not self.note.startswith(SECOND_NAME)


def judge(family: str) -> Verdict:
    """Refuse a family by its config, or test the laws on a tiny model of it."""
    try:
        config = tiny_config(family)
    except Exception as problem:  # every family's config may raise a type of its own
        return _refused_untried(family, problem)
    if config.is_encoder_decoder:
        return Verdict(family, False, "an encoder-decoder: its decoder reads another network's output")
    try:
        known = bool(family_of(config))
    except ValueError as problem:
        known = False
        if "supported decoder family" not in str(problem):
            return Verdict(family, False, str(problem).removeprefix(f"{config.model_type} "))
    try:
        broken = broken_laws(family, known)
    except Exception as problem:  # the table reports whatever the model raises
        return Verdict(family, False, f"has no adapter, and the plain one does not fit it: {_line(problem)}")
    if broken:
        return Verdict(family, False, f"breaks the law of {' and of '.join(broken)}")
    if not known:
        return Verdict(family, False, "passes with the plain adapter; the order of its norms has not been looked at")
    return Verdict(family, True, "" if config.model_type == family else f"{SECOND_NAME} `{config.model_type}`")


def _refused_untried(family: str, problem: Exception) -> Verdict:
    """Return the verdict for a family without a tiny config: what its default config says, else the problem."""
    try:
        family_of(AutoConfig.for_model(family).get_text_config())
    except Exception as reason:
        if "cannot attend" in str(reason):
            return Verdict(family, False, str(reason).partition(" ")[2])
    return Verdict(family, False, f"has no adapter and takes no tiny config: {_line(problem)}")


@torch.no_grad()
def broken_laws(family: str, known: bool) -> list[str]:
    """Return the names of the laws that a family breaks, with its own adapter (`known`) or the plain one.

    Raises ValueError if the tiny model has more than LARGEST parameters.
    """
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(tiny_config(family)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters at sizes meant to be tiny")
    if not known:
        FAMILIES[family] = Family()
    try:
        plain, model = tiny_llm(family), fresh_fusion(family)
        laws = {
            "text": text_is_the_llms(model, plain),
            "sight": sight_is_the_masks(stirred(model)),
            "sampling": sampling_is_training(model),
        }
        return [name for name, holds in laws.items() if not holds]
    finally:
        if not known:
            del FAMILIES[family]


def text_is_the_llms(model: FusionModel, plain) -> bool:
    """Test law 1: logits of text equal the LLM's bit for bit, beyond a sliding window of 16."""
    ids = torch.randint(1, VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
    return torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def sight_is_the_masks(model: FusionModel) -> bool:
    """Test law 3: the effects of a change respect the attention mask.

    The first text tokens are not affected by later ones, both ends of an image affect each other, and a noised block
    affects itself alone.
    """
    document = [text(6, 1), image_piece(3, 3, 2), text(6, 3)]
    before, clean, noised = range(6), range(9, 18), range(25, 34)
    places = (clean[0], clean[-1], 24, noised[0])
    packed = packed_rows([[document]] * (len(places) + 1))
    for row, place in enumerate(places, start=1):
        packed = changed(packed, row, place)
    hidden = answer(model, packed).hidden
    change = (hidden - hidden[0]).abs().amax(-1) / hidden.square().mean().sqrt()
    ends = all((change[row, [clean[0], clean[-1]]] > TOLERANCE).all() for row in (1, 2))
    isolated = (change[4, : noised[0]] <= TOLERANCE).all() and (change[4, list(noised)] > 0).all()
    return bool(
        ends
        and isolated
        and (change[1:, list(before)] <= TOLERANCE).all()
        and (change[1:3, list(noised)] <= TOLERANCE).all()
    )


def sampling_is_training(model: FusionModel) -> bool:
    """Test law 4: behind a cached prefix, one step from t = 1 predicts what a packed pass over the same noise does."""
    document = [text(19, 1), image_piece(5, 4, 2, clean=False)]
    prefix = Prefix(model, CONTROL, 1)
    prefix.write(0, document[:1])
    prefix.writers[0].open_image(document[1].size_ids)
    prefix.read([])
    packed = packed_rows([[document]], times=1.0)
    canvas = Canvas({"full": (prefix, 0)}, document[1].grid, packed.patches)
    (drawn,) = draw(model, [canvas], Sampling(steps=1, guidance=1.0))
    return error(drawn.x_hat[0], answer(model, packed).prediction) <= TOLERANCE


def page(verdicts: list[Verdict], version: str = transformers.__version__) -> str:
    """Render the table as Markdown, with the number of families that pass: second names are not counted."""
    families = [verdict for verdict in verdicts if verdict.counts]
    passing = [verdict for verdict in families if verdict.passes]
    rows = [
        f"| `{verdict.family}` | {'passes' if verdict.passes else 'refused'} | {verdict.note} |" for verdict in verdicts
    ]
    return "\n".join(
        [
            "# Decoder families",
            "",
            f"{len(passing)} of the {len(families)} families that transformers {version} has for causal language "
            "modelling pass. Second names are listed, not counted.",
            "Written by `python -m bench.families`, which tries a tiny random model of each: text through the extended "
            "model is the LLM's own, bit",
            "for bit; who feels a change is who the mask lets see it; the cached sampler predicts what the training "
            "pass does. The rest is refused",
            "by `fusion.from_llm` in one line.",
            "",
            "| family | | why |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split()).replace("|", "/")[:120]


def main() -> None:
    """Test every family, print each verdict to stderr, and write docs/families.md."""
    transformers.logging.set_verbosity_error()
    names = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | set(FAMILIES))
    verdicts = []
    for name in names:
        verdicts.append(judge(name))
        print(f"{name}: {'passes' if verdicts[-1].passes else verdicts[-1].note}", file=sys.stderr)
    TARGET.parent.mkdir(exist_ok=True)
    save(page(verdicts).encode(), TARGET)


if __name__ == "__main__":
    main()
