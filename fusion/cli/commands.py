"""The commands of `fusion` that use one model or one data set; heavy modules are imported when a command runs."""

import argparse
import os
import sys

from fusion.cli.parser import SAMPLING_PARAMETERS


def _params(options: argparse.Namespace) -> dict:
    """Return the sampling parameters given as options; defaults are defined in fusion.generation.sampling alone."""
    given = {name: value for name, value in vars(options).items() if name in SAMPLING_PARAMETERS}
    if "guidance_interval" in given:
        given["guidance_interval"] = tuple(given["guidance_interval"])
    return given


def _load(options: argparse.Namespace):
    """Load the model named by `options.model`, without log messages and progress bars."""
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
    """Run `fusion generate`: continue a prompt of text and images."""
    from fusion.generation.conversation import read_words

    words = read_words(options.words)
    if options.n < 1 or (options.n > 1 and isinstance(words, dict)):
        raise ValueError(
            f"-n {options.n}: ask for one answer or more, and for one alone where a file holds a document without roles"
        )
    prompt = with_system(words, options.system if "system" in options else None)
    screen, params = _screen(options), _params(options)
    model = _load(options)
    if options.n == 1:
        for event in model.stream(prompt, previews=screen.show, **params):
            screen.take(event)
    else:
        answers: list[list] = [[] for _ in range(options.n)]
        for event in model.stream([prompt] * options.n, previews=False, **params):
            answers[event.row].append(event)
        for row, events in enumerate(answers):
            screen.line(f"seed {params.get('seed', 0) + row}:")
            for event in events:
                screen.take(event)
    screen.end_line()


def with_system(prompt: list | dict, system: str | None) -> list | dict:
    """Prepend a system message to a prompt (text and images, or messages); None returns the prompt as it is.

    Raises ValueError for a document without roles, or messages that have a system message.
    """
    if system is None:
        return prompt
    if isinstance(prompt, dict) or (isinstance(prompt[0], dict) and prompt[0].get("role") == "system"):
        raise ValueError(
            "--system has no place in this file: it is a document without roles, or has a system message of its own"
        )
    if not isinstance(prompt[0], dict):
        blocks = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in prompt
        ]
        prompt = [{"role": "user", "content": blocks}]
    return [{"role": "system", "content": system}, *prompt]


def edit(options: argparse.Namespace) -> None:
    """Run `fusion edit`: edit an image by an instruction."""
    from fusion.sequence.images import open_image

    image, screen = open_image(options.image), _screen(options)
    screen.image(_load(options).edit(image, options.instruction, **_params(options)))


def describe(options: argparse.Namespace) -> None:
    """Run `fusion describe`: print a description of each image, or an answer to a question about it."""
    from fusion.sequence.images import open_image

    images = [open_image(path) for path in options.images]
    asked = {"prompt": options.prompt} if "prompt" in options else {}
    model = _load(options)
    for path, image in zip(options.images, images):
        words = model.describe(image, **asked, **_params(options))
        print(f"{path}: {words}" if len(images) > 1 else words, flush=True)


def chat(options: argparse.Namespace) -> None:
    """Run `fusion chat`: an interactive conversation with a model."""
    from fusion.cli.chat import Chat
    from fusion.generation import conversation

    messages = conversation.read(options.resume) if "resume" in options else []
    if isinstance(messages, dict):
        raise ValueError(f"{options.resume}: is a document without roles; give a file of chat messages")
    if "system" in options:
        messages = (
            with_system(messages, options.system) if messages else [{"role": "system", "content": options.system}]
        )
    screen = _screen(options)
    talk = Chat(_load(options), screen, messages, **_params(options))  # type: ignore[arg-type]  # not a dict
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 -- gives input() its history and line editing

        screen.line("Say something, or /help.")
    talk.run(lambda: input("› " if interactive else ""))


def inspect(options: argparse.Namespace) -> None:
    """Run `fusion inspect`: print and draw the packed sequence of a document."""
    from fusion.common.files import image_path, save_image
    from fusion.generation.conversation import read_words
    from fusion.sequence.inspect import draw_packed, summary
    from fusion.sequence.packed import finish, layout, pack

    out = image_path(options.out, "inspect.png")
    source: list | dict = read_words(options.words)
    if isinstance(source, list) and not isinstance(source[0], dict):
        blocks = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in source
        ]
        source = [{"role": "user", "content": blocks}] if options.prompt else {"content": blocks}
    processor = _processor(options.model, options.stride)
    pieces = finish(processor.pieces(processor.document(source, prompt=options.prompt)), keep_tail=options.tail)
    packed = pack([[layout(pieces, processor.control)]])
    drawing = draw_packed(packed, processor)
    print(summary(packed, processor))
    print(save_image(drawing, out))


def data(options: argparse.Namespace) -> int:
    """Run `fusion data`: check a data set; returns 1 if a sample is bad or leaks, else 0."""
    from fusion.data import check
    from fusion.data import check_page as preview
    from fusion.data.formats import Split

    if options.column and not options.format:
        raise ValueError("--column goes with --format: say what the rows are")
    sources = (
        check.open_as(options.path, options.format, dict(options.column))
        if options.format
        else check.recognise(options.path)
    )
    reader = check.Reader(_any_processor(options), options.tokenizer or "a small tokenizer", options.length)
    findings = check.check(sources, Split(held_out=options.held_out, seed=options.split_seed), reader)
    print(check.render(findings))
    print(preview.write(findings, sources, reader, options.out))
    return int(findings.flawed)


def _any_processor(options: argparse.Namespace):
    """Return the processor of --tokenizer or, by default, a bundled one that does not resize images."""
    from fusion.sequence.processor import FusionProcessor

    if options.tokenizer:
        return _processor(options.tokenizer, options.stride)
    bundled = _processor("shapes", options.stride)
    return FusionProcessor.from_tokenizer(bundled.tokenizer, bundled.vocab_base, options.stride)


def plan(options: argparse.Namespace) -> None:
    """Run `fusion plan`: estimate memory, time and cost of a training run."""
    from fusion.planning.plan import plan as show

    _quiet()
    show(**{name: value for name, value in vars(options).items() if name != "command"})


def _processor(name: str, stride: int):
    """Return the processor of a fusion model (bundled ones too), or the one that an LLM would get.

    name: a bundled model, a folder, or a hub id. stride: pixels along the side of a patch, for an LLM. Raises
    ValueError if it is neither.
    """
    from transformers import AutoConfig, AutoTokenizer

    from fusion.common.llm_files import llm_folder
    from fusion.generation.api import BUNDLED, register
    from fusion.sequence.processor import FusionProcessor
    from fusion.unified.config import FusionConfig

    _quiet()
    register()
    folder = BUNDLED / name if (BUNDLED / name / "config.json").is_file() and not os.path.exists(name) else name
    try:
        folder = llm_folder(folder)
        config = AutoConfig.from_pretrained(folder)
        if isinstance(config, FusionConfig):
            return FusionProcessor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{name}: neither a fusion model nor an LLM in Hugging Face format ({error})") from None
    return FusionProcessor.from_tokenizer(tokenizer, config.get_text_config().vocab_size, stride)


COMMANDS = {
    "generate": generate,
    "edit": edit,
    "describe": describe,
    "chat": chat,
    "inspect": inspect,
    "data": data,
    "plan": plan,
}
