"""The command line: `fusion generate | edit | chat | describe | inspect | data | plan`.

A mistake is one line on stderr and exit status 2; FUSION_DEBUG=1 shows where it came from. Nothing heavy is imported before a command
runs, so that --help comes at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

WORDS = "text; @PICTURE for an image at this place (@cat.png); @FILE.json alone for chat messages; @@ begins a text with @"

DESCRIPTIONS = {
    "generate": (
        "write and draw what comes next",
        "Continue a prompt of text and images. The model decides when to draw, how large, and when to stop. Text is printed as it "
        "comes, images are saved under the first free name and their paths printed.",
        '  fusion generate shapes "Draw a red circle left of a blue square."\n'
        '  fusion generate shapes @cat.png "Make it blue." --seed 3 --steps 40 --out blue.png\n'
        '  fusion generate shapes "Draw two triangles." -n 4 --out drawn/',
    ),
    "edit": (
        "change an image as told",
        "Edit an image by an instruction. The result has the size of the original and is saved under the first free name.",
        '  fusion edit shapes scene.png "Make the circle green." --image-guidance 1.5 --out green.png',
    ),
    "describe": (
        "say what images show",
        "Describe each image in words, or answer a question about it.",
        '  fusion describe shapes scene.png\n  fusion describe shapes scene.png --prompt "How many circles are there?"',
    ),
    "chat": (
        "talk with a model",
        "Talk with a model at the terminal. It takes images (/image cat.png), shows the ones it draws and saves them; /help lists "
        "the other commands.",
        '  fusion chat shapes --out chat/\n  fusion chat shapes --system "You draw on beige ground." --resume chat/messages.json',
    ),
    "inspect": (
        "draw what a model reads",
        "Draw a document as the model reads it in training: tokens, clean pictures, noised blocks, what is learned, and who sees "
        "whom. Takes a model's folder, or an LLM's, of which only config and tokenizer are read. Words and images without roles "
        "are a document all of which is learned.",
        '  fusion inspect shapes @messages.json --out packed.png\n  fusion inspect path/to/llm "A cat." @cat.png --stride 16',
    ),
    "data": (
        "go through a data set",
        "Read every sample of a data set as training does, and say what is in it, what is bad and why, what comes twice, and what leaks from "
        "validation into training. All of it is written as a page too, with samples as the model reads them. Exit status: 0 if every "
        "sample is good, 1 if one is bad or leaks, 2 if the path is not a data set.",
        "  fusion data check my_images\n"
        "  fusion data check pairs.parquet --format edits --column instruction=prompt --tokenizer path/to/llm --length 2048 -o pairs.html",
    ),
    "plan": (
        "say what a training run would take",
        "Tell parameters, memory, tokens, time and cost of a run of train.unified or train.diffusion, without a GPU and without an LLM's "
        "weights: its config suffices, and with its tokenizer the run's data are packed as they will be. Memory is followed through an "
        "imagined step, allocation by allocation; time is operations by the data sheet's speed and the share of it that you expect.",
        "  fusion plan configs/unified.yaml model.llm=out/llm data.path=my_data\n"
        "  fusion plan configs/smollm2.yaml data.path=my_images packing.rows=16 --gpus 8 --device h200 --price 3 --out batch.png\n"
        "  fusion plan configs/dit.yaml 'painter.texts=[{path: google/t5-v1_1-xl}]' painter.network.width=1152",
    ),
}


def size(text: str) -> tuple[int, int]:
    """`64x48` as (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write WIDTHxHEIGHT in pixels, such as 64x48")
    return int(width), int(height)


def column(text: str) -> tuple[str, str]:
    """`text=caption` as (name, column)."""
    name, equals, found = text.partition("=")
    if not (name and equals and found):
        raise argparse.ArgumentTypeError(f"{text!r} maps no column: write NAME=COLUMN, such as text=caption")
    return name, found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; the options of a command that are not given are not in its result."""
    top = _Parser(
        prog="fusion",
        description="One model that reads and writes both text and images.",
        epilog="fusion COMMAND --help tells more, with examples.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    made = {}
    for name, (short, description, example) in DESCRIPTIONS.items():
        made[name] = commands.add_parser(
            name,
            help=short,
            description=description,
            epilog=f"examples:\n{example}",
            formatter_class=_Formatter,
            argument_default=argparse.SUPPRESS,
        )
    _generate_options(made["generate"])
    _edit_options(made["edit"])
    _describe_options(made["describe"])
    _chat_options(made["chat"])
    _inspect_options(made["inspect"])
    _data_options(made["data"])
    _plan_options(made["plan"])
    return top


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves examples as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def _generate_options(command: argparse.ArgumentParser) -> None:
    _model_options(command)
    command.add_argument("words", nargs="+", metavar="WORD", help=WORDS)
    command.add_argument("-n", type=int, default=1, help="this many answers, with seeds one apart (default 1)")
    command.add_argument("--system", metavar="TEXT", help="the system prompt")
    _out_options(command, "image.png")
    _text_options(command)
    _image_options(command)


def _edit_options(command: argparse.ArgumentParser) -> None:
    _model_options(command)
    command.add_argument("image", metavar="IMAGE", help="the image to change")
    command.add_argument("instruction", metavar="INSTRUCTION", help="what to change")
    _out_options(command, "edited.png")
    _image_options(command)


def _describe_options(command: argparse.ArgumentParser) -> None:
    _model_options(command)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="the images; with several, each line begins with the name")
    command.add_argument("--prompt", metavar="TEXT", help="what to ask about the image")
    _text_options(command)


def _chat_options(command: argparse.ArgumentParser) -> None:
    _model_options(command)
    command.add_argument("--system", metavar="TEXT", help="the system prompt")
    command.add_argument("--resume", metavar="FILE.json", help="go on with a conversation that /save wrote")
    _out_options(command, "image.png")
    _text_options(command)
    _image_options(command)


def _inspect_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder of a fusion model, or folder or hub id of an LLM")
    command.add_argument("words", nargs="+", metavar="WORD", help=WORDS)
    command.add_argument("--prompt", action="store_true", default=False, help="as a prompt: nothing is learned")
    command.add_argument("--tail", action="store_true", default=False, help="keep the clean copy of a last picture, so that stopping is learned")
    command.add_argument("--stride", type=int, default=8, help="for an LLM: pixels along the side of a patch (default 8)")
    command.add_argument("--out", metavar="PATH", default="inspect.png", help="file or folder for the picture (default inspect.png)")


def _data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("check",), help="what to do with it")
    command.add_argument("path", metavar="PATH", help="folder of images, texts or tables; or a .jsonl, .csv, .parquet or .txt file")
    command.add_argument("--format", choices=("images", "edits", "pages", "chats", "text"), default=None, help="default: told by its columns")
    command.add_argument(
        "--column", metavar="NAME=COLUMN", type=column, action="append", default=[], help="with --format: which column holds what (text=caption)"
    )
    command.add_argument("--tokenizer", metavar="MODEL", default=None, help="the fusion model, or the LLM, that is to read it (default: a small one)")
    command.add_argument("--stride", type=int, default=8, help="for an LLM: pixels along the side of a patch (default 8)")
    command.add_argument("--length", type=int, metavar="N", default=None, help="tokens in a row of training: a longer conversation is bad")
    command.add_argument("--held-out", type=float, metavar="SHARE", default=0.05, help="of the subjects, for validation (default 0.05)")
    command.add_argument("--split-seed", type=int, metavar="N", default=0, help="chooses which subjects (default 0)")
    command.add_argument("-o", "--out", metavar="PATH", default="check.html", help="file or folder for the page (default check.html)")


def _plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="YAML file of a run of train.unified or train.diffusion")
    command.add_argument("words", nargs="*", default=[], metavar="key=value", help="what is different from the file, before the options")
    command.add_argument("--gpus", type=int, default=1, metavar="N", help="devices, each with all weights (default 1)")
    command.add_argument("--device", choices=("h100", "h200", "a100", "4090", "cpu"), default="h100", help="which (default h100)")
    command.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the data sheet's speed that is reached (default 0.4)")
    command.add_argument("--price", type=float, default=None, metavar="DOLLARS", help="of a device for an hour")
    command.add_argument("--out", metavar="PATH", default=None, help="file or folder for a picture of the first packed row, or pairs")


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder of a fusion model")
    command.add_argument("--device", help="cpu, cuda, mps, ... (default cpu)")
    command.add_argument("--device-map", metavar="MAP", help="auto spreads the layers over GPUs and CPU (docs/loading.md)")
    command.add_argument("--dtype", metavar="NAME", help="of the weights: bf16, fp16, fp32, or auto, as saved (default auto)")
    command.add_argument("--seed", type=int, help="of everything that is drawn by chance (default 0)")


def _out_options(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument(
        "--out", metavar="PATH", default=name, help=f"file or folder for images; taken names are numbered, never overwritten (default {name})"
    )
    command.add_argument(
        "--show", action=argparse.BooleanOptionalAction, default=None, help="draw images in the terminal (default: if it is one)"
    )


def _text_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("sampling of text")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token")
    group.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest tokens of this mass")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens of text in an answer")


def _image_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("sampling of images")
    if command.prog.split()[-1] != "edit":
        group.add_argument("--max-images", type=int, metavar="N", help="images in an answer")
    group.add_argument("--preset", metavar="NAME", help="fast, balanced, best, ...: knobs saved with the model; options beside it win")
    group.add_argument("--image-size", type=size, metavar="WxH", help="width x height in pixels; else the model chooses")
    group.add_argument("--steps", type=int, metavar="N", help="solver steps for an image")
    group.add_argument("--solver", metavar="NAME", help="euler, heun or multistep method; a wrong name lists them")
    group.add_argument("--shift", type=float, metavar="S", help="above 1: more of the steps at high noise")
    group.add_argument("--guidance", type=float, metavar="S", help="towards the text; 1 is off")
    group.add_argument("--image-guidance", type=float, metavar="S", help="towards the images of the prompt; 1 is off")
    group.add_argument("--guidance-interval", type=float, nargs=2, metavar=("LO", "HI"), help="noise levels in [0, 1] where guidance acts")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")


KNOBS = (
    "seed", "temperature", "top_p", "max_new_tokens", "max_images", "image_size", "steps", "solver", "shift", "guidance",
    "image_guidance", "guidance_interval", "negative_prompt", "preset",
)  # fmt: skip


def _knobs(options: argparse.Namespace) -> dict:
    """The sampling options that were given: defaults live in fusion.generation.sampling alone."""
    given = {name: value for name, value in vars(options).items() if name in KNOBS}
    if "guidance_interval" in given:
        given["guidance_interval"] = tuple(given["guidance_interval"])
    return given


def _load(options: argparse.Namespace):
    """The model that an option names, without the chatter of loading."""
    from fusion.generation.api import load

    _quiet()
    given = vars(options)
    return load(options.model, **{name: given[name] for name in ("device", "device_map", "dtype") if name in given})


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _screen(options: argparse.Namespace):
    from fusion.cli.screen import Screen

    return Screen(options.out, sys.stdout.isatty() if options.show is None else options.show)


def generate(options: argparse.Namespace) -> None:
    """`fusion generate`"""
    from fusion.generation.conversation import read_words

    words = read_words(options.words)
    if options.n < 1 or (options.n > 1 and isinstance(words, dict)):
        raise ValueError(f"-n {options.n}: ask for one answer or more, and for one alone where a file holds a document without roles")
    prompt = with_system(words, options.system if "system" in options else None)
    screen, knobs = _screen(options), _knobs(options)
    model = _load(options)
    if options.n == 1:
        for event in model.stream(prompt, previews=screen.show, **knobs):
            screen.take(event)
    else:
        answers = [[] for _ in range(options.n)]
        for event in model.stream([prompt] * options.n, previews=False, **knobs):
            answers[event.row].append(event)
        for row, events in enumerate(answers):
            screen.line(f"seed {knobs.get('seed', 0) + row}:")
            for event in events:
                screen.take(event)
    screen.end_line()


def with_system(prompt: list | dict, system: str | None) -> list | dict:
    """A prompt (words and images, or messages) behind a system message; raises ValueError where it has no place."""
    if system is None:
        return prompt
    if isinstance(prompt, dict) or (isinstance(prompt[0], dict) and prompt[0].get("role") == "system"):
        raise ValueError("--system has no place in this file: it is a document without roles, or has a system message of its own")
    if not isinstance(prompt[0], dict):
        blocks = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in prompt]
        prompt = [{"role": "user", "content": blocks}]
    return [{"role": "system", "content": system}, *prompt]


def edit(options: argparse.Namespace) -> None:
    """`fusion edit`"""
    from fusion.sequence.images import open_image

    image, screen = open_image(options.image), _screen(options)
    screen.image(_load(options).edit(image, options.instruction, **_knobs(options)))


def describe(options: argparse.Namespace) -> None:
    """`fusion describe`"""
    from fusion.sequence.images import open_image

    images = [open_image(path) for path in options.images]
    asked = {"prompt": options.prompt} if "prompt" in options else {}
    model = _load(options)
    for path, image in zip(options.images, images):
        words = model.describe(image, **asked, **_knobs(options))
        print(f"{path}: {words}" if len(images) > 1 else words, flush=True)


def chat(options: argparse.Namespace) -> None:
    """`fusion chat`"""
    from fusion.cli.chat import Chat
    from fusion.generation import conversation

    messages = conversation.read(options.resume) if "resume" in options else []
    if isinstance(messages, dict):
        raise ValueError(f"{options.resume}: is a document without roles; give a file of chat messages")
    if "system" in options:
        messages = with_system(messages, options.system) if messages else [{"role": "system", "content": options.system}]
    screen = _screen(options)
    talk = Chat(_load(options), screen, messages, **_knobs(options))
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 -- gives input() its history and line editing

        screen.line("Say something, or /help.")
    talk.run(lambda: input("› " if interactive else ""))


def inspect(options: argparse.Namespace) -> None:
    """`fusion inspect`"""
    from fusion.common.files import image_path, save_image
    from fusion.generation.conversation import read_words
    from fusion.sequence.inspect import draw_packed, summary
    from fusion.sequence.packed import finish, layout, pack

    out = image_path(options.out, "inspect.png")
    source = read_words(options.words)
    if isinstance(source, list) and not isinstance(source[0], dict):
        blocks = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in source]
        source = [{"role": "user", "content": blocks}] if options.prompt else {"content": blocks}
    processor = _processor(options.model, options.stride)
    pieces = finish(processor.pieces(processor.document(source, prompt=options.prompt)), keep_tail=options.tail)
    packed = pack([[layout(pieces, processor.control)]])
    drawing = draw_packed(packed, processor)
    print(summary(packed, processor))
    print(save_image(drawing, out))


def data(options: argparse.Namespace) -> int:
    """`fusion data`"""
    from fusion.data import check
    from fusion.data import check_page as preview
    from fusion.data.formats import Split

    if options.column and not options.format:
        raise ValueError("--column goes with --format: say what the rows are")
    sources = check.open_as(options.path, options.format, dict(options.column)) if options.format else check.recognise(options.path)
    reader = check.Reader(_any_processor(options), options.tokenizer or "a small tokenizer", options.length)
    findings = check.check(sources, Split(held_out=options.held_out, seed=options.split_seed), reader)
    print(check.render(findings))
    print(preview.write(findings, sources, reader, options.out))
    return int(findings.flawed)


def _any_processor(options: argparse.Namespace):
    """The processor of --tokenizer, or else one with the bundled tokenizer, which leaves images as large as they are."""
    from fusion.sequence.processor import FusionProcessor

    if options.tokenizer:
        return _processor(options.tokenizer, options.stride)
    bundled = _processor("shapes", options.stride)
    return FusionProcessor.from_tokenizer(bundled.tokenizer, bundled.vocab_base, options.stride)


def plan(options: argparse.Namespace) -> None:
    """`fusion plan`: fusion/planning/plan.py, which comes with a clone and not with the package."""
    clone = Path(__file__).resolve().parent.parent
    if not (clone / "train" / "plan.py").is_file():
        raise ValueError("plan tells of runs of training, which this installation lacks: run it in a clone of the repository")
    sys.path.insert(0, str(clone))
    _quiet()
    given = {name: value for name, value in vars(options).items() if name != "command"}
    import_module("fusion.planning.plan").plan(**given)


def _processor(name: str, stride: int):
    """The processor of a fusion model, bundled ones too, or the one that an LLM would get."""
    from transformers import AutoConfig, AutoTokenizer

    from fusion.generation.api import BUNDLED
    from fusion.sequence.processor import FusionProcessor
    from fusion.unified.model import FusionConfig

    _quiet()
    AutoConfig.register(FusionConfig.model_type, FusionConfig, exist_ok=True)
    folder = BUNDLED / name if (BUNDLED / name / "config.json").is_file() and not os.path.exists(name) else name
    try:
        config = AutoConfig.from_pretrained(folder)
        if isinstance(config, FusionConfig):
            return FusionProcessor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{name}: neither a fusion model nor an LLM in Hugging Face format ({error})") from None
    return FusionProcessor.from_tokenizer(tokenizer, config.get_text_config().vocab_size, stride)


COMMANDS = {
    "generate": generate, "edit": edit, "describe": describe, "chat": chat, "inspect": inspect, "data": data, "plan": plan,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 (`data` has a 1 too), 2 after an error, 130 when interrupted."""
    try:
        options = parser().parse_args(arguments)
        return COMMANDS[options.command](options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has gone: that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("FUSION_DEBUG") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"fusion: error: {message}", file=sys.stderr)
        return 2
    return 0
