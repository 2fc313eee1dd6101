"""Interactive chat in the terminal (`fusion chat`): a line is a user turn, or a command if it begins with a slash."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fusion.cli.screen import Screen, join
from fusion.generation import conversation
from fusion.sequence.images import open_image

HELP = """\
  /image PATH    add an image to what you say next (several are possible)
  /seed N        go on with this seed
  /save [FOLDER] write the conversation: messages.json and its images (default: chat)
  /reset         forget the conversation
  /quit          leave (so does Ctrl-D); Ctrl-C stops an answer
  //text         say something that begins with a slash"""


class Chat:
    """An interactive conversation with a model.

    Answers stream to the screen; a turn that fails or is interrupted is not added to the conversation. model: a Fusion.
    screen: shows and saves the answers. messages: the conversation so far. seed: of the first turn; each later turn
    takes the next one, so that a repeated request gives another image. params: sampling parameters of `Fusion.stream`.
    """

    def __init__(self, model, screen: Screen, messages: Sequence[dict] = (), seed: int = 0, **params):
        self.model, self.screen, self.params = model, screen, params
        self.start = list(messages)
        self.messages = list(messages)
        self.seed = seed
        self.images: list[dict] = []

    def run(self, read: Callable[[], str]) -> None:
        """Process lines until /quit or the end of the input.

        read: returns the next line; raises EOFError at the end.
        """
        while True:
            try:
                line = read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:  # discards the line that is being typed
                self.screen.line("")
                continue
            if line == "/quit":
                return
            if line:
                self.line(line)

    def line(self, line: str) -> None:
        """Process one input line, a command or a user turn.

        An error is printed in one line, and the conversation continues.
        """
        try:
            if line.startswith("/") and not line.startswith("//"):
                self.command(*line[1:].split(maxsplit=1))
            else:
                self.turn(line[1:] if line.startswith("//") else line)
        except (ValueError, OSError, RuntimeError) as error:
            self.screen.end_line()
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)

    def command(self, name: str = "", argument: str = "") -> None:
        """Execute `/name argument`; raises ValueError for an unknown command."""
        commands = {
            "image": self.add_image,
            "seed": self.set_seed,
            "save": self.save,
            "reset": self.reset,
            "help": self.help,
        }
        if name not in commands:
            raise ValueError(f"there is no /{name}; type /help")
        commands[name](argument)

    def turn(self, text: str) -> None:
        """Send a user turn with the waiting images, stream the model's answer, and add both to the conversation."""
        message = {"role": "user", "content": [*self.images, {"type": "text", "text": text}]}
        parts = []
        try:
            for event in self.model.stream([*self.messages, message], self.seed, self.screen.show, **self.params):
                parts.append(self.screen.take(event))
        except KeyboardInterrupt:
            self.screen.line("(stopped; this turn is forgotten)")
            return
        self.screen.end_line()
        answer = join([block for block in parts if block])
        self.seed += 1
        if not answer:
            self.screen.line("(no answer; this turn is forgotten)")
            return
        self.messages += [message, {"role": "assistant", "content": answer}]
        self.images = []

    def add_image(self, path: str) -> None:
        """Load an image that is sent with the next turn."""
        if not path:
            raise ValueError("/image needs the path of an image")
        image = open_image(Path(path).expanduser())
        self.images.append({"type": "image", "image": image})
        self.screen.line(f"(image {len(self.images)}, {image.width}x{image.height}: say what to do with it)")

    def set_seed(self, number: str) -> None:
        """Set the seed of the next turn; `number` is a decimal string."""
        if not number.isdecimal():
            raise ValueError(f"/seed needs a whole number, not {number!r}; the next seed is {self.seed}")
        self.seed = int(number)

    def save(self, folder: str) -> None:
        """Write the conversation (messages.json and images) to a new folder, `chat` by default.

        Raises ValueError if there is no message yet.
        """
        if not self.messages:
            raise ValueError("nothing was said yet, so there is nothing to save")
        self.screen.line(str(conversation.write(self.messages, Path(folder or "chat").expanduser())))

    def reset(self, _: str) -> None:
        """Discard the conversation, except for its initial messages, and the waiting images."""
        self.messages, self.images = list(self.start), []
        self.screen.line("(a new conversation)")

    def help(self, _: str) -> None:
        """Print the list of commands."""
        self.screen.line(HELP)
