"""Golden outputs: what the bundled model answers to fixed inputs.

`python -m tests.support.golden_outputs` writes them anew, for when they are meant to change.
"""

import json
from pathlib import Path

import numpy as np
import torch

import fusion
from fusion.sequence.packed import Packed, layout, pack
from fusion.unified.objective import latents
from fusion.worlds.shapes import Scene, Thing, scene_image

PATH = Path(__file__).parents[1] / "golden" / "shapes.json"
TIME = 0.7
SIZE = (64, 48)  # width, height: more columns than rows, so that neither passes for the other


def scene(colour: str):
    """A square at the upper left and a circle of any colour at the lower right."""
    things = (
        Thing("square", "green", "small", "top left", 13, 8, 4),
        Thing("circle", colour, "large", "bottom right", 17, 40, 28),
    )
    return scene_image(Scene(*SIZE, "white", "grid", things))


def document(user: list[dict], colour: str) -> list[dict]:
    """Messages in which an assistant answers with a scene."""
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "image", "image": scene(colour)}]},
    ]


def packed(model: fusion.Fusion) -> Packed:
    """Two rows, a drawing and an edit, with fixed noise in their noised blocks, halfway in the one and far in the
    other."""
    drawing = document([{"type": "text", "text": "draw a green square and a red circle"}], "red")
    edit = document(
        [{"type": "image", "image": scene("red")}, {"type": "text", "text": "make the circle blue"}], "blue"
    )
    pieces = [model.processor.pieces(model.processor.document(messages, prompt=False)) for messages in (drawing, edit)]
    rows = latents(
        pack([[layout(one, model.processor.control)] for one in pieces]), model.codec, model.model.config.patch_size
    )
    time = torch.where(rows.noised_image, torch.linspace(TIME, 0.4, len(rows.source)), 0.0)
    noise = torch.from_numpy(np.random.RandomState(0).standard_normal(rows.patches.shape)).float()
    at = time[rows.image_of_patch][:, None]
    return rows.with_patches((1 - at) * rows.patches + at * noise, time)


@torch.no_grad()
def measure(model: fusion.Fusion | None = None) -> dict[str, list]:
    """Of the bundled model in fp32: of every learned token some logits, of every noised patch some values of the
    prediction, and of a drawn image the mean of each 16 x 16 pixels, from 0 to 1."""
    model = model or fusion.load("shapes", dtype=torch.float32)
    output = model.model(packed=packed(model))
    (image,) = model.draw("a red circle left of a blue square", seed=0, steps=4, guidance=3.0, image_size=SIZE)
    blocks = np.asarray(image, dtype=np.float64).reshape(SIZE[1] // 16, 16, SIZE[0] // 16, 16, 3).mean((1, 3)) / 255
    found = {
        "logits": output.logits[:, ::90],
        "prediction": output.prediction[:, ::97],
        "image": torch.from_numpy(blocks).flatten(1),
    }
    return {name: [[round(float(value), 5) for value in row] for row in values] for name, values in found.items()}


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    lines = (
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]"
        for name, rows in measure().items()
    )
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(PATH)
