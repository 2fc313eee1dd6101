"""The demo as a whole at a tiny size: interrupted, resumed, finished, repeated, restarted; and its curriculum."""

import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

import fusion
import fusion.recipes.codec
from fusion.common.config import load_config
from fusion.data.curriculum import Curriculum, Stage, Texts
from fusion.data.formats import Mixture
from fusion.recipes import demo
from fusion.training.metrics import read
from fusion.training.samples import Sampler

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
TINY = [
    "documents=120",
    "minutes=3",
    "processes=1",
    "llm.data.texts=120",
    "llm.width=64",
    "llm.layers=2",
    "llm.heads=2",
    "llm.tokens=4096",
    "llm.context=64",
    "llm.vocab_size=400",
    "llm.precision=fp32",
    "packing.length=384",
    "packing.rows=2",
    "packing.lookahead=16",
    "training.workers=0",
    "training.log_every=1",
    "training.precision=fp32",
    "training.compile=false",
    "training.sample_every=4",
    "training.validate_every=100",
    "held_out=2",
    "samples.held_out=1",
    "samples.steps=1",
    "samples.max_new_tokens=4",
    "scoring.count=12",
    "scoring.steps=1",
    "scoring.texts=2",
    "scoring.split=development",
    "codec.network.channels=[8,8]",
    "codec.images=32",
]


def test_the_demo_from_nothing_to_a_report_with_an_interruption(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    argv = [str(CONFIG), f"out={out}", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", lambda self, folder: os.kill(os.getpid(), signal.SIGINT))
        assert demo.main(argv) == 130
    assert "stopped by SIGINT at step 5; the same command goes on" in capsys.readouterr().out
    assert not (out / "report.html").exists() and (out / "checkpoints" / "step_5").is_dir()

    assert demo.main(argv) == 0
    said = capsys.readouterr().out
    assert "goes on with the demo there, from step 5" in said and "the language model is there" in said
    assert all(
        name in said
        for name in (
            "GenEval in miniature  ",
            "target 0.40",
            "text perplexity",
            "documents in",
            str(out / "report.html"),
        )
    )
    rows = read(out / "metrics.jsonl")
    assert rows[-1]["seen"] >= 120 and [row["step"] for row in rows if "loss/total" in row] == list(
        range(1, rows[-1]["step"] + 1)
    )
    page = (out / "report.html").read_text()
    named = (
        "Samples on the way",
        "Scores",
        "Drawn on request",
        "Scored images",
        "Edits",
        "Descriptions",
        "Questions",
        "Text kept",
    )
    named += ("What the codec keeps", "Going on")
    assert all(f"<h2>{section}</h2>" in page for section in named) and page.count("<h2>A story: ") == 2
    assert "prompts, " in page and "occur verbatim in the documents of the training" in page and "Chance: " in page
    assert "drawings of prompts never seen in training" in said and "chance 0." in said
    assert not (out / "skipped.txt").exists()
    assert isinstance(fusion.load(out / "model").draw("draw a red circle", steps=1)[0], Image.Image)

    assert demo.main([*argv, "scoring.guidance=1"]) == 0  # only scored again
    assert read(out / "metrics.jsonl") == rows

    demo.begin(load_config(demo.Demo, CONFIG, [*argv[1:], "documents=20"]), out)
    assert "begins anew" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"config.yaml", "run.json", "llm", "codec"}
    demo.begin(load_config(demo.Demo, CONFIG, [*argv[1:], "documents=20", "llm.width=32"]), out)
    assert {path.name for path in out.iterdir()} == {"config.yaml", "run.json", "codec"}
    assert (tmp_path / "demo-1" / "report.html").read_text() and (tmp_path / "demo-2" / "llm").is_dir()


def test_a_codec_half_trained_is_nothing_to_go_on_with(tmp_path, monkeypatch, capsys):
    out, update = tmp_path / "demo", fusion.recipes.codec._update

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fusion.recipes.codec, "_update", interrupted)
        assert demo.main([str(CONFIG), f"out={out}", *TINY]) == 130
    assert "stopped by SIGINT" in capsys.readouterr().out
    assert (out / "llm").is_dir() and not (out / "codec").exists()
    config = load_config(demo.Demo, CONFIG, [f"out={out}", *TINY])
    assert demo.autoencoder(config) is None and (out / "codec" / demo.CODEC).is_file()
    assert "PSNR of held-out images" in capsys.readouterr().out
    assert demo.autoencoder(config) is None and "the codec is there" in capsys.readouterr().out
    assert demo.autoencoder(replace(config, codec=None)) is None


