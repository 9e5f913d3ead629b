"""What the audits say in words: conclusions that the whole table supports, never one line alone.

Each line is first taken for one of five findings: accuracy is lower, higher, the same within `MARGIN`, open, or was not measured. A
conclusion is then a row of a decision table over the findings of *all* lines that bear on it, so that "accuracy falls with another sample's
latents" cannot become "the latents matter" where zeros or the mean latent do as well. The first row that fits is said; each table ends with
"is open". Conclusions are about accuracy, which is what was measured, and give the lines they rest on.
"""

from collections.abc import Mapping, Sequence

from vital_jax.evaluate.audit_table import (
    ACCURACY,
    GREY,
    IMAGES,
    NO_STEPS,
    RUN,
    SIDES,
    SWAPPED,
    SWEEP,
    TOKENS,
    Line,
)  # fmt: skip
from vital_jax.evaluate.replacements import OTHER, REPLAYED, SAME
from vital_jax.statistics import wilson

MARGIN = 0.02  # differences of accuracy up to 2 points are called none
FEW = 0.1  # where not one answer changed, that is called none if at most this share of others would
LOWER, HIGHER, EQUAL, OPEN, UNKNOWN = "lower", "higher", "the same", "open", "not measured"
MIXED = "the same for some"  # of several lines: some do as well as the run, and some do not
MEAN, ZEROS, NOISE = "mean latent", "zeros", "noise of the same length"
STILL, REPEATED = "z_0 in every slot", "first latent repeated"
EACH_OWN = "K of each record, unknown in use"

# What several lines say together, as one finding.
EVERY = "every replacement"  # EQUAL only where all are
EMPTY = "vectors that know nothing of the question"  # MEAN, ZEROS, NOISE
WRONG = "latents of other samples"  # OTHER, SAME
OTHERS = "other numbers of steps"  # K >= 1 but the run's own
SIDED = "sides in a mirrored image"  # LOWER where most answers do not follow

Row = tuple[Mapping[str, Sequence[str]], str]
NOT_EQUAL, NOT_LOWER = (LOWER, OPEN, UNKNOWN), (EQUAL, OPEN, UNKNOWN)

