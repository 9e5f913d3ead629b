"""Text chain of thought: the reasoning is written out, then the answer. What latent methods save, it spends.

    [chain, lead-in, answer]

In use the model writes its chain; where it has not come to the lead-in within the chain's budget, the lead-in is forced. The answer alone
is scored, the chain is shown.
"""

import dataclasses
from typing import ClassVar

from vital_jax.methods.base import Budgets, Method, Phase, Switch
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.segments import Segment, Suffix

LEAD_IN = "The answer is: "


@dataclasses.dataclass(frozen=True)
class TextCot(Method):
    """The method. lead_in: the text between chain and answer; never empty, since it ends the chain."""

    lead_in: str = LEAD_IN

    name = "text_cot"
    switches: ClassVar = {"lead_in": Switch(LEAD_IN)}

    def __post_init__(self) -> None:
        if not self.lead_in.strip():
            raise ValueError("config.method.lead_in is empty: nothing would end the chain")

    def layout(self, phase: Phase, budgets: Budgets) -> Layout:
        return Layout(suffix=self.asking(0, budgets))

    def asking(self, latent_steps: int, budgets: Budgets, eval_k: str = "fixed") -> Suffix:
        self.without_latents(latent_steps)
        return Suffix(
            (
                Segment("tokens", "written", budgets.written, source="chain[:]", supervised=True),
                Segment("tokens", "lead_in", text=self.lead_in, supervised=True),
                Segment("tokens", "answer", budgets.answer, source="answer", supervised=True),
            )
        )
