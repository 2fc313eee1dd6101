"""Text benchmarks of lm-evaluation-harness on a unified model and on its LLM, to measure forgetting.

    fusion benchmark text MODEL --tasks hellaswag,arc_easy --against LLM -o out/text
    fusion benchmark text MODEL --tasks mine --include-path FOLDER -o out/text
                                                       # FOLDER/mine.yaml, as lm_eval has tasks

Needs lm_eval (`pip install lm_eval`). The LLM is evaluated first, then the model, on the same items in batches of the
same shapes. An interrupted run resumes with the next task. `data_files` of a task of your own are paths relative to the
working directory.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fusion.common.atomic import save
from fusion.common.llm_files import llm_folder
from fusion.common.provenance import commit
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.text.before_after import Figure, Pair, as_text, from_json, paired, render, to_json
from fusion.evaluation.run import begin
from fusion.generation import api
from fusion.generation.api import place
from fusion.sequence.processor import FusionProcessor
from fusion.unified.loading import DTYPES, dtype_of

RESULTS, PAGE = "results.json", "report.html"
BEFORE, AFTER = "before", "after"
PROBE = "The quick brown fox: 12 + 30 = 42.\n\n\tNaïve — «漢字» <s> Question:"


@dataclass(frozen=True)
class Settings:
    """All that the result depends on, besides the weights.

    against: the LLM, None without one. limit: documents of each task, None for all. shots: None for the task's own
    number. chat: whether to apply the chat template. batch: rows at once.
    """

    model: str
    against: str | None
    tasks: list[str]
    include_path: str | None
    limit: int | None
    shots: int | None
    chat: bool
    batch: int
    dtype: str


@dataclass(frozen=True)
class Side:
    """One of the two models that are compared: its name, how to load it, and its tokenizer."""

    name: str
    load: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase


# ---- the two sides ----


def sides_of(settings: Settings, device: str | None) -> list[Side]:
    """Return the LLM, if there is one, then the model, each to be loaded when evaluated: both need not fit at once.

    Raises ValueError, in one line, for what is neither, and for a chat template that lm_eval cannot write.
    """
    sides = [
        Side(
            AFTER,
            lambda: api.load(settings.model, dtype=settings.dtype, device=device).model,
            model_tokenizer(settings.model),
        )
    ]
    if settings.against is not None:
        sides.insert(
            0,
            Side(
                BEFORE,
                lambda: load_llm(settings.against, dtype_of(settings.dtype), device),
                load_tokenizer(settings.against),
            ),
        )
    for side in sides:
        if settings.chat and not side.tokenizer.chat_template:
            who = "LLM" if side.name == BEFORE else "model"
            raise ValueError(
                f"--apply-chat-template: the {who}'s tokenizer has no chat template (that of a model whose LLM had "
                "none is made of control tokens, "
                "which lm_eval cannot write): leave it out"
            )
    return sides


def model_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a unified model's folder, without its weights; ValueError where there is none."""
    folder = place(model)
    try:
        return FusionProcessor.from_pretrained(folder).tokenizer
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: the model is incomplete ({' '.join(str(error).split())[:150]}): copy or save it again"
        ) from None


def load_tokenizer(llm: str) -> PreTrainedTokenizerBase:
    """Load the LLM's own tokenizer; ValueError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(llm_folder(llm))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{llm}: no tokenizer of an LLM there ({' '.join(str(error).split())[:150]}): give the LLM's folder "
            "or hub id"
        ) from None


def load_llm(llm: str, dtype: torch.dtype, device: str | None) -> PreTrainedModel:
    """Load the LLM for evaluation; ValueError where there is none."""
    try:
        return AutoModelForCausalLM.from_pretrained(llm_folder(llm), dtype=dtype).to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{llm}: no language model there ({' '.join(str(error).split())[:150]}): give the LLM's folder or hub id"
        ) from None


def generation_of(llm: str | None) -> GenerationConfig | None:
    """Load the LLM's generation config, None where there is none.

    A model made from the LLM has to share its end tokens and penalties for a fair comparison.
    """
    try:
        return None if llm is None else GenerationConfig.from_pretrained(llm)
    except OSError:
        return None


def same_words(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers encode a text of many scripts alike, with the tokens that they prepend."""
    return one.encode(PROBE) == other.encode(PROBE) and one.encode("") == other.encode("")


# ---- asking ----


