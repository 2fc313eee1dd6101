"""Count what the world's judge reads correctly in disturbed images, by disturbance and strength."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version

import numpy as np

from bench.disturb import DISTURBANCES, Pixels
from fusion.common.provenance import commit
from fusion.common.statistics import Score, clustered_share, mean_score
from fusion.worlds.shapes import COLOURS, IMAGE_SIZES, SHAPES, WORLD_VERSION, Expectation, Scene, judge, render
from fusion.worlds.shapes.chance import pick
from fusion.worlds.shapes.scene import sample_scene
from fusion.worlds.shapes.words import all_of

COUNTS = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
SIZES = {f"{width}x{height}": (width, height) for width, height in IMAGE_SIZES}
SHOWN = 4  # scenes shown on the page, at every strength


@dataclass
class Tally:
    """The judge's results on the scenes at one strength of disturbance.

    right, named, there: by scene, the number of objects it named correctly, of all it named, and of those that exist.
    exact, passed: by scene, whether everything was right, and whether the false expectation passed. found: whether each
    object was named correctly, by shape and by colour. misread: counts of confusions, such as "red circle as blue
    circle".
    """

    right: list[int] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    there: list[int] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)
    passed: list[bool] = field(default_factory=list)
    found: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    misread: Counter = field(default_factory=Counter)

    def add(self, scene: Scene, false: Expectation, image: Pixels) -> None:
        """Let the judge read an image of the scene and record the result; `false` is a wrong expectation of it."""
        reading = judge.read(image)
        claims, hits = [seen for seen in reading.objects if seen.shape is not None], 0
        for thing in scene.things:
            near = [seen for seen in claims if _distance(seen.centre, thing.centre) <= judge.SAME_PLACE * scene.side]
            same = [seen for seen in near if seen.kind == thing.kind]
            self.misread.update(
                f"{' '.join(thing.kind[::-1])} as {' '.join(seen.kind[::-1])}"
                for seen in near
                if seen.kind != thing.kind
            )
            hits += bool(same)
            for attribute in thing.kind:
                self.found[attribute].append(bool(same))
        self.right.append(hits)
        self.named.append(len(claims))
        self.there.append(len(scene.things))
        self.exact.append(judge.check(image, all_of(scene)).ok)
        self.passed.append(judge.check(image, false).ok)

    @property
    def scores(self) -> dict[str, Score | None]:
        """The scores by name; precision is None where nothing was named."""
        return {
            "precision": clustered_share("precision", self.right, self.named),
            "recall": clustered_share("recall", self.right, self.there),
            "exact": mean_score("exact", self.exact),
            "false passed": mean_score("false passed", self.passed),
        }


def _distance(one: Sequence[float], two: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, two))


def near_miss(rng: np.random.Generator, scene: Scene) -> Expectation:
    """Return all that is true of the scene, except for one object's shape, colour or size."""
    told = all_of(scene)
    index, what = int(rng.random() * len(told.wanted)), pick(rng, ("shape", "colour", "size"))
    was, values = (
        getattr(told.wanted[index], what),
        {"shape": SHAPES, "colour": tuple(COLOURS), "size": ("small", "large")}[what],
    )
    changed = replace(told.wanted[index], **{what: pick(rng, [value for value in values if value != was])})
    return replace(told, wanted=(*told.wanted[:index], changed, *told.wanted[index + 1 :]))


@dataclass(frozen=True)
class Found:
    """The results of the measurement.

    settings: what they depend on. tallies: by disturbance and strength (0 undisturbed). shown: a few disturbed images,
    each with whether it was read exactly.
    """

    settings: dict
    tallies: dict[str, dict[float, Tally]]
    shown: dict[str, dict[float, list[tuple[Pixels, bool]]]]

    def figures(self) -> dict:
        """Return the results as JSON values for results.json."""
        rows = []
        for name, by_strength in self.tallies.items():
            for strength, tally in by_strength.items():
                scores = {score: asdict(value) if value else None for score, value in tally.scores.items()}
                by_kind = {attribute: sum(hits) / len(hits) for attribute, hits in tally.found.items()}
                kinds = {"recall of": by_kind, "misread": dict(tally.misread.most_common(5))}
                rows.append({"disturbance": name, "strength": strength} | scores | kinds)
        return self.settings | {"disturbances": {one.name: one.unit for one in DISTURBANCES}, "rows": rows}

    def as_text(self) -> str:
        """Format the results as a table for a terminal."""
        lines = [f"{'':<15}{'precision':>22}{'recall':>22}{'exact scenes':>22}{'false passed':>22}"]
        for name, by_strength in self.tallies.items():
            for strength, tally in by_strength.items():
                cells = (f"{v.value:.3f}  {v.low:.3f}-{v.high:.3f}" if v else "-" for v in tally.scores.values())
                lines.append(f"{name:<10}{strength:>5g}" + "".join(f"{cell:>22}" for cell in cells))
        return "\n".join(lines)


def measure(scenes: int, size: str, seed: int = 0, progress: Callable[[Iterable], Iterable] = iter) -> Found:
    """Disturb random scenes of one size in every way and strength, and tally what the judge reads.

    Scenes have one to four objects, equally often. progress: wraps the iterable of scene numbers. Raises ValueError for
    less than one scene.
    """
    if scenes < 1:
        raise ValueError(f"scenes={scenes}: at least 1")
    versions = {name: version(name) for name in ("numpy", "pillow")}
    settings = {
        "scenes": scenes,
        "size": size,
        "seed": seed,
        "world": WORLD_VERSION,
        "commit": commit(),
        "versions": versions,
    }
    tallies = {one.name: {0.0: Tally()} | {strength: Tally() for strength in one.strengths} for one in DISTURBANCES}
    shown = {name: {strength: [] for strength in by_strength} for name, by_strength in tallies.items()}
    plain = Tally()
    for number in progress(range(scenes)):
        rng = np.random.default_rng([seed, number])
        scene = sample_scene(rng, COUNTS, {SIZES[size]: 1.0})
        false, image = near_miss(rng, scene), render(scene)
        plain.add(scene, false, image)
        for one in DISTURBANCES:
            for strength in one.strengths:
                disturbed = one.done(image, strength, np.random.default_rng([seed, number, DISTURBANCES.index(one)]))
                tallies[one.name][strength].add(scene, false, disturbed)
                if number < SHOWN:
                    shown[one.name][strength].append((disturbed, tallies[one.name][strength].exact[-1]))
            if number < SHOWN:
                shown[one.name][0.0].append((image, plain.exact[-1]))
    for by_strength in tallies.values():
        by_strength[0.0] = plain
    return Found(settings, tallies, shown)
