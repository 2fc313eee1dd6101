"""Replay: the LLM's own answers, asked for once, as documents whose answers are learned."""

import random

from fusion.data import replay


def test_what_is_replayed_is_never_what_is_measured():
    asked, measured = replay.prompts(), replay.questions()
    assert len(set(measured)) == 50 and len(set(asked)) == len(asked) > 100
    assert not set(asked) & set(measured) and all(text == text.strip() for text in asked + measured)


def test_answers_are_asked_for_once_and_kept(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(replay, "answers", lambda llm, asked: calls.append(llm) or ["Yes.", ""])
    monkeypatch.setattr(replay, "prompts", lambda: ["a?", "b?"])
    found = replay.replayed("llm", tmp_path / "replay.jsonl")
    again = replay.replayed("other", tmp_path / "replay.jsonl")
    assert len(found) == len(again) == 1, "an empty answer teaches nothing"
    assert calls == ["llm"] and found.name == "replay"
    sample = found.sample(0, random.Random(0))
    assert [turn["role"] for turn in sample.messages] == ["user", "assistant"]
    assert sample.messages[1]["content"] == [{"type": "text", "text": "Yes."}]
