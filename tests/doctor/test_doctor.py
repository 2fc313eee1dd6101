"""The doctor: verdicts, statistics of text, images, curves and folders, its page, errors, and two faulty runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bench.doctor import CASES, base_llm, config_of, make
from bench.doctor import main as ill
from bench.spoiled_data import write_folder
from fusion.common.config import save_config
from fusion.common.statistics import Measured
from fusion.data.formats import Sample
from fusion.doctor import checks as visit
from fusion.doctor import doctor as program
from fusion.doctor import image_checks as images
from fusion.doctor import image_statistics as looks
from fusion.doctor import page
from fusion.doctor import run_checks as course
from fusion.doctor import text_checks as words
from fusion.doctor.denoising_errors import misled, x_errors
from fusion.doctor.finding import MILD, SEVERE, UNCLEAR, WELL, Rule, worse
from fusion.doctor.run_data import Patient, task_of
from fusion.generation.api import BUNDLED
from fusion.recipes.diffusion import main as train_diffusion
from fusion.testing import tiny_runs as training

CASE = {case.name: case for case in CASES}
ABOVE = Rule("a", "s", mild=1.0, severe=2.0, reason="r", advice="d")
BELOW = Rule("b", "s", mild=0.5, severe=0.2, reason="r", advice="d")


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return base_llm(tmp_path_factory.mktemp("base"))


def bundled_run(run: Path, llm: Path, name: str = "healthy", rows: list[dict] | None = None) -> Path:
    """The folder of a run whose model is the bundled one."""
    shutil.copytree(BUNDLED / "shapes", run / "model")
    logged(run, rows or [{"step": 1, "seen": 10, "lr": 0.0}], llm, name)
    return run


def logged(run: Path, rows: list[dict], llm: Path | str = "llm", name: str = "healthy") -> Path:
    run.mkdir(parents=True, exist_ok=True)
    save_config(config_of(CASE[name], run, Path(llm)), run / "config.yaml")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


# ---- verdicts ----


@pytest.mark.parametrize(
    ("rule", "found", "verdict"),
    [
        (ABOVE, Measured(3.0), SEVERE),
        (ABOVE, Measured(3.0, 1.5, 4.0), MILD),
        (ABOVE, Measured(3.0, 0.9, 4.0), UNCLEAR),
        (ABOVE, Measured(0.9, 0.1, 3.0), WELL),
        (BELOW, Measured(0.1, 0.05, 0.15), SEVERE),
        (BELOW, Measured(0.1, 0.05, 0.4), MILD),
        (BELOW, Measured(0.1, 0.05, 0.6), UNCLEAR),
        (BELOW, Measured(0.6, 0.1, 0.9), WELL),
    ],
)
def test_only_an_interval_beyond_a_limit_is_an_illness(rule, found, verdict):
    assert rule.verdict(found) == verdict


def test_of_two_findings_the_worse_counts_with_the_evidence_of_both():
    one, other = (
        ABOVE.judge(Measured(0.0), "fine", "<i>1</i>", x=1.0),
        ABOVE.judge(Measured(3.0), "bad", "<i>2</i>", y=2.0),
    )
    both = worse(one, other)
    assert (both.verdict, both.said, both.evidence, both.figures) == (
        SEVERE,
        "bad",
        "<i>2</i><i>1</i>",
        {"x": 1.0, "y": 2.0},
    )


def test_what_follows_from_another_illness_says_so_only_where_both_were_found():
    deaf, copies = words.DEAF.judge(Measured(0.5), "deaf"), images.COPY.judge(Measured(1.0), "copies")
    assert [finding.follows for finding in visit.in_context([deaf, copies])] == [None, words.DEAF.illness]
    hears = words.DEAF.judge(Measured(1.0), "hears")
    assert [finding.follows for finding in visit.in_context([hears, copies])] == [None, None]


# ---- images ----


def test_blur_takes_detail_and_grey_takes_saturation():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 48, 3), dtype=np.uint8))
    sharp, soft, grey = map(looks.look, (image, image.filter(ImageFilter.GaussianBlur(2)), image.convert("L")))
    assert soft[2] < 0.5 * sharp[2] and grey[0] == pytest.approx(looks.FAINT) and sharp[0] > 0.3
    assert looks.look(Image.new("RGB", (32, 32), "white"))[1:] == pytest.approx([looks.FAINT] * 2)
    assert looks.distance(image, image) == 0 and looks.distance(image, Image.new("RGB", (33, 48))) > 0.4


def test_a_copy_has_not_moved_and_the_true_edit_has(monkeypatch):
    source, truth = Image.new("RGB", (32, 32), "white"), Image.new("RGB", (32, 32), "white")
    truth.paste("red", (8, 8, 20, 20))
    task = SimpleNamespace(source=source, truth=truth, words="make it red")
    for drawn, verdict in ((source, SEVERE), (truth, WELL)):
        patient = SimpleNamespace(
            count=20, edits=[task] * 10, draw=lambda tasks, copies, drawn=drawn: [[drawn] * copies for _ in tasks]
        )
        finding = images.copying(patient)
        assert finding.verdict == verdict and "of 20 edits of 10 images" in finding.said
    patient = SimpleNamespace(count=10, edits=[SimpleNamespace(source=source, truth=source, words="")] * 10)
    assert images.copying(patient).measured is None


def test_a_few_copies_among_edits_are_found(monkeypatch):
    """One in four is, and in the middle of all nothing is seen of it."""
    source, truth = Image.new("RGB", (32, 32), "white"), Image.new("RGB", (32, 32), "white")
    truth.paste("red", (8, 8, 20, 20))
    task = SimpleNamespace(source=source, truth=truth, words="make it red")

    def draw(tasks, copies):
        return [[source if number % 4 == 0 else truth] * copies for number in range(len(tasks))]

    finding = images.copying(SimpleNamespace(count=96, edits=[task] * 48, draw=draw))
    assert finding.verdict == MILD and finding.measured.value == 0.25 and finding.figures["median"] == 1.0


def test_blur_is_seen_in_the_images_of_what_the_codec_gives_back():
    rng = np.random.default_rng(0)
    sharp = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(16)]
    tasks = [SimpleNamespace(truth=image, words="") for image in sharp]

    def verdict(radius: float, codec: float = 0.0) -> str:
        def soft(image: Image.Image, radius: float) -> Image.Image:
            return image.filter(ImageFilter.GaussianBlur(radius))

        patient = SimpleNamespace(
            draw=lambda _: [[soft(image, radius)] for image in sharp], given_back=lambda image: soft(image, codec)
        )
        return images._soft(patient, tasks).verdict

    assert [verdict(0.0), verdict(0.5), verdict(0.8), verdict(0.8, codec=0.8)] == [WELL, MILD, SEVERE, WELL]


def test_too_much_guidance_is_told_from_little(llm, tmp_path):
    patient = Patient(
        bundled_run(tmp_path / "run", llm, "guided-12"), ["samples.guidance=20", "samples.steps=6"], count=48
    )
    assert images.over_guided(patient).ill
    patient.config.samples.guidance = 2.0
    assert images.over_guided(patient).verdict == WELL


# ---- documents ----


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def drawn(number: int, size: tuple[int, int] = (16, 16)) -> dict:
    return {"type": "image", "image": Image.new("RGB", size, (number, 0, 0))}


def turns(*parts: tuple[str, list]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in parts]


def test_a_task_ends_with_the_last_image_that_is_asked_for():
    chat = turns(
        ("user", [text("draw")]),
        ("assistant", [drawn(1)]),
        ("user", [text("redder")]),
        ("assistant", [drawn(2)]),
        ("user", [text("?")]),
    )
    task = task_of(Sample([*chat, *turns(("assistant", [text("red")]))], None, "chats", "k"))
    assert task.words == "draw\nredder" and task.truth.getpixel((0, 0))[0] == 2 and task.source.getpixel((0, 0))[0] == 1
    assert task.prompt == chat[:3]
    alone = task_of(
        Sample(turns(("user", [drawn(1, (8, 8)), text("larger")]), ("assistant", [drawn(2)])), None, "chats", "k")
    )
    assert alone.source is None
    leaf = task_of(Sample(None, [text("a"), drawn(1), drawn(2), text("b"), drawn(3), text("c")], "pages", "k"))
    assert leaf.words == "b" and leaf.truth.getpixel((0, 0))[0] == 3 and leaf.prompt == {"content": [text("b")]}
    assert (
        task_of(Sample(turns(("user", [drawn(1), text("what?")]), ("assistant", [text("red")])), None, "chats", "k"))
        is None
    )
    assert task_of(Sample(None, [drawn(1), text("a")], "pages", "k")) is None


def test_words_are_exchanged_within_a_kind_and_nothing_else_is():
    samples = [
        Sample(turns(("user", [text(words)]), ("assistant", [drawn(n)])), None, "s", "k")
        for n, words in enumerate(("a", "a", "b"))
    ]
    tasks = [task_of(sample) for sample in (*samples, Sample(None, [text("page"), drawn(9)], "s", "k"))]
    pairs = misled(tasks)
    assert [[one.messages[0]["content"][0]["text"] for one in wrong] for _, wrong in pairs] == [
        ["b"],
        ["b"],
        ["a", "a"],
    ]
    assert [wrong[0].messages[1] for _, wrong in pairs] == [sample.messages[1] for sample in samples]


def test_the_same_noise_for_what_is_compared_and_times_within_bounds(llm, tmp_path):
    patient = Patient(bundled_run(tmp_path / "run", llm), count=12)
    samples = [task.sample for task in patient.tasks]
    errors, times = x_errors(patient, samples, 0.5, 1.0, rounds=2)
    assert times.min() >= 0.5 and times.max() <= 1.0
    assert x_errors(patient, samples, 0.5, 1.0, rounds=2)[0].equal(errors)
    wrong, again = x_errors(patient, [wrong[0] for _, wrong in misled(patient.tasks)], 0.5, 1.0, rounds=2)
    assert wrong.shape[1] == 2 and again.max() <= 1.0 and wrong.mean() > 1.2 * errors.mean()


# ---- the run itself ----


def falling(power: float, rate: float, documents: int = 4000) -> list[dict]:
    rows = []
    for step in range(1, 41):
        seen, wiggle = documents * step // 40, 1 + 0.002 * (-1) ** step
        rows.append(
            {
                "step": step,
                "seen": seen,
                "lr": 1e-3 * (1 + (rate - 1) * step / 40),
                "val/x_error": 5 * seen**-power * wiggle,
            }
        )
    return rows


@pytest.mark.parametrize(
    ("power", "rate", "verdict"),
    [(0.5, 1.0, SEVERE), (0.15, 1.0, MILD), (0.02, 1.0, WELL), (0.15, 0.0, WELL), (0.4, 0.0, MILD), (-0.1, 1.0, WELL)],
)
def test_a_curve_that_still_falls_is_undertrained_all_the_more_where_the_rate_is_up(tmp_path, power, rate, verdict):
    finding = course.undertrained(Patient(logged(tmp_path, falling(power, rate))))
    assert finding.verdict == verdict and finding.measured.value == pytest.approx(1 - 2**-power, abs=0.01)


def test_what_the_end_of_the_rate_takes_off_is_not_for_want_of_training(tmp_path):
    """The error rises while the rate is up, as where the data are wrong, and falls by a third as it comes down."""
    rows = [
        row | {"val/x_error": 0.03 + 0.02 * min(row["lr"] / 5e-4, 1.0) * row["seen"] / 4000}
        for row in falling(0.0, 0.0)
    ]
    finding = course.undertrained(Patient(logged(tmp_path, rows)))
    assert course.falling([(row["seen"], row["val/x_error"]) for row in rows if row["seen"] >= 2000]).value > 0.15
    assert finding.verdict == WELL and "while its rate was up" in finding.said
    damaged = [row | {"val/x_error": 0.02 if row["step"] == 1 else row["val/x_error"]} for row in falling(0.4, 0.0)]
    finding = course.undertrained(Patient(logged(tmp_path, damaged)))
    assert finding.verdict == WELL and "on the least error of the first half" in finding.said


def test_where_the_curve_is_too_rough_the_plan_of_the_run_says_whether_it_was_stopped_early(tmp_path):
    rough = [row | {"val/x_error": row["val/x_error"] * (1 + 0.1 * (-1) ** row["step"])} for row in falling(0.15, 1.0)]
    run = logged(tmp_path, [row | {"time": 60.0} for row in rough])
    verdicts = {
        n: course.undertrained(Patient(run, ["training.minutes=null", f"training.documents={n}"])).verdict
        for n in (4000, 20_000, 100_000)
    }
    assert verdicts == {4000: UNCLEAR, 20_000: MILD, 100_000: SEVERE}
    assert course.undertrained(Patient(run, ["training.documents=null", "training.minutes=1.5"])).verdict == UNCLEAR


def test_a_stage_that_was_not_reached_is_told(tmp_path):
    run = logged(tmp_path, falling(0.0, 0.0))
    stages = "stages=[{until: 2000}, {until: 9000}, {text: 0}]"
    finding = course.undertrained(Patient(run, [stages]))
    assert finding.verdict == SEVERE and "stage 2 of 3" in finding.said
    assert course.undertrained(Patient(run, [stages.replace("9000", "4000")])).verdict == WELL
    assert (
        course.undertrained(Patient(logged(tmp_path, falling(0.5, 1.0)[:3] + falling(0.5, 1.0)[-1:]))).measured is None
    )


@pytest.mark.parametrize(("leaks", "verdict"), [(0.0, WELL), (0.5, SEVERE)])
def test_images_that_come_again_under_another_name_are_found(tmp_path, leaks, verdict):
    write_folder(tmp_path / "data", leaks)
    finding = course.leaking(Patient(logged(tmp_path, [{"step": 1, "seen": 1}], name="leaks-half")))
    assert finding.verdict == verdict
    if leaks:
        again = len(list((tmp_path / "data" / "images").glob("again*")))
        assert 0.25 * again < finding.figures["images"] < 0.5 * again  # one of both is held out


# ---- the program ----


def test_a_run_that_is_well_gets_figures_and_a_page_of_its_own(llm, tmp_path, monkeypatch, capsys):
    run = bundled_run(tmp_path / "run", llm)
    monkeypatch.setattr(visit, "CHECKS", [visit.CHECKS[number] for number in (1, 3, 4)])
    assert program.main([str(run), "--count", "8"]) == 0
    said = capsys.readouterr().out
    assert "nothing is wrong" in said and "0 validations" in said and str(run / "doctor.html") in said
    told = json.loads((run / "doctor.json").read_text())
    assert [finding["verdict"] for finding in told["findings"]] == ["not judged", "well", "well"]
    shown = (run / "doctor.html").read_text()
    assert "<script" not in shown and "http" not in shown.replace("http://www.w3.org", "")


def test_the_page_puts_the_worst_first_and_escapes_what_it_says():
    findings = [
        ABOVE.judge(Measured(0.0), "fine"),
        BELOW.judge(Measured(0.1, 0.0, 0.15), "a <b>"),
        ABOVE.unknown("nothing there"),
    ]
    shown = page.render(Path("run"), None, findings)
    assert shown.index("a &lt;b&gt;") < shown.index("fine") < shown.index("nothing there") and "<b>" not in shown
    assert page.summary(findings) == "b (severe); 2 of 3 checks could be judged"
    doubtful = page.summary([*findings, ABOVE.judge(Measured(1.5, 0.5, 2.0), "a little")])
    assert "unclear: a (a larger --count" in doubtful and page.summary(findings[:1]).startswith("nothing is wrong;")
    assert page.as_text(findings).splitlines()[:2] == [f"{'severe':<11}{'b':<29}a <b>", f"{'':<11}do: d"]


def test_mistakes_are_one_line(tmp_path, capsys):
    def mistake(*argv) -> str:
        assert program.main([str(word) for word in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "no such folder" in mistake(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("codec: {}\nrun: x\n")
    assert "another kind" in mistake(tmp_path)
    (tmp_path / "config.yaml").write_text("{model: [")
    assert "not YAML" in mistake(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.yaml is missing" in mistake(empty)
    assert "nothing was logged" in mistake(logged(tmp_path / "begun", []))
    assert "--count 0" in mistake(tmp_path / "begun", "--count", "0")
    assert "modle" in mistake(tmp_path / "begun", "modle.llm=x")
    run = logged(tmp_path / "half", [{"step": 1, "seen": 1}])
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert "format version None" in mistake(run)


def test_what_is_missing_is_said_check_by_check(tmp_path):
    patient = Patient(logged(tmp_path, falling(0.0, 0.0)))
    said = {finding.illness: finding.said for finding in visit.examine(patient) if finding.measured is None}
    assert said[words.DEAF.illness] == "there is no model yet" and course.GREEN.illness not in said
    gone = Patient(tmp_path, ["stages=[]", "data.sources=[{kind: images}]", "data.path=gone"])
    said = {finding.illness: finding.said for finding in visit.examine(gone)}
    assert "data.path=FOLDER" in said[course.LEAKING.illness]


def test_runs_of_another_seed_are_not_taken_for_this_one(tmp_path, capsys):
    logged(tmp_path / "healthy", [])
    (tmp_path / "healthy" / "doctor.json").write_text("{}")
    assert ill([str(tmp_path), "healthy", "--seed", "3"]) == 2
    assert "was made with seed 0: give another folder for seed 3" in capsys.readouterr().err


def test_a_text_to_image_model_is_examined_too(tmp_path, root, capsys):
    llm, run = training.save_llm(tmp_path / "llm"), tmp_path / "run"
    settings = [
        f"run={run}",
        f"text_to_image.texts=[{{path: {llm}}}]",
        "text_to_image.network={patch_size: 8, width: 32, layers: 2, heads: 2}",
        "pairing.rows=8",
        "training.minutes=null",
        "training.documents=100",
        "training.validate_every=2",
        "training.precision=fp32",
        "training.workers=0",
        "training.sample_every=0",
        "training.trackers=[]",
        "validation.documents=8",
        "scoring.count=0",
        "samples.steps=2",
        "samples.held_out=0",
    ]
    assert train_diffusion([str(root / "configs" / "dit.yaml"), *settings]) == 0
    findings = {finding.illness: finding for finding in program.diagnose(run, count=16)}
    assert findings[images.NOISE.illness].ill, "a text-to-image model of a hundred images draws nothing but noise"
    assert (
        "can do nothing but draw" in findings[words.SILENT.illness].said
        and "does not write" in findings[words.FORGETFUL.illness].said
    )
    assert findings[images.COLLAPSED.illness].measured is not None and findings[words.DEAF.illness].measured is not None


@pytest.mark.parametrize(("name", "check"), [("silent-most", words.silent), ("leaks-half", course.leaking)])
def test_a_run_made_ill_is_found_ill(llm, tmp_path, name, check):
    case = replace(CASE[name], documents=180 if name.startswith("silent") else 100, rate=2.0)
    make(case, tmp_path / "run", llm)
    assert check(Patient(tmp_path / "run", count=64)).ill
    healthy = Patient(bundled_run(tmp_path / "healthy", llm), count=64)
    assert not check(healthy).ill
