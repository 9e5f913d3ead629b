"""Named, versioned ways to ask and to score: published protocols, each benchmark's own, and what is known to be wrong with other
scorers."""

from collections.abc import Callable

from vital_jax.evaluate.protocols import choice, llava_med, lmms_eval, medevalkit, mmmu, paper, pathvqa
from vital_jax.evaluate.protocols.core import Metric, Parsed, Protocol, Scored, ScorerStops, apply, family
from vital_jax.evaluate.protocols.defects import defects_table
from vital_jax.evaluate.protocols.floors import with_floors
from vital_jax.evaluate.protocols.predictions import read_predictions, write_predictions

# Each is made with options: compat (the scorer's own arithmetic), judge (verdicts that came with the predictions).
PROTOCOLS: dict[str, tuple[Callable[..., Protocol], tuple[str, ...]]] = {
    "paper": (lambda: paper.PAPER, ()),
    "llava_med": (llava_med.llava_med, ("compat",)),
    "medevalkit": (medevalkit.medevalkit, ("compat", "judge")),
    "lmms_eval": (lmms_eval.lmms_eval, ("compat",)),
    "pathvqa": (pathvqa.pathvqa, ("compat",)),
    "pmc_vqa": (choice.pmc_vqa, ("compat",)),
    "omnimedvqa": (choice.omnimedvqa, ("compat",)),
    "medxpertqa": (lambda: choice.MEDXPERTQA, ()),
    "mmmu": (mmmu.mmmu, ("compat",)),
    "gemex": (lambda: choice.GEMEX, ()),
}
# A benchmark's own protocol; None where nobody maintains a scorer for it.
OFFICIAL: dict[str, str | None] = {
    "vqa_rad": None, "slake": None, "pathvqa": "pathvqa", "pmc_vqa": "pmc_vqa", "omnimedvqa": "omnimedvqa", "medxpertqa": "medxpertqa",
    "mmmu": "mmmu", "mmmu_pro": "mmmu", "gemex": "gemex",
}  # fmt: skip


def get(name: str, **options: bool) -> Protocol:
    """The protocol of a name, for example get("medevalkit", compat=True).

    Raises: ValueError for an unknown name or an option that the protocol does not have.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    make, known = PROTOCOLS[name]
    chosen = [option for option, on in options.items() if on]
    if wrong := [option for option in chosen if option not in known]:
        has = f"has {', '.join(known)}" if known else "has no options"
        raise ValueError(f"protocol {name!r} has no {', '.join(wrong)}; it {has}")
    return make(**dict.fromkeys(chosen, True))


def official(benchmark: str) -> Protocol:
    """A benchmark's own protocol; parts and languages of a benchmark share it.

    Raises: ValueError where no official scorer is maintained, or for a benchmark that is not known here.
    """
    if family(benchmark) not in OFFICIAL:
        raise ValueError(f"no benchmark {benchmark!r} with a protocol of its own; there are {', '.join(OFFICIAL)}")
    name = OFFICIAL[family(benchmark)]
    if name is None:
        raise ValueError(
            f"no official scorer of {benchmark} is maintained; name a protocol: paper, llava_med, medevalkit or lmms_eval"
        )
    return get(name)


def protocols_table() -> str:
    """Every protocol with its options and where it comes from, as plain text."""
    blocks = []
    for make, known in PROTOCOLS.values():
        options = f" (options: {', '.join(known)})" if known else ""
        blocks.append(f"{make().label}{options}\n  {make().about}")
    return "\n".join(blocks)


__all__ = [
    "OFFICIAL",
    "PROTOCOLS",
    "Metric",
    "Parsed",
    "Protocol",
    "Scored",
    "ScorerStops",
    "apply",
    "defects_table",
    "family",
    "get",
    "official",
    "protocols_table",
    "read_predictions",
    "with_floors",
    "write_predictions",
]
