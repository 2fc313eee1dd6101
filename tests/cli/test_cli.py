"""The command line: every command on a tiny random model, no file overwritten, and one-line errors."""

import io
import json
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

import fusion
from fusion.cli import commands, parser
from fusion.cli import main as cli
from fusion.cli.chat import Chat
from fusion.cli.programs import PROGRAMS, _recipe_of
from fusion.cli.screen import Screen, half_blocks, join
from fusion.common.files import claim, image_path, save_image
from fusion.generation import conversation
from fusion.generation.interleaved import ImageDone, ImagePreview, TextPiece
from fusion.testing.tiny_llms import tiny_llm, tiny_tokenizer
from tests.training.test_report import scene


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """A folder with `llm`, a tiny random LLM, and `model`, the fusion model made of it."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llm("llama").save_pretrained(folder / "llm")
    tiny_tokenizer().save_pretrained(folder / "llm")
    model = fusion.from_llm(folder / "llm", patch_size=8, max_side=64)
    for name, weight in model.model.named_parameters():
        if not name.startswith("llm.") and not weight.any():
            torch.nn.init.normal_(weight, std=0.02)  # a fresh flow head answers 0 to everything
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder with two images in it."""
    monkeypatch.chdir(tmp_path)
    scene(1).save("cat.png")
    scene(2, (48, 32)).save("wide.png")
    return tmp_path


@pytest.fixture
def run(folders, capsys):
    """`run("generate", "model", ...)`: exit status, lines of output, lines of errors."""

    def call(command: str, model: str, *words: str) -> tuple[int, list[str], list[str]]:
        status = cli.main([command, str(folders / model), *words])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return call


# ---- help ----


def test_help_of_the_installed_command_comes_at_once():
    command = shutil.which("fusion", path=Path(sys.executable).parent)
    assert command, "fusion is not installed beside this Python"
    heavy = {"torch", "transformers", "PIL", "numpy"}
    code = (
        f"import runpy, sys; sys.argv = ['fusion', '--help']\ntry: runpy.run_path({command!r}, "
        "run_name='__main__')\nexcept SystemExit: pass\n"
    )
    code += f"print(sorted({heavy!r} & set(sys.modules)))"
    started = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (
        said.strip().endswith("[]") and time.perf_counter() - started < 5
    )  # a slow machine under load; torch alone takes longer there
    assert all(f"    {name}" in said for name in (*commands.COMMANDS, *PROGRAMS))


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_every_program_explains_itself(program, capsys):
    try:
        status = cli.main([program, "--help"])
    except SystemExit as exit:
        status = exit.code
    assert status == 0 and "usage: " in capsys.readouterr().out


def test_the_recipe_of_a_config_is_told_by_its_sections():
    configs = Path(__file__).parents[2] / "configs"
    found = {
        name: _recipe_of([str(configs / f"{name}.yaml")])
        for name in ("unified", "emoji", "dit", "flux", "demo", "codec", "llm", "shapes")
    }
    assert found == {
        "unified": "unified",
        "emoji": "unified",
        "dit": "diffusion",
        "flux": "diffusion",
        "demo": "demo",
        "codec": "codec",
        "llm": "llm",
        "shapes": "demo",
    }
    with pytest.raises(ValueError, match="give a recipe"):
        _recipe_of(["model.llm=x"])


@pytest.mark.parametrize("command", list(commands.COMMANDS))
def test_every_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    words = capsys.readouterr().out
    assert exit.value.code == 0 and f"  fusion {command} " in words and len(words.splitlines()) > 12


def test_every_param_of_sampling_has_an_option():
    given = [f"--{name.replace('_', '-')}" for name in parser.SAMPLING_PARAMETERS]
    words = ["1", "0.5", "0.9", "7", "2", "64x48", "3", "heun", "2", "4", "1.5", "0.1,0.9", "blurry", "fast"]
    line = [word for name, value in zip(given, words) for word in (name, *value.split(","))]
    params = commands._params(parser.parser().parse_args(["generate", "m", "hi", *line]))
    settings = fusion.Sampling(**{name: value for name, value in params.items() if name not in ("seed", "preset")})
    assert set(parser.SAMPLING_PARAMETERS) - {"seed", "preset"} == set(vars(settings)) and params["preset"] == "fast"
    assert (settings.image_size, settings.guidance_interval, settings.solver) == ((64, 48), (0.1, 0.9), "heun")