def ask(side: Side, settings: Settings, manager: Any, out: Path) -> tuple[list[Figure], dict]:
    """Evaluate one side on all tasks; return its figures, and each task's version and number of shots.

    Finished tasks are loaded from `out`. manager: lm_eval's, of the tasks.
    """
    from fusion.evaluation.benchmarks.text import harness

    lm, figures, asked = None, [], {}
    for name in settings.tasks:
        file = out / "asked" / side.name / f"{name.replace('/', '_')}.json"
        if not file.is_file():
            lm = lm or harness.speaker(side.load(), side.tokenizer, settings.batch, generation_of(settings.against))
            found, told = harness.ask(lm, manager, name, settings.limit, settings.shots, settings.chat)
            file.parent.mkdir(parents=True, exist_ok=True)
            save((json.dumps({"figures": to_json(found), "asked": told}) + "\n").encode(), file)
        kept = json.loads(file.read_text(encoding="utf-8"))
        figures += from_json(kept["figures"])
        asked |= kept["asked"]
    return figures, asked


def evaluate(settings: Settings, out: Path, device: str | None = None) -> list[Pair]:
    """Run the whole evaluation and write results.json and the page to `out`; ValueError in one line."""
    check(settings)
    from fusion.evaluation.benchmarks.text import harness

    manager = harness.tasks_in(settings.tasks, settings.include_path and Path(settings.include_path))
    sides = sides_of(settings, device)
    begin(settings, out)
    found = {side.name: ask(side, settings, manager, out) for side in sides}
    pairs = paired(found.get(BEFORE, ([], {}))[0], found[AFTER][0])
    notes = (
        []
        if same_words(sides[0].tokenizer, sides[-1].tokenizer)
        else ["The two read texts in different tokens: is this the model's LLM?"]
    )
    facts = {
        "tasks": found[AFTER][1],
        "commit": commit(),
        "device": device or "cpu",
        "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval")},
    }
    told = asdict(settings) | facts | {"notes": notes, "figures": [one.told() for one in pairs]}
    save((json.dumps(told, indent=1) + "\n").encode(), out / RESULTS)
    shown = {name: value for name, value in asdict(settings).items() if value is not None} | facts
    save(render(pairs, settings.model, settings.against, shown, notes).encode(), out / PAGE)
    return pairs


def check(settings: Settings) -> None:
    """Raise ValueError, in one line, for settings that cannot be evaluated, before anything is loaded."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "text benchmarks are asked by lm-evaluation-harness, which is not installed: pip install lm_eval"
        )
    if not settings.tasks:
        raise ValueError("--tasks: name at least one")
    if settings.include_path and not Path(settings.include_path).is_dir():
        raise ValueError(f"--include-path {settings.include_path}: not a folder")
    for option, value, least in (
        ("--limit", settings.limit, 1),
        ("--num-fewshot", settings.shots, 0),
        ("--batch-size", settings.batch, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{option} {value}: give {least} or more")


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; options that lm_eval has, too, have the same names."""
    parser = argparse.ArgumentParser(prog="fusion benchmark text", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a unified model, or a bundled one's name")
    parser.add_argument(
        "--tasks", required=True, help="names of lm_eval's tasks, groups and tags, with commas between them"
    )
    parser.add_argument(
        "--against", metavar="LLM", help="the LLM that the model was made of, folder or hub id: it is asked the same"
    )
    parser.add_argument("--include-path", help="a folder with tasks of your own (YAML), beside lm_eval's")
    parser.add_argument("--limit", type=int, help="only the first N documents of each task")
    parser.add_argument("--num-fewshot", type=int, help="examples in each prompt, instead of the task's own number")
    parser.add_argument(
        "--apply-chat-template", action="store_true", help="each prompt as a user's turn in the LLM's own chat template"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="rows at once")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="precision of both")
    parser.add_argument("--device", help="cuda, cpu, ...")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder that is written, or gone on with")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> str:
    """Run the evaluation for parsed options, and return the table."""
    tasks = list(dict.fromkeys(name for name in options.tasks.split(",") if name))
    settings = Settings(
        options.model,
        options.against,
        tasks,
        options.include_path,
        options.limit,
        options.num_fewshot,
        options.apply_chat_template,
        options.batch_size,
        options.dtype,
    )
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return as_text(evaluate(settings, options.out, device))


def main(argv: Sequence[str]) -> int:
    """Run the program: print the table and the folder and return 0, or one line on stderr and return 1.

    See fusion.evaluation.benchmarks.common.program.
    """
    return program.run(measure, parsed(argv))
