"""The tasks of the world: each function generates one random document."""

from collections.abc import Callable

import numpy as np

from fusion.worlds.shapes.chance import chance, pick, weighted, whole
from fusion.worlds.shapes.chat import turns_in_words
from fusion.worlds.shapes.edit_words import happening, request
from fusion.worlds.shapes.edits import Change, any_edit, try_edit
from fusion.worlds.shapes.examples import examples
from fusion.worlds.shapes.expect import Question
from fusion.worlds.shapes.options import Options
from fusion.worlds.shapes.questions import ask
from fusion.worlds.shapes.render import render
from fusion.worlds.shapes.sample import Sample, assistant, user
from fusion.worlds.shapes.scene import Scene, sample_scene
from fusion.worlds.shapes.words import NUMBERS, Caption, ask_for_image, caption, describe, user_style

DESCRIBE = (
    "describe the picture",
    "describe this picture",
    "what is in the picture?",
    "what do you see?",
    "what does the picture show?",
    "tell me what you see",
    "what is this a picture of?",
)
DESCRIBE_IN_DETAIL = (
    "describe the picture in detail",
    "describe this picture in detail",
    "tell me in detail what you see",
    "tell me all about the picture",
)
STORY_REQUESTS = (
    "tell me a story in {n} about {x}",
    "tell a story in {n} about {x}",
    "tell me a story with {n} about {x}",
    "a story in {n} about {x}",
    "i want a story with {n} about {x}",
)
STORY_OPENINGS = ("once there {was} {}.", "there {was} {}.", "here {is_} {}.", "a story of {}.")
STORY_STEPS = ("then {}.", "now {}.", "next {}.", "after that {}.", "{}.")
STORY_ENDS = ("at last {}.", "in the end {}.", "finally {}.")


def any_scene(rng: np.random.Generator, options: Options) -> Scene:
    """Generate a random scene by the weights of the options."""
    return sample_scene(
        rng, options.counts, options.image_sizes, options.held_out, kinds=options.kinds, distinct=options.distinct
    )


def text_to_image(rng: np.random.Generator, options: Options) -> Sample:
    """Generate a document: the user asks for an image; the assistant answers with just the image."""
    scene = any_scene(rng, options)
    told = caption(rng, scene, options.open, options.placed)
    messages = (user(ask_for_image(rng, told.text)), assistant(render(scene)))
    return Sample("text_to_image", messages, (scene,), told.claims, held_out=scene.held_out)


def image_to_text(rng: np.random.Generator, options: Options) -> Sample:
    """Generate a document: the user shows an image; the assistant describes it, in detail on request."""
    scene = any_scene(rng, options)
    prompt, told = _description(rng, scene)
    messages = (_shown(rng, scene, prompt), assistant(told.text))
    return Sample("image_to_text", messages, (scene,), told.claims, held_out=scene.held_out)


def questions(rng: np.random.Generator, options: Options) -> Sample:
    """Generate a document: one to four questions about one image, each answered in a few words.

    With probability `options.described`, a turn that describes the image is inserted.
    """
    asked = ()
    while not asked:
        scene = any_scene(rng, options)
        asked = ask(
            rng, scene, weighted(rng, {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}), options.questions, options.asked_colours
        )
    turns: list[Question | None] = list(asked)  # None: the image is described
    if options.described and chance(rng, options.described):
        turns.insert(whole(rng, 0, len(asked)), None)
    messages = []
    for question in turns:
        text, answer = _described(rng, scene) if question is None else (_asked(rng, question), question.answer)
        messages += [user(text) if messages else _shown(rng, scene, text), assistant(answer)]
    return Sample("questions", tuple(messages), (scene,), questions=asked, held_out=scene.held_out)


def _asked(rng: np.random.Generator, question: Question) -> str:
    return question.text if chance(rng, 0.5) else question.text.capitalize()


