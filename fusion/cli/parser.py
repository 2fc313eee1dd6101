"""The argument parser of `fusion`: every command with its options and examples. It imports nothing heavy."""

import argparse
from typing import NoReturn

from fusion.cli.programs import PROGRAMS

WORDS = (
    "text; @IMAGE for an image at this place (@cat.png); @FILE.json alone for chat messages; @@ begins a text with @"
)

DESCRIPTIONS = {
    "generate": (
        "write and draw what comes next",
        "Continue a prompt of text and images. The model decides when to draw, how large, and when to stop. Text is "
        "printed as it "
        "comes, images are saved under the first free name and their paths printed.",
        '  fusion generate shapes "Draw a red circle left of a blue square."\n'
        '  fusion generate shapes @cat.png "Make it blue." --seed 3 --steps 40 --out blue.png\n'
        '  fusion generate shapes "Draw two triangles." -n 4 --out drawn/',
    ),
    "edit": (
        "change an image as told",
        "Edit an image by an instruction. The result has the size of the original and is saved under the first "
        "free name.",
        '  fusion edit shapes scene.png "Make the circle green." --image-guidance 1.5 --out green.png',
    ),
    "describe": (
        "say what images show",
        "Describe each image in words, or answer a question about it.",
        '  fusion describe shapes scene.png\n  fusion describe shapes scene.png --prompt "How many circles are there?"',
    ),
    "chat": (
        "talk with a model",
        "Talk with a model at the terminal. It takes images (/image cat.png), shows the ones it draws and saves them; "
        "/help lists "
        "the other commands.",
        '  fusion chat shapes --out chat/\n  fusion chat shapes --system "You draw on beige ground." --resume '
        "chat/messages.json",
    ),
    "inspect": (
        "draw what a model reads",
        "Draw a document as the model reads it in training: tokens, clean images, noised blocks, what is learned, "
        "and who sees "
        "whom. Takes a model's folder, or an LLM's, of which only config and tokenizer are read. Words and images "
        "without roles "
        "are a document all of which is learned.",
        '  fusion inspect shapes @messages.json --out packed.png\n  fusion inspect path/to/llm "A cat." @cat.png '
        "--stride 16",
    ),
    "data": (
        "go through a data set",
        "Read every sample of a data set as training does, and say what is in it, what is bad and why, what comes "
        "twice, and what leaks from "
        "validation into training. All of it is written as a page too, with samples as the model reads them. Exit "
        "status: 0 if every "
        "sample is good, 1 if one is bad or leaks, 2 if the path is not a data set.",
        "  fusion data check my_images\n"
        "  fusion data check pairs.parquet --format edits --column instruction=prompt --tokenizer path/to/llm --length "
        "2048 -o pairs.html",
    ),
    "plan": (
        "say what a training run would take",
        "Tell parameters, memory, tokens, time and cost of a run of train.unified or train.diffusion, without a GPU "
        "and without an LLM's "
        "weights: its config suffices, and with its tokenizer the run's data are packed as they will be. Memory is "
        "followed through an "
        "imagined step, allocation by allocation; time is operations by the data sheet's speed and the share of it "
        "that you expect.",
        "  fusion plan configs/unified.yaml model.llm=out/llm data.path=my_data\n"
        "  fusion plan configs/smollm2.yaml data.path=my_images packing.rows=16 --gpus 8 --device h200 --price 3 --out "
        "batch.png\n"
        "  fusion plan configs/dit.yaml 'text_to_image.texts=[{path: google/t5-v1_1-xl}]' "
        "text_to_image.network.width=1152",
    ),
}


def size(text: str) -> tuple[int, int]:
    """Parse `64x48` to (width, height) in pixels; raises ArgumentTypeError."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write WIDTHxHEIGHT in pixels, such as 64x48")
    return int(width), int(height)


def column(text: str) -> tuple[str, str]:
    """Parse `text=caption` to (name, column); raises ArgumentTypeError."""
    name, equals, found = text.partition("=")
    if not (name and equals and found):
        raise argparse.ArgumentTypeError(f"{text!r} maps no column: write NAME=COLUMN, such as text=caption")
    return name, found


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ValueError in one line instead of exiting the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; an option without a default that is not given is missing from its result."""
    top = Parser(
        prog="fusion",
        description="One model that reads and writes both text and images.",
        epilog="fusion COMMAND --help tells more, with examples.",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    made = {}
    for name, (short, description, example) in DESCRIPTIONS.items():
        made[name] = commands.add_parser(
            name,
            help=short,
            description=description,
            epilog=f"examples:\n{example}",
            formatter_class=Formatter,
            argument_default=argparse.SUPPRESS,
        )
    _generate_options(made["generate"])
    _edit_options(made["edit"])
    _describe_options(made["describe"])
    _chat_options(made["chat"])
    _inspect_options(made["inspect"])
    _data_options(made["data"])
    _plan_options(made["plan"])
    for name, (short, _) in PROGRAMS.items():
        commands.add_parser(name, help=short, add_help=False)
    return top


class Formatter(argparse.HelpFormatter):
    """A help formatter that wraps descriptions, and leaves examples as they are."""

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
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="the images; with several, each line begins with the name"
    )
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
    command.add_argument(
        "--tail",
        action="store_true",
        default=False,
        help="keep the clean copy of a last image, so that stopping is learned",
    )
    command.add_argument(
        "--stride", type=int, default=8, help="for an LLM: pixels along the side of a patch (default 8)"
    )
    command.add_argument(
        "--out", metavar="PATH", default="inspect.png", help="file or folder for the image (default inspect.png)"
    )


