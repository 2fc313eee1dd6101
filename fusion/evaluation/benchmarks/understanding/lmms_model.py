"""A unified model behind lmms-eval's interface: images and a question in, text out."""

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from fusion.evaluation.benchmarks.understanding.asking import answers, prompt_of, together, wanted
from fusion.generation import api
from fusion.generation.sampling import Sampling
from fusion.sequence.images import open_image

NAME = "fusion"


class FusionModel(lmms):
    """A unified model as a model of lmms-eval.

    pretrained: folder of a unified model, or a bundled one's name. Request i of a call is answered with seed + i, alone
    or in a batch. max_new_tokens, temperature, top_p: override the task's. Raises ValueError, in one line, for invalid
    values.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int = 1,
        device: str | None = None,
        dtype: str | None = None,
        seed: int = 0,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ):
        super().__init__()
        params = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self.batch_size, self.seed, self.params = (
            int(batch_size),
            seed,
            {name: value for name, value in params.items() if value is not None},
        )
        Sampling(**self.params)
        self.fusion = api.load(pretrained, dtype=dtype, device=device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generate an answer to each request: (text, generation_kwargs, doc_to_visual, number, task, split)."""
        said: list[str] = []
        for places in tqdm(list(together([one.args[1] for one in requests], self.batch_size)), desc="answers"):
            part = [requests[place].args for place in places]
            params, until = wanted(part[0][1])
            prompts = [prompt_of(text, self._images(*where)) for text, _, *where in part]
            said += answers(self.fusion, prompts, self.seed + places[0], params | self.params, until)
        for one, text in zip(requests, said, strict=True):
            self.cache_hook.add_partial("generate_until", one.args, text)
        return said

    def _images(self, doc_to_visual, number, task, split) -> list:
        return [
            open_image(one, name=f"{task}, document {number}")
            for one in doc_to_visual(self.task_dict[task][split][number]) or []
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError: only tasks that generate answers are supported."""
        raise NotImplementedError("this model answers questions: choose tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raise NotImplementedError: questions in several rounds are not supported yet."""
        raise NotImplementedError(
            "questions in several rounds are not asked: choose tasks of output_type generate_until"
        )


def register() -> None:
    """Register FusionModel as a model of lmms-eval, by NAME."""
    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest(NAME, simple_class_path=f"{__name__}.{FusionModel.__name__}"), overwrite=True
    )