def test_options_that_are_not_given_leave_the_defaults_to_the_library():
    assert commands._params(parser.parser().parse_args(["generate", "m", "hi"])) == {}


# ---- commands ----


def test_generate_says_what_the_library_says(run, here, folders):
    params = {"max_new_tokens": 12, "max_images": 0}
    status, out, _ = run("generate", "model", "Draw", "@cat.png", "now", "--max-new-tokens", "12", "--max-images", "0")
    expected = "".join(fusion.load(folders / "model").generate(["Draw", scene(1), "now"], **params))
    assert status == 0 and expected and "\n".join(out).strip() == expected


def test_several_answers_are_those_of_their_seeds(run, here):
    params = ("--max-new-tokens", "8", "--temperature", "1.5", "--max-images", "0")
    _, several, _ = run("generate", "model", "hi", "-n", "2", "--seed", "5", *params)
    _, second, _ = run("generate", "model", "hi", "--seed", "6", *params)
    text = "\n".join(several)
    assert text.startswith("seed 5:") and text.partition("seed 6:\n")[2] == "\n".join(second)


def test_edit_saves_an_image_of_the_same_size_and_overwrites_nothing(run, here):
    names = [
        run("edit", "model", "wide.png", "Make it blue.", "--steps", "2", "--out", "new.png", "--seed", str(i))[1]
        for i in (0, 0, 1)
    ]
    assert names == [["new.png"], ["new-2.png"], ["new-3.png"]]
    first, again, other = (Image.open(name) for (name,) in names)
    assert first.size == (48, 32) and first.tobytes() == again.tobytes() != other.tobytes()
    assert {path.name for path in here.iterdir()} == {"cat.png", "wide.png", "new.png", "new-2.png", "new-3.png"}


def test_describe_names_images_when_there_are_several(run, here):
    _, (one,), _ = run("describe", "model", "cat.png", "--max-new-tokens", "4")
    status, out, _ = run("describe", "model", "cat.png", "wide.png", "--max-new-tokens", "4")
    assert status == 0 and out[0] == f"cat.png: {one}" and any(line.startswith("wide.png: ") for line in out)


def test_inspect_draws_a_document_for_a_model_and_for_its_llm(run, here):
    status, (summary, path), _ = run("inspect", "model", "A cat:", "@cat.png")
    assert status == 0 and path == "inspect.png" and "16 of 1 noised blocks" in summary
    assert run("inspect", "llm", "A cat:", "@cat.png")[1] == [summary, "inspect-2.png"]
    assert Path("inspect.png").read_bytes() == Path("inspect-2.png").read_bytes()
    assert "0 noised blocks" in run("inspect", "model", "A cat:", "@cat.png", "--prompt")[1][0]
    assert "16 patches of 1 clean images" in run("inspect", "model", "A cat:", "@cat.png", "--tail")[1][0]
    assert "4 of 1 noised blocks" in run("inspect", "llm", "@cat.png", "--stride", "16")[1][0]


def test_messages_come_from_a_file(run, here):
    Path("talk").mkdir()
    image = {"type": "image", "image": "../cat.png"}
    turns = [
        {"role": "user", "content": [image, {"type": "text", "text": "Again."}]},
        {"role": "assistant", "content": [image]},
    ]
    Path("talk/messages.json").write_text(json.dumps({"messages": turns}))
    assert "16 patches of 1 clean images, 16 of 1 noised blocks" in run("inspect", "model", "@talk/messages.json")[1][0]
    Path("talk/prompt.json").write_text(json.dumps(turns[:1]))
    params = ("--max-new-tokens", "6", "--max-images", "0")
    assert run("generate", "model", "@talk/prompt.json", *params) == run(
        "generate", "model", "@cat.png", "Again.", *params
    )


