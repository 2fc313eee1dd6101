"""A judge behind an endpoint: requests to a real local HTTP server, parsed answers, and one-line errors."""

import base64
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from fusion.evaluation.benchmarks import dpg
from fusion.evaluation.benchmarks import soft_tifa as tifa
from fusion.evaluation.benchmarks.judges import server
from fusion.evaluation.benchmarks.judges.server import Server
from fusion.evaluation.benchmarks.judges.vqa import ASKED
from tests.benchmarks.test_dpg import CAT, RED, drawn, save_questions
from tests.support.judges import error

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8))


class Endpoint(ThreadingHTTPServer):
    """Says what `reply` makes of each question: (status, body). Remembers headers and bodies."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.asked, self.headers = ["seer"], [], []
        self.reply = lambda question: (200, {"choices": [{"message": {"content": f"Yes: {question}"}}]})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._say(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers.append(self.headers)
        self._say(
            *self.server.reply(next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"))
        )

    def _say(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(server, "PAUSE", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Endpoint() as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def test_every_question_goes_with_the_image_and_answers_keep_their_order(endpoint):
    judge = Server(endpoint.url + "/")
    questions = [f"Is it {number}?" for number in range(20)]
    assert judge.name == "served seer" and judge.answers(IMAGE, questions) == [
        f"Yes: {ASKED.format(question=one)}" for one in questions
    ]
    shown = endpoint.asked[0]["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(shown.removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(sent), np.asarray(IMAGE))
    assert {body["model"] for body in endpoint.asked} == {"seer"} and endpoint.asked[0]["temperature"] == 0
    assert endpoint.headers[0]["Authorization"] is None


def test_the_key_is_the_environment_s(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Server(endpoint.url, "other").answers(IMAGE, ["Is it?"])
    assert endpoint.headers[0]["Authorization"] == "Bearer secret" and endpoint.asked[0]["model"] == "other"


def test_a_busy_server_is_asked_again(endpoint):
    left = [503, 429]
    right = endpoint.reply
    endpoint.reply = lambda question: (left.pop(), {}) if left else right(question)
    assert (
        Server(endpoint.url).answers(IMAGE, ["Is it?"]) == [f"Yes: {ASKED.format(question='Is it?')}"]
        and len(endpoint.asked) == 3
    )


@pytest.mark.parametrize(
    ("status", "body", "said", "tries"),
    [
        (200, b"<html>hello</html>", "not JSON but b'<html>hello</html>'", 1),
        (200, {"choices": []}, "no answer but", 1),
        (200, {"choices": [{"message": {"content": None}}]}, "no answer but", 1),
        (401, {"error": "no key"}, "refused (401 Unauthorized", 1),
        (500, {}, "no answer in 5 tries (500", 5),
    ],
)
def test_nonsense_is_one_line(status, body, said, tries, endpoint):
    endpoint.reply = lambda _: (status, body)
    with pytest.raises(ValueError) as caught:
        Server(endpoint.url).answers(IMAGE, ["Is it?"])
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1 and len(endpoint.asked) == tries


def test_which_model_is_asked_is_never_guessed(endpoint):
    endpoint.models = ["one", "two"]
    with pytest.raises(ValueError, match=r"2 models are served \(one, two\); name one with --served"):
        Server(endpoint.url)
    with pytest.raises(ValueError, match="is it running"):
        Server("http://127.0.0.1:1/v1")


def test_dpg_is_judged_by_a_server_and_its_words_are_kept(endpoint, subject, tmp_path, capsys):
    questions = save_questions(tmp_path / "questions.csv")
    (tmp_path / "prompts.jsonl").write_text(
        '{"id": "a", "prompt": "a red cat in a hat"}\n{"id": "b-2", "prompt": "a red cat"}\n'
    )
    drawn(tmp_path / "prompts.jsonl", tmp_path / "images")
    endpoint.reply = lambda question: (
        200,
        {"choices": [{"message": {"content": "No." if RED[1] in question else "Yes, it is."}}]},
    )
    words = [str(tmp_path / "images"), "--questions", str(questions), "-o", str(tmp_path / "results.json")]
    assert dpg.main([*words, "--judge", endpoint.url]) == 0
    told = json.loads((tmp_path / "results.json").read_text())
    assert (
        told["judges"] == ["served seer"]
        and told["prompts"]["a"]["value"] == pytest.approx(1 / 3)
        and told["prompts"]["b-2"]["value"] == 0.5
    )
    assert "Yes, it is." in (tmp_path / "results.answers.jsonl").read_text()
    asked = {body["messages"][0]["content"][1]["text"] for body in endpoint.asked}
    assert ASKED.format(question=CAT[1]) in asked and len(endpoint.asked) == 4 * 5
    (tmp_path / "results.json").unlink()
    for judge in (["--judge", "folder"], []):
        assert dpg.main([*words, *judge, "--served", "seer"]) == 1 and "--served names a model of a server" in error(
            capsys
        )


# ---- probabilities ----


def told(*tokens) -> dict:
    """An answer with its likeliest tokens."""
    likeliest = [{"token": token, "logprob": math.log(p)} for token, p in tokens]
    return {
        "choices": [
            {
                "message": {"content": tokens[0][0]},
                "logprobs": {"content": [{"token": tokens[0][0], "top_logprobs": likeliest}]},
            }
        ]
    }


def test_soft_tifa_is_judged_by_a_server_that_tells_probabilities(endpoint, tmp_path, capsys):
    questions = [["How many cats?", "two"], ["Any cats?", "Yes"]]
    rows = [{"prompt": "two cats", "atom_count": 2, "vqa_list": questions, "skills": ["count", "object"]}]
    (tmp_path / "data.jsonl").write_text(json.dumps(rows[0]) + "\n")
    IMAGE.save(tmp_path / "0.png")
    (tmp_path / "paths.json").write_text(json.dumps({"two cats": str(tmp_path / "0.png")}))
    counted = told((" two", 0.4), ("2", 0.3), ("three", 0.2), ("tw", 0.05), (" ", 0.05))
    endpoint.reply = lambda question: (200, counted if "many" in question else told(("No", 0.75), ("Yes", 0.25)))
    words = [
        str(tmp_path / "paths.json"),
        "--data",
        str(tmp_path / "data.jsonl"),
        "-o",
        str(tmp_path / "score_lists.json"),
        "--judge",
        endpoint.url,
    ]
    assert tifa.main(words) == 0 and "Soft-TIFA GM" in capsys.readouterr().out
    assert json.loads((tmp_path / "score_lists.json").read_text()) == [[pytest.approx(0.75), pytest.approx(0.25)]]
    assert {(body["max_tokens"], body["logprobs"], body["top_logprobs"]) for body in endpoint.asked} == {(1, True, 20)}
    (tmp_path / "score_lists.json").unlink()
    (tmp_path / "score_lists.answers.jsonl").unlink()
    endpoint.reply = lambda _: (200, {"choices": [{"message": {"content": "two"}, "logprobs": None}]})
    assert (
        tifa.main(words) == 1
        and "take a server that tells logprobs" in error(capsys)
        and not (tmp_path / "score_lists.json").exists()
    )
