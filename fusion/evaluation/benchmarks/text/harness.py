"""lm-evaluation-harness on a language model that is already loaded.

The harness is github.com/EleutherAI/lm-evaluation-harness, PyPI lm_eval.
"""

import logging
import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fusion.evaluation.benchmarks.text.before_after import KINDS, Figure, stderr_of, value_of

RESAMPLED = 1000  # draws of the bootstrap, for metrics of which lm_eval knows no closed form
logging.getLogger("lm_eval").setLevel(
    logging.ERROR
)  # it warns about a model that is passed as an object, which is intended here


def speaker(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int, generation: GenerationConfig | None = None
) -> HFLM:
    """Wrap a loaded model for lm_eval.

    A FusionModel's forward on ids is its LLM's, over the LLM's own vocabulary. batch: rows at once; logits are equal
    bit for bit only at equal shapes, so that models to be compared need the same. generation: replaces the model's own
    generation config.
    """
    if generation is not None:
        model.generation_config = generation
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)


def tasks_in(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """Return a manager that finds the tasks, groups and tags of these names; ValueError for an unknown one.

    include_path: a folder with tasks of your own; lm_eval's are listed only where it does not have all names.
    """
    if include_path:
        manager = TaskManager(
            include_path=str(include_path), include_defaults=False
        )  # lm_eval's thousands take seconds to list
        if all(name in manager.task_index for name in names):
            return manager
    manager = TaskManager(include_path=include_path and str(include_path))
    if unknown := [name for name in names if name not in manager.task_index]:
        where = (
            f"in {include_path} or lm_eval"
            if include_path
            else "in lm_eval; tasks of your own are found with --include-path FOLDER"
        )
        raise ValueError(f"{', '.join(unknown)}: no such task {where} (`lm_eval ls tasks` lists them)")
    return manager


def ask(
    lm: HFLM, manager: TaskManager, name: str, limit: int | None, shots: int | None, chat: bool
) -> tuple[list[Figure], dict]:
    """Evaluate a task, or a group and its tasks; return all figures, and each task's version and number of shots.

    limit: documents of each task, None for all. shots: None for the task's own number. chat: whether to apply the chat
    template. Raises ValueError where the task's data cannot be loaded.
    """
    try:
        loaded = manager.load([name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: the task cannot be loaded ({' '.join(str(error).split())[:200]}): is its data here, or the "
            "network?"
        ) from None
    top = [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())
    found = simple_evaluate(
        lm,
        tasks=top,
        num_fewshot=shots,
        limit=limit,
        apply_chat_template=chat,
        task_manager=manager,
        bootstrap_iters=RESAMPLED,
    )
    figures = [
        figure
        for task, values in found["results"].items()
        for figure in figures_of(task, values, found, loaded["tasks"].get(task))
    ]
    asked = {
        task: {"version": found["versions"].get(task), "shots": found["n-shot"].get(task)} for task in loaded["tasks"]
    }
    return figures, asked


def figures_of(name: str, values: dict, found: dict, task) -> list[Figure]:
    """Convert one row of lm_eval's results to figures.

    values: `metric,filter` has the value, and `metric_stderr,filter` its error. found: all results. task: None for a
    group, which has no items.
    """
    figures = []
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        kind, items = (
            (None, ()) if task is None else items_of(metric, chosen, float(value), found["samples"][name], task)
        )
        if not isinstance(error, Real) or not math.isfinite(error):
            error = stderr_of(value_of(kind, items)[1]) if kind else None
        error, higher = None if error is None else float(error), found["higher_is_better"].get(name, {}).get(metric)
        figures.append(Figure(name, metric, chosen, float(value), error, values["sample_len"], higher, kind, items))
    return figures


def items_of(metric: str, chosen: str, value: float, samples: Sequence[dict], task) -> tuple[str | None, tuple]:
    """Return how a value is aggregated from the documents' parts, and these parts.

    Returns (None, ()) where it is not, as for metrics of all answers at once (BLEU).
    """
    kind = getattr(task.aggregation().get(metric), "__name__", "")
    if kind not in KINDS:
        return None, ()
    ordered = sorted(
        (one for one in samples if one["filter"] == chosen and metric in one), key=lambda one: one["doc_id"]
    )
    try:
        items = np.asarray([one[metric] for one in ordered], dtype=float)
        agrees = np.isclose(value_of(kind, items)[0], value, rtol=1e-9, atol=0)
    except (TypeError, ValueError):
        return None, ()
    return (
        (kind, tuple(tuple(row) if isinstance(row, list) else row for row in items.tolist())) if agrees else (None, ())
    )
