"""Coconut: continuous thoughts take the place of written steps, one after the other (Hao et al. 2024, arXiv 2412.06769).

    stage s: [<bot>, latent c s, <eot>, chain[s:], lead-in, answer]

Stage 0 is the whole written chain between markers. Each later stage drops one more step and puts c latents in its place; from stage
`max_stage` + 1 on, no step is written. The only loss is the token mean over what is written. A latent's input is the state before it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from vital_jax.methods.base import Budgets, Method, Phase, Switch
from vital_jax.models.backbone import LATENT_STATES
from vital_jax.pipeline.batch import Layout
from vital_jax.pipeline.segments import Segment, Suffix

BOT, EOT = "<|latent_start|>", "<|latent_end|>"
LEAD_IN = "### "


@dataclasses.dataclass(frozen=True)
class Coconut(Method):
    """The method and its switches.

    Attributes:
      c: latents for each step that is dropped. max_stage: the last stage that drops a single step.
      pad_latent_to_max: whether a record with fewer steps than the stage still takes c times the stage's latents.
      lead_in: the text before the answer.
    """

    c: int = 1
    max_stage: int = 4
    pad_latent_to_max: bool = False
    lead_in: str = LEAD_IN

    name = "coconut"
    exports = False  # its latents stand between markers
    added: ClassVar = {BOT: "<<", EOT: "<<"}  # as published: both start as the bracket that opens a written step there
    switches: ClassVar = {
        "c": Switch(1),
        "max_stage": Switch(4),
        "pad_latent_to_max": Switch(False, (False, True)),
        "latent_state": Switch("post_norm", LATENT_STATES),
        "lead_in": Switch(LEAD_IN),
    }

    def __post_init__(self) -> None:
        if self.c < 1 or self.max_stage < 1:
            raise ValueError(f"config.method: c={self.c} and max_stage={self.max_stage} are at least 1")

    @classmethod
    def steps_of(cls, settings: Mapping[str, Any], phase: Mapping[str, Any]) -> int:
        return settings["c"] * min(phase["stage"], settings["max_stage"])

    @property
    def own_steps(self) -> bool:
        return not self.pad_latent_to_max

    def layout(self, phase: Phase, budgets: Budgets) -> Layout:
        writes = phase.stage <= self.max_stage
        source, room = (f"chain[{phase.stage}:]", budgets.written) if writes else ("chain[:0]", 0)
        count = "all" if self.pad_latent_to_max else "own"
        return Layout(suffix=self._suffix(phase.latent_steps, source, room, budgets.answer, count))

    def asking(self, latent_steps: int, budgets: Budgets, eval_k: str = "fixed") -> Suffix:
        # How many steps a record has is not known in use, so every question takes the stage's latents. What the stage still writes ends
        # with the lead-in; after the last stage that comes at once.
        count = "own" if eval_k == "per_sample" else "all"
        return self._suffix(latent_steps, f"chain[{latent_steps // self.c}:]", budgets.written, budgets.answer, count)

    def _suffix(self, latent_steps: int, source: str, written: int, answer: int, count: str) -> Suffix:
        return Suffix(
            (
                Segment("tokens", "bot", text=BOT),
                Segment("latent", "latent", latent_steps, count=count, per_step=self.c, cut=True),
                Segment("tokens", "eot", text=EOT),
                Segment("tokens", "written", written, source=source, supervised=True),
                Segment("tokens", "lead_in", text=self.lead_in, supervised=True),
                Segment("tokens", "answer", answer, source="answer", supervised=True),
            )
        )