def _described(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    prompt, told = _description(rng, scene)
    return prompt, told.text


def _description(rng: np.random.Generator, scene: Scene) -> tuple[str, Caption]:
    """Return a user's request to describe the scene's image, and the description."""
    detail = chance(rng, 0.4)
    told = describe(rng, scene, detail)
    return user_style(rng, pick(rng, DESCRIBE_IN_DETAIL if detail else DESCRIBE)), told


def first_edit(rng: np.random.Generator, options: Options, kind: str | None = None) -> tuple[Scene, Change]:
    """Generate a scene and an edit of it, of the given kind or of a random kind.

    All kinds that the options' object counts allow are equally likely.
    """
    possible = options.edit_counts
    while True:
        chosen = kind or pick(rng, tuple(possible))
        grid = chosen in ("add", "move")
        scene = sample_scene(
            rng, possible[chosen], options.image_sizes, options.held_out, grid, options.kinds, options.distinct
        )
        change = try_edit(rng, scene, chosen)
        if change is not None:
            return scene, change


def edits(rng: np.random.Generator, options: Options) -> Sample:
    """Generate a document: the user asks for one to three successive changes of an image.

    The image is shown by the user or, with probability 0.25, was just drawn on request.
    """
    scene, change = first_edit(rng, options)
    if chance(rng, 0.25):
        told = caption(rng, scene, options.open, options.placed)
        messages, claims = [user(ask_for_image(rng, told.text)), assistant(render(scene))], told.claims
    else:
        messages, claims = [], None
    scenes, made = [scene], []
    for _ in range(weighted(rng, {1: 0.6, 2: 0.25, 3: 0.15})):
        edit, after = change if not made else any_edit(rng, scenes[-1])
        text = request(rng, edit, scenes[-1].kinds)
        messages += [user(text) if messages else _shown(rng, scene, text), assistant(render(after))]
        scenes.append(after)
        made.append(edit)
    return Sample(
        "edits", tuple(messages), tuple(scenes), claims, edits=tuple(made), held_out=any(s.held_out for s in scenes)
    )


def stories(rng: np.random.Generator, options: Options) -> Sample:
    """Generate a document with one assistant turn of alternating sentences and images.

    They tell of a scene that changes step by step.
    """
    scene, change = first_edit(rng, options)
    told = caption(rng, scene, open_share=0)
    parts, scenes, made = [_opening(rng, told.text), render(scene)], [scene], []
    steps = weighted(rng, {1: 0.4, 2: 0.4, 3: 0.2})
    for step in range(steps):
        edit, after = change if not made else any_edit(rng, scenes[-1])
        frames = STORY_ENDS if step == steps - 1 > 0 and chance(rng, 0.7) else STORY_STEPS
        parts += [pick(rng, frames).format(happening(rng, edit, scenes[-1].kinds)), render(after)]
        scenes.append(after)
        made.append(edit)
    number = f"{NUMBERS[len(scenes)]} pictures" if chance(rng, 0.7) else "pictures"
    prompt = user_style(rng, pick(rng, STORY_REQUESTS).format(n=number, x=told.text))
    return Sample(
        "stories",
        (user(prompt), assistant(*parts)),
        tuple(scenes),
        told.claims,
        edits=tuple(made),
        held_out=any(s.held_out for s in scenes),
    )


def _opening(rng: np.random.Generator, text: str) -> str:
    was, is_ = ("were", "are") if text.startswith(NUMBERS[2:]) else ("was", "is")
    return pick(rng, STORY_OPENINGS).format(text, was=was, is_=is_)


def chat(rng: np.random.Generator, options: Options) -> Sample:
    """Generate a text-only conversation about the world: not every message that names a circle asks for an image."""
    scene = any_scene(rng, options)
    messages = [
        part for asked, said in turns_in_words(rng, scene) for part in (user(user_style(rng, asked)), assistant(said))
    ]
    return Sample("chat", tuple(messages), held_out=scene.held_out)


def _shown(rng: np.random.Generator, scene: Scene, text: str) -> dict:
    """Return a user turn with the scene's image and a text, mostly the image first."""
    parts = (render(scene), text)
    return user(*parts) if chance(rng, 0.85) else user(*reversed(parts))


TASKS: dict[str, Callable[[np.random.Generator, Options], Sample]] = {
    "text_to_image": text_to_image,
    "image_to_text": image_to_text,
    "questions": questions,
    "edits": edits,
    "stories": stories,
    "chat": chat,
    "examples": examples,
}
