"""Results of eval.tune: figures as JSON, and a page with the quality-cost front and same-noise preset images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean
from typing import Any

from PIL import Image

from fusion.common.charts import Dots, scatter
from fusion.common.html import Section, document, gallery, paragraph, table
from fusion.evaluation import partial_credit as quality
from fusion.evaluation.subjects import Subject
from fusion.evaluation.suite import Row
from fusion.generation.sampling import Sampling
from fusion.tuning.pareto_front import RULE, Judged, front, gain
from fusion.tuning.search import DEPTHS, PARTS, Part, answered, chunk

RIGHT = {"drawing": "GenEval", "edits": "edits done"}
SHORT = {"image_guidance": "by image", "guidance_interval": "interval", "edits done": "edits"}
OTHERS = (
    "GenEval: the share of images in which all is right, GenEval in miniature. Edits: the share of edits that are "
    "done, and nothing else."
)
SAMPLES, SHOWN = 6, 96  # of a part, and their pixels on screen


@dataclass(frozen=True)
class Found:
    """What a search found. settings: what it depends on; facts: of the run. searched: the sampling parameters; parts:
    of the suite. tried: cost and quality of all settings on the items of the search, with their sampling parameters in
    words. judged: those that stayed, the default first. named: the presets."""

    settings: dict
    facts: dict
    searched: Sequence[str]
    parts: Sequence[str]
    tried: list[tuple[float, float, str]]
    judged: list[Judged]
    named: dict[str, Judged]

    @property
    def shown(self) -> dict[str, Judged]:
        """The library's own sampling parameters, and the presets."""
        return {"default": self.judged[0]} | self.named

    def names(self, one: Judged) -> list[str]:
        """What it is."""
        return [name for name, shown in self.shown.items() if shown is one]

    @property
    def presets(self) -> dict[str, dict[str, Any]]:
        """For the model's folder."""
        return {name: params_of(one.setting, self.searched) for name, one in self.named.items()}

    @property
    def measures(self) -> dict[str, str]:
        """What quality is, by part."""
        return {name: quality.WORDS[name] for name in self.judged[0].quality}

    def figures(self) -> dict:
        """For results.json."""
        rows = []
        for one in self.judged:
            by_part = {f"quality of {name}": mean(values) for name, values in one.quality.items()}
            right = {RIGHT[name]: mean(values) for name, values in one.right.items()}
            rows.append(
                {"params": params_of(one.setting, self.searched), "passes": one.cost, "quality": one.mean}
                | by_part
                | right
            )
        return (
            self.settings
            | self.facts
            | {"rule": RULE, "quality": self.measures, "judged": rows, "presets": self.presets}
        )

    def as_text(self) -> str:
        """For a terminal."""
        said = {
            name: f"{one.cost:5.1f} passes  quality {one.mean:.3f}  {in_words(one.setting, self.searched)}"
            for name, one in self.shown.items()
        }
        return "\n".join(f"{name:<9} {line}" for name, line in said.items())


def params_of(setting: Sampling, names: Sequence[str]) -> dict[str, Any]:
    """Some of its sampling parameters."""
    return {name: getattr(setting, name) for name in names}


def as_read(value: Any) -> Any:
    """A sampling parameter's value for people, an interval on one line."""
    return f"{value[0]:g}\u00a0to\u00a0{value[1]:g}" if isinstance(value, tuple) else value


def in_words(setting: Sampling, names: Sequence[str]) -> str:
    """Some of its sampling parameters, in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {as_read(value)}" for name, value in params_of(setting, names).items())


# ---- the page ----


def render(found: Found, subject_of: Callable[[dict], Subject]) -> str:
    """The page as one string of HTML; the samples are drawn for it."""
    model, split = found.settings["model"], found.settings["split"]
    items = sum(map(len, found.judged[0].quality.values()))
    lead = (
        f"{len(found.tried)} settings were searched on the {split} prompts of the built-in world; the "
        f"{len(found.judged)} that stayed, the default "
        f"among them, were judged on {items} items that chose none of them."
    )
    facts = {name: found.settings[name] for name in ("suite", "split", "seed", "weights")} | found.facts
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd></div>" for name, value in facts.items()
    )
    measured = "".join(paragraph(f"Quality of {name}: {said}.") for name, said in found.measures.items()) + paragraph(
        OTHERS
    )
    by_cost = [(", ".join(found.names(one)), one) for one in sorted(found.judged, key=lambda one: one.cost)]
    sections = [
        Section("Presets", paragraph(RULE) + settings_table(found, list(found.shown.items()))),
        Section("Quality against cost", f'<div class="charts">{chart(found)}<div>{measured}</div></div>'),
        Section("From the same noise", "".join(samples(found, PARTS[name], subject_of) for name in found.parts)),
        Section("All that were judged", settings_table(found, by_cost)),
    ]
    header = f'<header><h1>{escape(model)}, tuned</h1><p class="lead">{escape(lead)}</p><dl>{listed}</dl></header>'
    return document(f"Presets of {model}", header, sections)


def settings_table(found: Found, named: Sequence[tuple[str, Judged]]) -> str:
    """Settings with what came of them; by how much each is below the best comes with its 95% interval."""
    rows = []
    for name, one in named:
        less, half = gain(found.named["best"], one)
        below = None if one is found.named["best"] else f"{less:.3f}\u00a0±\u00a0{half:.3f}"
        right = [f"{mean(values):.2f}" for values in one.right.values()]
        rows.append(
            [
                name,
                one.cost,
                f"{one.mean:.3f}",
                below,
                *right,
                *map(as_read, params_of(one.setting, found.searched).values()),
            ]
        )
    columns = [*(RIGHT[name] for name in found.judged[0].right), *found.searched]
    return table(rows, ["", "passes", "quality", "below best", *(SHORT.get(column, column) for column in columns)])


def chart(found: Found) -> str:
    """Everything that was tried, and of what was judged the front, with the presets on it."""
    judged = Dots("judged", [(one.cost, one.mean, in_words(one.setting, found.searched)) for one in found.judged])
    searched = Dots("searched, on other items", found.tried, faint=True)
    marks = {name: (one.cost, one.mean) for name, one in found.shown.items()}
    return scatter(
        "Quality",
        [judged, searched],
        "forward passes an image",
        [(one.cost, one.mean) for one in front(found.judged)],
        marks,
    )


def samples(found: Found, part: Part, subject_of: Callable[[dict], Subject]) -> str:
    """The first items that were judged, with the default and with each preset."""
    items = chunk(part, DEPTHS[-1], found.settings["seed"])[:SAMPLES]
    drawn: dict[Sampling, list[tuple[Row, list[Image.Image]]]] = {}
    for one in found.shown.values():
        if one.setting not in drawn:
            subject = subject_of(params_of(one.setting, found.searched))
            drawn[one.setting] = answered(part, subject, items)
    shown = ""
    for item, (row, images) in enumerate(drawn[found.judged[0].setting]):
        answers = [(name, drawn[one.setting][item]) for name, one in found.shown.items()]
        labelled = [(image, "before") for image in images[:-1]]
        labelled += [(made[-1], f"{name} {'✓' if said.values['right'] else '✗'}") for name, (said, made) in answers]
        shown += f"<h3>{escape(row.asked)}</h3>{gallery(labelled, SHOWN)}"
    return shown