def test_two_processes_learn_together_stop_together_and_go_on(tmp_path, capfd):
    out = tmp_path / "demo"
    argv = [str(CONFIG), f"out={out}", *TINY, "processes=2", "documents=300", "training.sample_every=0"]

    def stop():
        while not (out / "metrics.jsonl").exists() or len(read(out / "metrics.jsonl")) < 3:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert demo.main(argv) == 130
    assert "the same command goes on from there" in capfd.readouterr().out
    (stopped,) = (out / "checkpoints").iterdir()
    streams = json.loads((stopped / "trainer.json").read_text())["streams"]
    assert len(streams) == 2 and not (out / "model").exists()

    assert demo.main(argv) == 0
    said = capfd.readouterr().out
    assert f"from step {stopped.name.removeprefix('step_')}" in said and str(out / "report.html") in said
    assert read(out / "metrics.jsonl")[-1]["seen"] >= 300


def test_a_process_that_fails_is_one_line(tmp_path, capfd):
    argv = [
        str(CONFIG),
        f"out={tmp_path / 'demo'}",
        *TINY,
        "processes=2",
        "training.optim.lr=1e30",
        "training.optim.warmup=1",
    ]
    assert demo.main(argv) == 1
    said = capfd.readouterr().err.strip().splitlines()
    assert sum("is not finite" in line for line in said) == 1 and "Traceback" not in "".join(said)
    assert "ended with status 1" in said[-1]


def test_a_folder_with_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years")
    assert demo.main([str(CONFIG), f"out={tmp_path}", *TINY]) == 1
    assert "not a demo of this version" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_config_says_what_is_used():
    config = load_config(demo.Demo, CONFIG, ["out=here", "documents=7", "minutes=2"])
    assert config.llm.out == config.model.llm == "here/llm"
    assert (config.training.documents, config.training.minutes) == (7, 2)
    assert demo.learns_alike(config, replace(config, scoring=demo.Scoring(steps=3)))
    assert not demo.learns_alike(config, replace(config, held_out=3))


STAGES = [Stage(10, tasks={"text_to_image": 1.0}, counts={1: 1.0}), Stage(tasks={"chat": 1.0})]


def tasks(samples) -> list[str]:
    return [sample.key.rpartition(":")[2] for sample in samples]


def test_a_curriculum_changes_at_its_document_and_stays_at_its_last_stage():
    assert tasks(islice(stream_of(Curriculum(STAGES)), 30)) == ["text_to_image"] * 10 + ["chat"] * 20


def test_a_stage_has_its_share_of_plain_text():
    texts = Texts(["a", "b", "c"])
    curriculum = Curriculum([Stage(200, tasks={"chat": 1.0}), Stage(text=0.25, tasks={"chat": 1.0})], texts=texts)
    before, after = (
        Counter(key.split(":")[0] for key in keys) for keys in (drawn(curriculum, 0, 200), drawn(curriculum, 200, 1200))
    )
    assert before == {"world": 200} and 200 < after["text"] < 300
    assert len({key for key in drawn(curriculum, 200, 1200) if key.startswith("text")}) == 3


def drawn(curriculum: Curriculum, first: int, last: int) -> list[str]:
    return [curriculum.sample(index).key for index in range(first, last)]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_of_text_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"^text={share}: a share"):
        Stage(text=share)


def test_text_without_texts_is_refused():
    with pytest.raises(ValueError, match="there are no texts"):
        Curriculum([Stage(text=0.1)])


def stream_of(curriculum: Curriculum):
    walk = curriculum.stream()
    while True:
        yield next(walk)


def test_shards_of_a_curriculum_share_its_documents_and_each_resumes():
    curriculum = Curriculum(STAGES)
    whole = [sample.key for sample in islice(stream_of(curriculum), 12)]
    shards = [curriculum.stream("any", shard, 3) for shard in range(3)]
    dealt = [[next(shard).key for _ in range(4)] for shard in shards]
    assert Counter(whole) == Counter(key for keys in dealt for key in keys)
    one, other = Mixture([curriculum]), Mixture([curriculum])
    for _ in range(9):
        next(one)
    other.load_state_dict(one.state_dict())
    assert [next(one).key for _ in range(9)] == [next(other).key for _ in range(9)]


@pytest.mark.parametrize("ends", [[], [5], [6, 4, None], [5, 5, None], [0, None], [None, None]])
def test_stages_that_do_not_cover_a_run_are_refused(ends):
    with pytest.raises(ValueError, match="give the last no end"):
        Curriculum([Stage(end) for end in ends])
