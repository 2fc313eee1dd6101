"""Shared by programs that train a run folder: one-line errors, run.json, and no overwriting of another run."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from fusion.common.atomic import save
from fusion.common.config import load, save_config
from fusion.common.provenance import commit
from fusion.training.checkpoint import steps
from fusion.training.processes import leave, this_rank
from fusion.training.trainer import NotFinite, Summary


def main(cls: type, train: Callable[[Any], Summary], unit: str, argv: list[str]) -> int:
    """Load the config of a program from its command line and train: 0 when the run ended or was asked to stop, 1 with
    one line on stderr when it could not go on. unit: what is counted."""
    config = load(cls, argv)
    transformers.utils.logging.disable_progress_bar()
    try:
        summary = train(config)
    except (ValueError, NotFinite) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        leave()
    if this_rank().is_main_process:
        if summary.interrupted:
            print(
                f"stopped by {summary.interrupted} at step {summary.steps}, {config.run}/checkpoints has it: "
                "resume=true goes on"
            )
        else:
            print(
                f"{config.run}/report.html, {config.run}/model  ({summary.seen:,} {unit} in {summary.seconds / 60:.1f} "
                "minutes)"
            )
    return 0


def refuse_another(run: Path, resume: bool) -> None:
    """ValueError where a folder holds a run that nobody wants to go on with."""
    if not resume and steps(run / "checkpoints"):
        raise ValueError(f"{run} holds a run already: resume=true goes on with it, run=ANOTHER_FOLDER begins a new one")


def describe(run: Path, config: Any, program: str, title: str | None = None) -> None:
    """Write config.yaml and run.json: what the report says about how this run came about. title: the folder's name
    unless given."""
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.yaml")
    facts = {
        "title": title or run.name,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join([f"python -m {program}", *sys.argv[1:]]),
        "commit": commit(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }
    save(json.dumps(facts, indent=1), run / "run.json")