MISLED = (
    "Wrong latents mislead, but vectors that know nothing of the question serve as well as the run's own: accuracy "
    "does not need what the latents hold."
)
LATENTS: tuple[Row, ...] = (
    (
        {REPLAYED: (LOWER, HIGHER)},
        "Replaying the run's own latents changes accuracy by itself, so nothing follows from other vectors in their place.",
    ),
    (
        {EVERY: (HIGHER,)},
        "Some other vectors serve the answers better than the run's own latents, so the table shows no use of what these hold.",
    ),
    (
        {EVERY: (EQUAL,)},
        "Accuracy does not depend on what stands in the latent slots.",
    ),
    ({OTHER: (LOWER,), EMPTY: (EQUAL, MIXED)}, MISLED),
    ({SAME: (LOWER,), EMPTY: (EQUAL, MIXED)}, MISLED),
    (
        {OTHER: (LOWER,), SAME: (LOWER,), MEAN: (LOWER,), SWAPPED: NOT_EQUAL, GREY: NOT_EQUAL},
        "Accuracy depends on what the latents hold about this image.",
    ),
    (
        {OTHER: (LOWER,), SAME: (EQUAL,), MEAN: (LOWER,)},
        "Accuracy depends on the latents only as far as they tell which kind of question is asked: those of another image do as "
        "well.",
    ),
    (
        {OTHER: (LOWER,), MEAN: (LOWER,)},
        "Accuracy depends on what the latents hold; that it is about this image is not shown.",
    ),
    (
        {OTHER: (LOWER,), SAME: NOT_LOWER, MEAN: (OPEN, UNKNOWN)},
        "Latents of another sample lower accuracy, but neither their mean nor those of the same question are shown to: whether "
        "accuracy needs what the latents hold is open.",
    ),
    (
        {WRONG: (EQUAL,), MEAN: (EQUAL,)},
        "Accuracy does not depend on what one latent holds and another does not.",
    ),
    (
        {MEAN: (EQUAL,)},
        "The mean latent serves as well as the run's own: accuracy does not need what a particular latent holds.",
    ),
    (
        {},
        "Whether accuracy depends on what the latents hold is open.",
    ),
)
STEPS: tuple[Row, ...] = (
    (
        {NO_STEPS: (HIGHER,)},
        "Without latent steps accuracy is higher.",
    ),
    (
        {OTHERS: (HIGHER,)},
        "With another number of steps accuracy is higher than with the run's own.",
    ),
    (
        {NO_STEPS: (EQUAL,), OTHERS: (EQUAL, UNKNOWN)},
        "Accuracy is the same at every number of steps and without any: the steps, though trained, are not needed for these "
        "answers.",
    ),
    (
        {NO_STEPS: (EQUAL,)},
        "Without latent steps accuracy is the same: it does not need them, though not every number of steps does as well.",
    ),
    (
        {NO_STEPS: (LOWER,), OTHERS: (LOWER,)},
        "Every other number of steps loses, as taking none does: accuracy depends on being asked with the run's own number, and "
        "whether the steps do anything does not follow.",
    ),
    (
        {NO_STEPS: (LOWER,), EMPTY: (EQUAL, MIXED)},
        "Without latent slots accuracy is lower, but vectors that know nothing of the question fill them as well: the steps "
        "that write into them are not needed.",
    ),
    (
        {NO_STEPS: (LOWER,), STILL: (EQUAL,)},
        "Without latent slots accuracy is lower, but the state after the prompt in every slot does as well: the steps that "
        "update it are not needed.",
    ),
    (
        {NO_STEPS: (LOWER,), OTHERS: (EQUAL, MIXED, UNKNOWN), MEAN: (LOWER,), ZEROS: (LOWER,), REPEATED: NOT_EQUAL},
        "Accuracy needs the latent steps: it is lower without them and with the mean latent or zeros in their place.",
    ),
    (
        {NO_STEPS: (LOWER,)},
        "Without latent steps accuracy is lower; whether that is for want of what the steps hold is open.",
    ),
    (
        {},
        "Whether accuracy needs the latent steps is open.",
    ),
)
NO_STEPS_TAKEN: tuple[Row, ...] = (
    (
        {OTHERS: (HIGHER,)},
        "The run is asked without latent steps, and with some number of them accuracy is higher.",
    ),
    (
        {OTHERS: (LOWER,)},
        "The run is asked without latent steps, and with any number of them accuracy is lower.",
    ),
    (
        {OTHERS: (EQUAL,)},
        "The run is asked without latent steps, and with any number of them accuracy is the same.",
    ),
    (
        {},
        "The run is asked without latent steps; what they would do to accuracy is open.",
    ),
)
PICTURES: tuple[Row, ...] = (
    (
        {SWAPPED: (HIGHER,)},
        "With the image of another question accuracy is higher, so nothing shows that the own one is used.",
    ),
    (
        {GREY: (HIGHER,)},
        "With an evenly grey image accuracy is higher, so nothing shows that the own one is used.",
    ),
    (
        {SWAPPED: (LOWER,), GREY: (LOWER,), SIDED: (LOWER,)},
        "Accuracy depends on the image, but most answers that name a side do not: they stay or go elsewhere when it is "
        "mirrored.",
    ),
    (
        {SWAPPED: (LOWER,), GREY: (LOWER,)},
        "Accuracy depends on the image.",
    ),
    (
        {SWAPPED: (LOWER,), GREY: (EQUAL,)},
        "The image of another question misleads, but an evenly grey one does as well as the own: accuracy does not need the "
        "image.",
    ),
    (
        {SWAPPED: (LOWER,)},
        "The image of another question lowers accuracy; whether the own one is needed is open.",
    ),
    (
        {SWAPPED: (EQUAL,), GREY: (LOWER,)},
        "Accuracy needs an image, but that of another question does as well.",
    ),
    (
        {SWAPPED: (EQUAL,), GREY: (EQUAL,)},
        "Accuracy does not depend on the image.",
    ),
    (
        {},
        "Whether accuracy depends on the image is open.",
    ),
)


def finding(line: Line, noise: float = 0.0) -> str:
    """What one line says of accuracy.

    Args:
      noise: the share of answers that change when nothing does; a replacement that changes no more is open.
    """
    low, high = line.difference_low, line.difference_high
    if line.changed == 0:
        return EQUAL if wilson(0, line.n)[1] <= FEW else OPEN
    if low is None or high is None or (line.changed is not None and line.changed <= noise):
        return OPEN
    if low > 0:
        return HIGHER
    if high < 0:
        return LOWER
    return EQUAL if low >= -MARGIN and high <= MARGIN else OPEN


