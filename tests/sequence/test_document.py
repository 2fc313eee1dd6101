"""Messages to documents: what is learned, what is template, and what is refused."""

import pytest

from fusion.sequence.document import Image, Text, as_context, blocks, from_content, from_messages


def render(messages) -> str:
    return "".join(f"[{m['role']}]{m['content']}[stop]\n" for m in messages)


def user(*content):
    return {"role": "user", "content": content[0] if len(content) == 1 else [block(item) for item in content]}


def assistant(*content):
    return {"role": "assistant", "content": [block(item) for item in content]}


def block(item):
    return {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": item}


IMAGE_INDEX, DRAWN = object(), object()


def test_assistant_turns_and_what_closes_them_are_learned():
    document = from_messages([user(IMAGE_INDEX, "make it red"), assistant("done", DRAWN), user("thanks")], render)
    assert document == (
        Text("[user]", template=True),
        Image(IMAGE_INDEX),
        Text("make it red"),
        Text("[stop]\n[assistant]", template=True),
        Text("done", loss=True),
        Image(DRAWN, target=True),
        Text("[stop]\n[user]", loss=True, template=True),
        Text("thanks"),
        Text("[stop]\n", template=True),
    )


def test_a_prompt_has_nothing_to_learn():
    messages = [user("draw"), assistant(DRAWN), user("again")]
    assert from_messages(messages, render, prompt=True) == as_context(from_messages(messages, render))
    assert not any(
        part.target if isinstance(part, Image) else part.loss for part in from_messages(messages, render, prompt=True)
    )


def test_the_template_never_sees_what_people_wrote():
    shown = []
    text = "\ue0001\ue001 {{ nasty }} [stop]"

    def watch(messages):
        shown.append(render(messages))
        return shown[-1]

    document = from_messages([user(text), assistant("\ue000")], watch)
    assert "nasty" not in shown[0]
    assert [part.text for part in document if not part.template] == [text, "\ue000"]


def test_parts_keep_the_place_that_the_template_gives_them():
    document = from_messages(
        [user("a"), user("b")], lambda messages: messages[1]["content"] + "|" + messages[0]["content"]
    )
    assert [part.text for part in document] == ["b", "|", "a"]


def test_empty_text_leaves_no_part():
    assert from_messages([user("", IMAGE_INDEX)], render)[1] == Image(IMAGE_INDEX)


def test_a_template_that_leaves_a_message_out_is_refused():
    without_system = lambda messages: render([m for m in messages if m["role"] != "system"])  # noqa: E731
    with pytest.raises(ValueError, match=r"^the model's chat template leaves a message out: .*system prompt"):
        from_messages([{"role": "system", "content": "be brief"}, user("hello")], without_system)


def test_a_page_is_learned_whole():
    page = from_content([block("once"), block(DRAWN), block("upon")])
    assert page == (Text("once", loss=True), Image(DRAWN, target=True), Text("upon", loss=True))
    assert as_context(page) == (Text("once"), Image(DRAWN), Text("upon"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "a string or a list of blocks, not NoneType"),
        (7, "a string or a list of blocks, not int"),
        ([{"type": "video", "video": 1}], "a block is"),
        ([{"type": "image"}], "a block is"),
        (["draw"], "a block is"),
        ([{"type": "text", "text": 3.5}], "the text of a block is a string, not float"),
    ],
)
def test_content_that_is_no_content_is_refused_in_one_line(content, said):
    with pytest.raises(ValueError, match=said) as error:
        blocks(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("message", [{"content": "hello"}, {"role": "tool", "content": "hello"}, "hello"])
def test_a_message_without_a_known_role_is_refused(message):
    with pytest.raises(ValueError, match=r"^a message has a role: system, user or assistant, not "):
        from_messages([message], render)
