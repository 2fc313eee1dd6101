"""bench.overlap: prompts and images of the scored items are found in the documents that have them."""

import json

from PIL import Image

from bench import measure, overlap
from fusion.data.formats import Sample
from fusion.worlds.shapes import evaluation_edits, evaluation_prompts


def document(text: str, image: Image.Image) -> Sample:
    blocks = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return Sample([{"role": "user", "content": blocks}], None, "chats", "0")


def test_what_documents_have_is_counted_by_category():
    prompt, image = evaluation_prompts(1)[0], Image.fromarray(evaluation_edits(1)[0].image)
    watched = overlap.Watched(images=True)
    assert watched.figures()["prompts"]["all"] == {"prompts": overlap.PROMPTS, "seen": 0}
    watched.look(iter([document(prompt.prompt, image)]))
    figures = watched.figures()
    assert figures["prompts"]["single object"]["seen"] == figures["prompts"]["all"]["seen"] >= 1
    assert figures["prompts"]["position, held out"]["prompts"] == 16
    assert figures["edit images"] == {"images": overlap.EDITS, "seen": 1}
    assert "edit images" not in overlap.Watched(images=False).figures()


def test_the_program_records_what_it_drew(tmp_path, monkeypatch, root):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    runs = ["world", "30", str(root / "configs" / "demo.yaml"), "20"]
    assert overlap.main([*runs, "--name", "overlap_tiny", "--texts-only"]) == 0
    (path,) = tmp_path.glob("overlap_tiny_*_cpu.json")
    record = json.loads(path.read_text())
    assert record["command"].startswith("python -m bench.overlap world 30 ") and record["runs"][0] == ["world", 30]
    assert 0 < record["figures"]["prompts"]["all"]["seen"] < 60
