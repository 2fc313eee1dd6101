"""HTML of evaluation and run pages beyond fusion/common/html.py: scores with intervals, edits as triptychs."""

from collections.abc import Iterable, Sequence
from html import escape

from PIL import ImageChops

from fusion.common.charts import interval
from fusion.common.html import PILImage, figure
from fusion.common.statistics import Score


def score_table(scores: Iterable[Score]) -> str:
    """Scores as rows: the value, its interval as a small bar, of how many, and whether the target is met."""
    rows = ""
    for score in scores:
        verdict = "" if score.target is None else _verdict(score)
        count = "" if score.count is None else f"{score.count:,}"
        rows += (
            f'<tr><th scope="row">{escape(score.name)}</th><td class="number value">{score.value:.2f}</td>'
            f"<td>{interval(score.value, score.low, score.high, score.target)}</td>"
            f'<td class="number quiet">{score.low:.2f}–{score.high:.2f}</td><td class="number '
            f'quiet">{count}</td><td>{verdict}</td></tr>'
        )
    head = (
        '<th>score</th><th></th><th>0 <span class="end">1</span></th>'
        '<th class="number">95% interval</th><th class="number">of</th><th>target</th>'
    )
    return f'<div class="wide"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _verdict(score: Score) -> str:
    met = score.value >= score.target  # type: ignore[operator]  # asked where there is a target
    return f'<span class="{"met" if met else "missed"}">{"✓" if met else "✗"} {score.target:.2f}</span>'


def as_text(scores: Sequence[Score], digits: int = 2) -> str:
    """A line for each score, for a terminal."""
    width = max(len(score.name) for score in scores)
    return "\n".join(f"{score.name:<{width}}  {score.value:.{digits}f}{_range(score, digits)}" for score in scores)


def _range(score: Score, digits: int) -> str:
    return "" if score.count is None else f"   {score.low:.{digits}f}-{score.high:.{digits}f}   of {score.count}"


def amplified(before: PILImage, after: PILImage, gain: int = 4) -> PILImage:
    """How much each pixel changed, times `gain`: black where nothing did. Both images have one size."""
    return ImageChops.difference(before.convert("RGB"), after.convert("RGB")).point(
        lambda value: min(255, value * gain)
    )


def triptych(before: PILImage, after: PILImage, difference: PILImage | None = None, caption: str = "") -> str:
    """An edit: the image before and after it, and the difference between them (default: `amplified`)."""
    panels = {"before": before, "after": after, "difference × 4": difference or amplified(before, after)}
    figures = "".join(figure(image, name) for name, image in panels.items())
    return f'<div class="triptych"><p>{escape(caption)}</p><div>{figures}</div></div>'