def test_a_system_prompt_comes_first():
    assert commands.with_system(["hi"], None) == ["hi"]
    assert commands.with_system(["hi"], "s") == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    with pytest.raises(ValueError, match="--system has no place"):
        commands.with_system([{"role": "system", "content": "t"}], "s")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "MODEL", "@nope.png"], "nope.png: no such file"),
        (["generate", "MODEL", "@broken.png"], "broken.png: is damaged"),
        (["generate", "MODEL", "@nope.json"], "nope.json: no such file"),
        (["generate", "MODEL", "@broken.json"], "broken.json: is not JSON"),
        (["generate", "MODEL", "@broken.json", "more"], "stands alone"),
        (["generate", "MODEL", " "], "the prompt is empty"),
        (["generate", "MODEL", "hi", "-n", "0"], "at least one answer|one answer or more"),
        (["generate", "MODEL", "hi", "--image-size", "63"], "write WIDTHxHEIGHT"),
        (["generate", "MODEL", "hi", "--image-size", "63x64"], "multiples of 8"),
        (["generate", "MODEL", "hi", "--solver", "magic"], "euler"),
        (["generate", "MODEL", "hi", "--top-p", "2"], "top_p lies in"),
        (["generate", "MODEL", "hi", "--out", "a.jpg"], "without loss"),
        (["generate", "MODEL", "hi", "--device", "warp"], "warp"),
        (["generate", "nowhere", "hi"], "nowhere: no fusion model there"),
        (["inspect", "nowhere", "hi"], "nowhere"),
        (["inspect", "MODEL", "word " * 2000], "too many to draw"),
        (["paint"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(words, told, here, folders, capsys):
    data = Path("cat.png").read_bytes()
    Path("broken.png").write_bytes(data[: len(data) // 2])
    Path("broken.json").write_text('[{"role": ')
    assert cli.main([str(folders / "model") if word == "MODEL" else word for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("fusion: error: ")
    assert any(part in said.err for part in told.split("|"))


def test_debugging_shows_where_an_error_came_from(monkeypatch, here):
    monkeypatch.setenv("FUSION_DEBUG", "1")
    with pytest.raises(ValueError, match=r"nope\.png"):
        cli.main(["describe", "nowhere", "nope.png"])


# ---- chat ----


class Scripted:
    """Answers with given events, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def stream(self, messages, seed, previews, **params):
        self.asked.append((messages, seed, previews, params))
        for event in self.answers.pop(0):
            if isinstance(event, BaseException):
                raise event
            yield event


def talk(model, lines: list[str], show: bool = False, **how) -> str:
    """What a conversation prints on the screen."""
    stream, left = io.StringIO(), iter(lines)

    def read() -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    Chat(model, Screen("drawn.png", show, stream), **how).run(read)
    return stream.getvalue()


def test_chat_keeps_the_conversation_and_its_images(here):
    model = Scripted([TextPiece(0, "Here"), TextPiece(0, " it is: "), ImageDone(0, scene(3))], [TextPiece(0, "Blue.")])
    said = talk(
        model,
        ["/image cat.png", "Redraw it.", "//What colour?", "/save", "/save", "/quit", "never read"],
        seed=7,
        steps=3,
    )
    first, second = model.asked
    assert [block["type"] for block in first[0][0]["content"]] == ["image", "text"] and first[1:] == (
        7,
        False,
        {"steps": 3},
    )
    assert [message["role"] for message in second[0]] == ["user", "assistant", "user"] and second[1] == 8
    assert (
        second[0][1]["content"][0] == {"type": "text", "text": "Here it is: "}
        and second[0][2]["content"][0]["text"] == "/What colour?"
    )
    assert "Here it is: \ndrawn.png\nBlue.\nchat/messages.json\nchat-2/messages.json\n" in said
    saved = conversation.read("chat/messages.json")
    assert [message["role"] for message in saved] == ["user", "assistant"] * 2
    assert (
        saved[0]["content"][0]["image"].tobytes() == scene(1).tobytes()
        and saved[1]["content"][1]["image"].tobytes() == scene(3).tobytes()
    )
    assert {path.name for path in Path("chat").iterdir()} == {"messages.json", "image-1.png", "image-2.png"}


def test_a_turn_that_fails_is_told_and_forgotten(here, capsys):
    model = Scripted(
        [ValueError("the document\nis too long")],
        [TextPiece(0, "par"), KeyboardInterrupt()],
        [],
        [TextPiece(0, "Yes.")],
    )
    said = talk(model, ["one", "two", "three", "/nope", "/image nope.png", "/seed x", "/save", "four"])
    errors = capsys.readouterr().err.splitlines()
    assert [len(messages) for messages, *_ in model.asked] == [1, 1, 1, 1]
    assert "par\n(stopped" in said and "(no answer" in said and said.endswith("Yes.\n")
    assert errors[0] == "error: the document is too long" and "/nope" in errors[1] and "nope.png" in errors[2]
    assert "whole number" in errors[3] and "nothing to save" in errors[4]


def test_reset_goes_back_to_the_start_and_seed_sets_the_next(here):
    model = Scripted([TextPiece(0, "a")], [TextPiece(0, "b")])
    system = {"role": "system", "content": "s"}
    talk(model, ["one", "/image cat.png", "/reset", "/seed 40", "two", "/save kept"], messages=[system])
    messages, seed, *_ = model.asked[1]
    assert seed == 40 and messages[0] == system and len(messages) == 2 and len(messages[1]["content"]) == 1
    assert conversation.read("kept/messages.json")[0] == {"role": "system", "content": [{"type": "text", "text": "s"}]}


def test_an_image_becomes_clear_in_its_place(here):
    said = talk(Scripted([ImagePreview(0, scene(1), 1, 2), ImageDone(0, scene(2))]), ["draw"], show=True)
    assert said.count("▀") == 2 * 32 * 16 and said.count("\x1b[16A\r") == 1
    assert said.endswith("drawn.png\n")


def test_the_command_chats_with_a_real_model(run, here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/save\n"))
    status, out, errors = run(
        "chat", "model", "--max-new-tokens", "6", "--max-images", "0", "--system", "s", "--temperature", "1"
    )
    assert (status, errors, out[-1]) == (0, [], "chat/messages.json")
    monkeypatch.setattr(sys, "stdin", io.StringIO("/save\n"))
    assert run("chat", "model", "--resume", "chat/messages.json")[1] == ["chat-2/messages.json"]
    assert Path("chat/messages.json").read_text() == Path("chat-2/messages.json").read_text()


# ---- parts ----


def test_words_are_text_images_or_escaped(here):
    text, image, escaped = conversation.read_words(["a @ b", "@cat.png", "@@home"])
    assert (text, escaped) == ("a @ b", "@home") and image.tobytes() == scene(1).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        "3",
        '["a"]',
        '{"content": 3}',
        '[{"role": "user", "content": [{"type": "image", "image": 3}]}]',
        '{"messages": 1}',
    ],
)
def test_a_file_that_holds_no_messages_is_named(here, data):
    Path("bad.json").write_text(data)
    with pytest.raises(ValueError, match=r"^bad\.json: "):
        conversation.read("bad.json")


def test_names_count_up_and_folders_are_made(tmp_path):
    assert (
        image_path(tmp_path) == tmp_path / "image.png"
        and image_path(tmp_path / "new", "a.png") == tmp_path / "new" / "a.png"
    )
    names = [claim(tmp_path / "deep" / "cat.png").name for _ in range(3)]
    assert names == ["cat.png", "cat-2.png", "cat-3.png"]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_images_are_saved_without_loss(tmp_path, suffix):
    path = save_image(scene(5), tmp_path / f"a{suffix}")
    assert Image.open(path).convert("RGB").tobytes() == scene(5).tobytes()
    assert list(tmp_path.iterdir()) == [path]


def test_half_blocks_show_two_pixels_a_character():
    image = Image.new("RGB", (1, 3))
    image.putdata([(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    assert half_blocks(image, 10) == "\x1b[38;2;1;2;3;48;2;4;5;6m▀\x1b[0m\n\x1b[38;2;7;8;9;48;2;7;8;9m▀\x1b[0m"
    assert half_blocks(scene(0, (100, 50)), 20).count("▀") == 20 * 5


def test_runs_of_text_are_joined_and_blanks_left_out():
    blocks = [{"type": "text", "text": t} for t in "ab"] + [
        {"type": "image", "image": 1},
        {"type": "text", "text": " "},
    ]
    assert join(blocks) == [{"type": "text", "text": "ab"}, {"type": "image", "image": 1}]


def test_text_goes_out_as_it_comes():
    stream = io.StringIO()
    with redirect_stdout(stream):
        screen = Screen("x.png", show=False)
        screen.take(TextPiece(0, "a"))
        assert stream.getvalue() == "a"
        screen.end_line()
        screen.end_line()
    assert stream.getvalue() == "a\n"
