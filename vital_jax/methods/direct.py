"""Direct answers: the answer is read from the prompt, without latents. With adapters this is plain LoRA, the baseline of every method."""

import dataclasses

from vital_jax.methods.base import Budgets, Method, Phase
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.segments import Segment, Suffix


@dataclasses.dataclass(frozen=True)
class Direct(Method):
    """[answer], with the token mean of the cross entropy."""

    name = "direct"

    def layout(self, phase: Phase, budgets: Budgets) -> Layout:
        return Layout(suffix=self.asking(0, budgets))

    def asking(self, latent_steps: int, budgets: Budgets, eval_k: str = "fixed") -> Suffix:
        self.without_latents(latent_steps)
        return Suffix((Segment("tokens", "answer", budgets.answer, source="answer", supervised=True),))