def _data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("check",), help="what to do with it")
    command.add_argument(
        "path", metavar="PATH", help="folder of images, texts or tables; or a .jsonl, .csv, .parquet or .txt file"
    )
    command.add_argument(
        "--format",
        choices=("images", "edits", "pages", "chats", "text"),
        default=None,
        help="default: told by its columns",
    )
    command.add_argument(
        "--column",
        metavar="NAME=COLUMN",
        type=column,
        action="append",
        default=[],
        help="with --format: which column holds what (text=caption)",
    )
    command.add_argument(
        "--tokenizer",
        metavar="MODEL",
        default=None,
        help="the fusion model, or the LLM, that is to read it (default: a small one)",
    )
    command.add_argument(
        "--stride", type=int, default=8, help="for an LLM: pixels along the side of a patch (default 8)"
    )
    command.add_argument(
        "--length",
        type=int,
        metavar="N",
        default=None,
        help="tokens in a row of training: a longer conversation is bad",
    )
    command.add_argument(
        "--held-out", type=float, metavar="SHARE", default=0.05, help="of the subjects, for validation (default 0.05)"
    )
    command.add_argument("--split-seed", type=int, metavar="N", default=0, help="chooses which subjects (default 0)")
    command.add_argument(
        "-o", "--out", metavar="PATH", default="check.html", help="file or folder for the page (default check.html)"
    )


def _plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="YAML file of a run of train.unified or train.diffusion")
    command.add_argument(
        "words", nargs="*", default=[], metavar="key=value", help="what is different from the file, before the options"
    )
    command.add_argument("--gpus", type=int, default=1, metavar="N", help="devices, each with all weights (default 1)")
    command.add_argument(
        "--device", choices=("h100", "h200", "a100", "4090", "cpu"), default="h100", help="which (default h100)"
    )
    command.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the data sheet's speed that is reached (default 0.4)",
    )
    command.add_argument("--price", type=float, default=None, metavar="DOLLARS", help="of a device for an hour")
    command.add_argument(
        "--out", metavar="PATH", default=None, help="file or folder for an image of the first packed row, or pairs"
    )


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder of a fusion model")
    command.add_argument("--device", help="cpu, cuda, mps, ... (default cpu)")
    command.add_argument(
        "--device-map", metavar="MAP", help="auto spreads the layers over GPUs and CPU (docs/loading.md)"
    )
    command.add_argument(
        "--dtype", metavar="NAME", help="of the weights: bf16, fp16, fp32, or auto, as saved (default auto)"
    )
    command.add_argument("--seed", type=int, help="of everything that is drawn by chance (default 0)")


def _out_options(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument(
        "--out",
        metavar="PATH",
        default=name,
        help=f"file or folder for images; taken names are numbered, never overwritten (default {name})",
    )
    command.add_argument(
        "--show",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="draw images in the terminal (default: if it is one)",
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
    group.add_argument(
        "--preset",
        metavar="NAME",
        help="fast, balanced, best, ...: sampling parameters saved with the model; options beside it win",
    )
    group.add_argument(
        "--image-size", type=size, metavar="WxH", help="width x height in pixels; else the model chooses"
    )
    group.add_argument("--steps", type=int, metavar="N", help="solver steps for an image")
    group.add_argument("--solver", metavar="NAME", help="euler, heun or multistep method; a wrong name lists them")
    group.add_argument("--shift", type=float, metavar="S", help="above 1: more of the steps at high noise")
    group.add_argument("--guidance", type=float, metavar="S", help="towards the text; 1 is off")
    group.add_argument("--image-guidance", type=float, metavar="S", help="towards the images of the prompt; 1 is off")
    group.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="noise levels in [0, 1] where guidance acts",
    )
    group.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")


SAMPLING_PARAMETERS = (
    "seed",
    "temperature",
    "top_p",
    "max_new_tokens",
    "max_images",
    "image_size",
    "steps",
    "solver",
    "shift",
    "guidance",
    "image_guidance",
    "guidance_interval",
    "negative_prompt",
    "preset",
)