def together(found: Sequence[str]) -> str:
    """Several findings as one: HIGHER where any is, one that all share, MIXED where some are EQUAL, else OPEN."""
    known = [one for one in found if one != UNKNOWN]
    if not known:
        return UNKNOWN
    if HIGHER in known:
        return HIGHER
    if len(set(known)) == 1:
        return known[0]
    return MIXED if EQUAL in known else OPEN


def findings(lines: Sequence[Line]) -> dict[str, str]:
    """The finding of every line about accuracy by what was done, and of those that belong together."""
    chosen = [line for line in lines if line.measure == ACCURACY and line.audit in (TOKENS, SWEEP, IMAGES)]
    noise = next((line.changed or 0.0 for line in chosen if line.what == REPLAYED), 0.0)
    found = {
        line.what: finding(line, noise if line.audit == TOKENS and line.what != REPLAYED else 0.0) for line in chosen
    }
    own = next((line.what for line in lines if line.audit == RUN), "")
    fixed = [line.what for line in chosen if line.audit == SWEEP and line.what not in (NO_STEPS, EACH_OWN, own)]
    replaced = [line.what for line in chosen if line.audit == TOKENS and line.what != REPLAYED]
    groups = {EVERY: replaced, EMPTY: (MEAN, ZEROS, NOISE), WRONG: (OTHER, SAME), OTHERS: fixed}
    found |= {name: together([found.get(what, UNKNOWN) for what in group]) for name, group in groups.items()}
    moved = next((line for line in lines if line.measure == SIDES), None)
    if moved:
        found[SIDED] = LOWER if moved.high < 0.5 else OPEN
    return found


def conclude(table: Sequence[Row], found: Mapping[str, str]) -> str:
    """The sentence of the first row whose findings are all among those it names."""
    return next(
        said for row, said in table if all(found.get(what, UNKNOWN) in allowed for what, allowed in row.items())
    )


def _measured(line: Line) -> str:
    if line.changed == 0:
        most = 100 * wilson(0, line.n)[1]
        return f"{line.what}, none of {line.n} answers changes (95 % interval 0 to {most:.1f} %)"
    ends = "no interval, all about one image"
    if line.difference_low is not None and line.difference_high is not None:
        ends = f"95 % interval {100 * line.difference_low:+.1f} to {100 * line.difference_high:+.1f}"
    changed = "" if line.changed is None else f", {100 * line.changed:.0f} % of the answers change"
    return f"{line.what} {100 * line.difference:+.1f} points ({ends}, N = {line.n}{changed})"


def sentences(lines: Sequence[Line]) -> list[str]:
    """What the table says, the latents first: a conclusion of each kind of audit, with the lines it rests on."""
    found = findings(lines)
    own = next((line.what for line in lines if line.audit == RUN), "")
    shown = {
        audit: [line for line in lines if line.measure == ACCURACY and line.audit == audit]
        for audit in (TOKENS, SWEEP, IMAGES)
    }
    named = (OTHER, SAME, MEAN, ZEROS, NOISE)
    shown[TOKENS] = [line for line in shown[TOKENS] if line.what in named]
    shown[SWEEP] = [line for line in shown[SWEEP] if line.what != own]
    steps = NO_STEPS_TAKEN if own == NO_STEPS else STEPS
    said = []
    for audit, table in ((TOKENS, LATENTS), (SWEEP, steps), (IMAGES, PICTURES)):
        if shown[audit]:
            said.append(f"{conclude(table, found)} Measured: {'; '.join(map(_measured, shown[audit]))}.")
    if found.get(EACH_OWN) == HIGHER:
        said.append(
            "At each record's own number of steps accuracy is higher, but that number follows from the kind of question, which nobody "
            "knows at use."
        )
    if moved := next((line for line in lines if line.measure == SIDES), None):
        said.append(
            f"In a mirrored image {100 * moved.value:.0f} % of the answers that name a side change to the other side as they must "
            f"(95 % interval {100 * moved.low:.0f} to {100 * moved.high:.0f}, N = {moved.n}); an answer that ignores the image never does."
        )
    replayed = next((line for line in lines if (line.audit, line.what) == (TOKENS, REPLAYED)), None)
    if replayed and replayed.changed:
        said.append(
            f"Caution: replaying the run's own latents changes {100 * replayed.changed:.1f} % of the answers, which is rounding alone; "
            "smaller effects are noise."
        )
    return said
