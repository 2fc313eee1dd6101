"""Put faults into a copy of the source one at a time, to see whether tests notice them: `python -m bench.mutations`

Each mutation replaces snippets of one source file, each of which must occur there exactly once. The tests that have to
notice run against the mutated copy; before that, all of them must pass against the unmodified copy.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import measure

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 900
"""Seconds for the tests of one mutation; what takes longer has been noticed."""

# All paths that this program uses.
SOURCES = {
    "objective": "fusion/unified/objective.py",
    "loop": "fusion/training/trainer.py",
    "optim": "fusion/training/optim.py",
    "checkpoint": "fusion/training/checkpoint.py",
    "sequence": "fusion/sequence/packed.py",
    "sizes": "fusion/sequence/sizes.py",
    "tokens": "fusion/sequence/tokens.py",
    "backbone": "fusion/unified/backbone.py",
    "step": "fusion/unified/step.py",
    "prefix": "fusion/generation/prefix.py",
    "drawing": "fusion/generation/drawing.py",
    "batches": "fusion/data/packing.py",
    "judge": "fusion/worlds/shapes/judge.py",
}
TESTS = {
    "model": "tests/unified/test_model.py",
    "laws": "tests/generation/test_laws_sampling.py",
    "steps": "tests/training/test_train_steps.py",
    "optim": "tests/training/test_optim.py",
    "checkpoint": "tests/training/test_checkpoint.py",
    "sequence": "tests/sequence/test_packed.py",
    "sizes": "tests/sequence/test_sizes.py",
    "tokens": "tests/sequence/test_tokens.py",
    "backbone": "tests/unified/test_backbone.py",
    "golden": "tests/unified/test_golden.py",
    "step": "tests/unified/test_step.py",
    "packing": "tests/unified/test_laws_packing.py",
    "batches": "tests/data/test_packing.py",
    "judge": "tests/worlds/test_shapes_judge.py",
}


@dataclass(frozen=True)
class Mutation:
    """A fault: `new` replaces `old` in the file SOURCES[source], which the tests in TESTS[tests] have to notice.

    more: further pairs of (old, new) that belong to the same fault.
    """

    name: str
    source: str
    tests: str
    old: str
    new: str
    more: tuple[tuple[str, str], ...] = ()


MUTATIONS = (
    Mutation(
        "clean images get random times",
        "objective",
        "laws",
        "torch.where(packed.noised_image, times.to(packed.patches.device), 0.0)",
        "times.to(packed.patches.device)",
    ),
    Mutation(
        "the flow loss is divided by the text count",
        "objective",
        "model",
        "self.flow / max(flow_count, 1)",
        "self.flow / max(text_count, 1)",
    ),
    Mutation(
        "the shift of training times is ignored",
        "objective",
        "model",
        "return shift(drawn, self.shift)",
        "return drawn",
    ),
    Mutation(
        "the same noise at every step",
        "loop",
        "steps",
        "{self.settings.seed}/{self.step}/{place}",
        "{self.settings.seed}/{place}",
    ),
    Mutation(
        "the same noise in every batch of a step",
        "loop",
        "steps",
        "{self.settings.seed}/{self.step}/{place}",
        "{self.settings.seed}/{self.step}",
    ),
    Mutation(
        "gradients are not clipped", "loop", "steps", "self.settings.optim.clip, foreach", 'float("inf"), foreach'
    ),
    Mutation(
        "the learning rate is a step ahead",
        "loop",
        "steps",
        "self.settings.optim, self.step, self",
        "self.settings.optim, self.step + 1, self",
    ),
    Mutation(
        "the learning rate is used a step late",
        "loop",
        "steps",
        "self.optimizers.set_rate(self.factor)\n",
        "pass\n",
        more=(
            (
                "self.optimizers.zero_grad()\n        self.step",
                "self.optimizers.set_rate(self.factor)\n        self.optimizers.zero_grad()\n        self.step",
            ),
        ),
    ),
    Mutation(
        "the average is a step behind", "loop", "steps", "self.ema.update(self.step)", "self.ema.update(self.step - 1)"
    ),
    Mutation(
        "the average is a step ahead", "loop", "steps", "self.ema.update(self.step)", "self.ema.update(self.step + 1)"
    ),
    Mutation("tied embeddings decay", "optim", "optim", "id(p) in linear - embeddings", "id(p) in linear"),
    Mutation(
        "the old checkpoint goes before the new one is sealed",
        "checkpoint",
        "checkpoint",
        "    seal(aside)\n",
        "",
        more=(("    return final\n", "    seal(final)\n    return final\n"),),
    ),
    Mutation(
        "the folder is not synced after the rename",
        "checkpoint",
        "checkpoint",
        "    _sync(folder)\n    for old",
        "    for old",
    ),
    # The first edit alone changes nothing: the end of an image follows patches, and patches refuse labels.
    Mutation(
        "the end of an image is learned",
        "sequence",
        "sequence",
        "self.text((self.control.image_end,))",
        "self.text((self.control.image_end,), True)",
        more=(("if self.tables and self.tables[-1][Column.IMAGE_INDEX, -1] < 0:", "if self.tables:"),),
    ),
    Mutation(
        "a patch row gets a label",
        "sequence",
        "sequence",
        "if self.tables and self.tables[-1][Column.IMAGE_INDEX, -1] < 0:",
        "if self.tables:",
    ),
    Mutation(
        "the smallest side is rounded down",
        "sizes",
        "sizes",
        "least = -(-min_side // stride)",
        "least = min_side // stride",
    ),
    Mutation(
        "text behind a control token continues a text",
        "tokens",
        "tokens",
        "ids[-1] not in self.special if ids else after_text",
        "bool(ids) or after_text",
    ),
    Mutation(
        "text behind a control token continues what stood before it",
        "tokens",
        "tokens",
        "ids[-1] not in self.special if ids else after_text",
        "after_text",
    ),
    Mutation(
        "rows and columns of axial rotary are exchanged",
        "backbone",
        "backbone",
        "_, rows, columns = self.context.axes",
        "_, columns, rows = self.context.axes",
    ),
    Mutation(
        "rows and columns are exchanged in the bundled model",
        "backbone",
        "golden",
        "_, rows, columns = self.context.axes",
        "_, columns, rows = self.context.axes",
    ),
    Mutation(
        "gates of attention and feed-forward are exchanged",
        "backbone",
        "backbone",
        "(vectors[0:2], vectors[2:3], vectors[3:5], vectors[5:6])",
        "(vectors[0:2], vectors[5:6], vectors[3:5], vectors[2:3])",
    ),
    Mutation(
        "the flow head is shown no edited image",
        "step",
        "step",
        "images.grid, images.reference)",
        "images.grid, None if images.reference is None else torch.zeros_like(images.reference))",
    ),
    Mutation(
        "the edited image stands beside clean patches",
        "step",
        "step",
        "masked_scatter(rows.noised_patch[:, None]",
        "masked_scatter(~rows.noised_patch[:, None]",
    ),
    Mutation(
        "text is modulated as the first image is",
        "step",
        "step",
        "image_index.flatten() + 1)",
        "image_index.flatten().clamp(min=0) + 1)",
    ),
    Mutation("all images are told the first one's time", "step", "step", "time[image_index]", "time[image_index * 0]"),
    Mutation(
        "all images are drawn at the first one's time",
        "step",
        "step",
        "time, rows.image_of_patch[noised])",
        "time, 0 * rows.image_of_patch[noised])",
    ),
    Mutation("clean images are read as noise", "prefix", "laws", "torch.zeros(1, device", "torch.ones(1, device"),
    Mutation(
        "a document that has nothing to read forgets its last state",
        "prefix",
        "laws",
        "torch.where((ends > 0)[:, None], last, self.last)",
        "last",
    ),
    Mutation(
        "the full branch alone is shown another's edited image",
        "drawing",
        "laws",
        "torch.cat(self.references[:count])",
        "torch.cat(self.references[-count:])",
    ),
    Mutation(
        "the full branch alone has another's places",
        "drawing",
        "laws",
        "column[..., :count, :]",
        "column[..., -count:, :]",
    ),
    Mutation(
        "the full branch alone has another's mask",
        "drawing",
        "laws",
        "mask.items()} if isinstance(mask, dict) else mask[:count]",
        "mask.items()} if isinstance(mask, dict) else mask[-count:]",
    ),
    Mutation(
        "noised copies are not counted when pages are cut",
        "batches",
        "batches",
        "(1 + noised_copies * piece.target)",
        "(1 + piece.target)",
    ),
    Mutation(
        "the same draw for all validation documents",
        "batches",
        "batches",
        'f"{seed}/fixed/{number}"',
        'f"{seed}/fixed"',
    ),
    Mutation("an edited object may change its size", "judge", "judge", " and resized <= SAME_SIZE * side", ""),
    Mutation(
        "an object that moves to a place may change its size",
        "judge",
        "judge",
        "place and abs(seen.box[2] - seen.box[0] - (target.box[2] - target.box[0])) <= SAME_SIZE * new.side",
        "place",
    ),
    Mutation("sizes are the same within more", "judge", "judge", "SAME_SIZE = 0.12", "SAME_SIZE = 0.15"),
    Mutation("sizes are the same within less", "judge", "judge", "SAME_SIZE = 0.12", "SAME_SIZE = 0.08"),
    Mutation("places are the same within more", "judge", "judge", "SAME_PLACE = 0.07", "SAME_PLACE = 0.12"),
    Mutation("places are the same within less", "judge", "judge", "SAME_PLACE = 0.07", "SAME_PLACE = 0.05"),
    Mutation("pixels are the same within more", "judge", "judge", "SAME_PIXEL = 2, 8", "SAME_PIXEL = 2, 16"),
    Mutation("pixels are the same within less", "judge", "judge", "SAME_PIXEL = 2, 8", "SAME_PIXEL = 2, 7"),
    Mutation(
        "diagonal neighbours are related",
        "judge",
        "judge",
        "along >= STEP * side and abs(across) < STEP * side",
        "along >= STEP * side",
    ),
    Mutation("related objects may stand closer", "judge", "judge", "STEP = 0.25", "STEP = 0.2"),
    Mutation("related objects must stand further apart", "judge", "judge", "STEP = 0.25", "STEP = 0.3"),
    Mutation("the middle is larger", "judge", "judge", "<= 1 / 6 + 0.02", "<= 1 / 5 + 0.02"),
    Mutation("the middle is smaller", "judge", "judge", "<= 1 / 6 + 0.02", "<= 1 / 7"),
)


def mutated(mutation: Mutation, root: Path) -> str:
    """Return the text of the source file with the fault in it.

    Raises ValueError if a snippet does not occur exactly once.
    """
    path = root / SOURCES[mutation.source]
    text = path.read_text(encoding="utf-8")
    for old, new in ((mutation.old, mutation.new), *mutation.more):
        if (count := text.count(old)) != 1:
            where = SOURCES[mutation.source]
            raise ValueError(f"{mutation.name}: {where} holds this {count} times instead of once: {old!r}")
        text = text.replace(old, new)
    return text


def copy_tree(to: Path) -> None:
    """Copy all files that git tracks or would track, in their current state, to a folder."""
    command = "git ls-files -z -co --exclude-standard".split()
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, asked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def first_failure(root: Path, tests: Iterable[str]) -> str | None:
    """Run tests (keys of TESTS) in a tree and return the name of the first that fails, None if all pass.

    Raises RuntimeError if they cannot be run.
    """
    # Bytecode is matched to its source by mtime in seconds and size, which a mutation may leave unchanged.
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        *"-m pytest -q -x -rfE -p no:cacheprovider -p no:xdist".split(),
        *(TESTS[key] for key in tests),
    ]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT} s"
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return None
    if done.returncode == 1 and failed:
        return failed[1]
    said = done.stdout[-3000:] + done.stderr[-3000:]
    raise RuntimeError(f"the tests could not be run (status {done.returncode}):\n{said}")


def try_all(mutations: Iterable[Mutation], root: Path) -> dict[str, str | None]:
    """Test each mutation; return, by name, the first test that failed for it, None if it survived.

    `root` is left as it was.
    """
    found = {}
    for mutation in mutations:
        path = root / SOURCES[mutation.source]
        text, began = path.read_text(encoding="utf-8"), time.monotonic()
        path.write_text(mutated(mutation, root), encoding="utf-8")
        try:
            found[mutation.name] = first_failure(root, [mutation.tests])
        finally:
            path.write_text(text, encoding="utf-8")
        fate = f"killed by {found[mutation.name]}" if found[mutation.name] else "SURVIVED"
        print(f"{SOURCES[mutation.source]}: {mutation.name}: {fate} ({time.monotonic() - began:.0f} s)", flush=True)
    return found


def record(mutations: Iterable[Mutation], found: Mapping[str, str | None]) -> dict:
    """Return what is recorded: how many mutations were killed, which survived, and by which test each was killed."""
    survived = [name for name, test in found.items() if test is None]
    rows = [{"mutation": one.name, "file": SOURCES[one.source], "killed by": found[one.name]} for one in mutations]
    return {"tried": len(rows), "killed": len(rows) - len(survived), "survived": survived, "mutations": rows}


def main(arguments: list[str]) -> int:
    """Test the mutations, print and write the result; return 1 if one survived or the tests fail without any."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--sources", nargs="*", choices=SOURCES, default=list(SOURCES), help="files to mutate")
    options = parser.parse_args(arguments)
    chosen = [mutation for mutation in MUTATIONS if mutation.source in options.sources]
    for mutation in chosen:
        mutated(mutation, ROOT)
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        root = Path(place)
        copy_tree(root)
        if failed := first_failure(root, dict.fromkeys(mutation.tests for mutation in chosen)):
            print(f"fails without any mutation: {failed}", file=sys.stderr)
            return 1
        found = try_all(chosen, root)
    figures = record(chosen, found)
    print(f"{figures['killed']} of {figures['tried']} killed")
    print(measure.write("mutations", figures))
    return bool(figures["survived"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
