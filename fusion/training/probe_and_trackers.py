"""What is followed beside the losses: the forgetting probe (perplexity of text), and trackers of a live run."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fusion.common.llm_files import llm_folder
from fusion.training.perplexity import encode, perplexity, prose

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""Trackers of accelerate, and the package that each needs."""


@dataclass
class Probe:
    """The forgetting probe: at each validation, the perplexity of plain text is taken beside that of the LLM as it
    came.

    texts: a file of plain texts, one to a line; null for the built-in world's prose. count: how many of them, 0 for no
    probe. context: tokens at which a text is cut.
    """

    texts: str | None = None
    count: int = 32
    context: int = 256

    def __post_init__(self):
        if self.count < 0 or self.context < 2:
            raise ValueError(f"probe: count={self.count} is at least 0, and context={self.context} at least 2")

    def read(self) -> list[str]:
        """The texts. ValueError where the file has none."""
        if self.texts is None:
            return prose(self.count)
        try:
            lines = Path(self.texts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"probe.texts: {self.texts} cannot be read ({said}); give a file of texts, one to a line"
            ) from None
        if not (texts := [line for line in lines if line.strip()][: self.count]):
            raise ValueError(f"probe.texts: {self.texts} has no text; write one to a line")
        return texts


class Forgetting:
    """The perplexities of the probe's texts. llm: folder or hub id of the LLM before it learned anything, which is read
    once."""

    def __init__(self, llm: str, probe: Probe):
        self.ids = encode(AutoTokenizer.from_pretrained(llm_folder(llm)), probe.read(), probe.context)
        self.before = perplexity(
            AutoModelForCausalLM.from_pretrained(llm_folder(llm), dtype=torch.float32).eval(), self.ids
        )

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """`perplexity/now`, `perplexity/of_the_llm`, and `forgetting`: by which share the first is above the second."""
        now = perplexity(model, self.ids)
        return {"perplexity/now": now, "perplexity/of_the_llm": self.before, "forgetting": now / self.before - 1}


def trackers(wanted: list[str] | None) -> list[str]:
    """The trackers that are used: those wanted, or TensorBoard where it is installed. ValueError for others, and for
    those without their package."""
    if wanted is None:
        return ["tensorboard"] if find_spec("tensorboard") else []
    for name in wanted:
        if name not in PACKAGES:
            raise ValueError(f"trackers: {name!r} is not known; choose from {', '.join(PACKAGES)}, or [] for none")
        if find_spec(PACKAGES[name]) is None:
            raise ValueError(f"trackers: {name} is not installed; pip install {PACKAGES[name]}, or leave it out")
    return wanted


class Tracked:
    """accelerate's trackers of a run: what metrics.jsonl has, and its sheets of samples."""

    def __init__(self, accelerator: Accelerator, run: Path, step: int):
        self.accelerator = accelerator
        # A resumed run tells the steps after its checkpoint again.
        accelerator.init_trackers(run.name, init_kwargs={"tensorboard": {"purge_step": step + 1}} if step else {})

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step."""
        self.accelerator.log(dict(values), step=step)

    def images(self, step: int, folder: Path) -> None:
        """The sheets of a step, by their file names."""
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))[None]
            for tracker in self.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({f"samples/{path.stem}": pixels}, step=step, **form)

    def close(self) -> None:
        """Write what is not written yet."""
        for (
            tracker
        ) in self.accelerator.trackers:  # and not accelerate's own end of training, after which ranks are strangers
            tracker.finish()
