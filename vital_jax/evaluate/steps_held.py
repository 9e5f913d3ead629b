"""What each latent step holds, for chains of n sentences and step k: is it the k-th thing, and not another?

Two readings, and neither is of the answer. The run's text decoder writes a sentence from z_k alone, which is compared with the record's
k-th; what the decoder would write anyway is in `text_floor`. A linear probe asks whether the name of what step j is about (metadata
`steps`) can be read off z_k, for all pairs: a loop that does one lookup a step holds the k-th name at step k, and not before. z_0, the
state after the prompt, is probed too, for what it holds no step had to find. That a name can be read off does not say that the answer
uses it.

The probe is ridge regression on one-hot targets, which is closed and needs no package: coordinates standardised by the training half, the
targets less their means, the penalty `RIDGE` times the mean squared length of the training latents, the answer the largest output. Images
are parted in two halves, each is the training of the other, and so every row is tested once, with nothing chosen on it.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate.audit_groups import Table, natural
from vital_jax.evaluate.audit_table import Line
from vital_jax.evaluate.geometry import alike
from vital_jax.pipeline.records import Record
from vital_jax.scoring.text import bare, normalise
from vital_jax.statistics import wilson

RIDGE = 0.01
_Labels = Sequence[Sequence[str]]


def labels_of(records: Sequence[Record]) -> list[list[str]]:
    """What each record's steps are about, empty where it does not say. Raises: ValueError naming one that does not say it of every step."""
    found = []
    for record in records:
        steps = [str(name) for name in record.metadata.get("steps", ())]
        if steps and len(steps) != len(record.chain):
            raise ValueError(
                f"record {record.id!r}: metadata 'steps' names {len(steps)} steps, its chain has {len(record.chain)}; name all or none"
            )
        found.append(steps)
    return found


def steps_held(
    records: Sequence[Record],
    z: np.ndarray,
    own: np.ndarray,
    z0: np.ndarray,
    images: Sequence[Hashable],
    said: Sequence[Sequence[str]] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What the steps of each kind of chain hold; JSON as it stands.

    Args:
      records: [n]; those without a chain are left out. z [n, K, D], own [n, K]: as `evidence.latents`. z0: [n, D].
      images: [n] what questions about one picture share. said: [n][K] sentences of the text decoder, if there is one.
      groups: [n] kinds that are kept apart; by default length alone parts chains. seed: of the halves.
    Returns: one for each kind, in their order: {"kind", "length" (n), "cosine", "rank" (as `geometry.alike`), and where it can be
      "read" {"z_1": {"step", "beyond", "n", "exact", "last_word"}}: against sentence k, or the last where the chain is shorter (`beyond`);
      "probe" {"most frequent" | "z_0" | "z_1" ...: [n shares, of step 1 first]}}; a share is {"n", "share", "low", "high"}, by Wilson.
    Raises: ValueError as `labels_of`.
    """
    labels = labels_of(records)
    kinds = [(group, len(one.chain)) for group, one in zip(groups or [""] * len(records), records, strict=True)]
    lengths = {kind: [n for other, n in set(kinds) if other == kind and n] for kind, _ in kinds}
    found = []
    for kind, length in sorted({kind for kind in kinds if kind[1]}, key=lambda one: (natural(one[0]), one[1])):
        places = np.flatnonzero([one == (kind, length) for one in kinds])
        name = f"{kind}, chain of {length}" if kind and len(lengths[kind]) > 1 else kind or f"chain of {length}"
        shown = [images[i] for i in places]
        one: dict[str, Any] = {"kind": name, "length": length, "n": len(places), **alike(z[places], own[places], shown)}
        if said is not None:
            one["read"] = _read([records[i].chain for i in places], [said[i] for i in places], own[places])
        named = [i for i in places if labels[i]]
        if len({images[i] for i in named}) > 1:
            latents = {"z_0": (z0[named], np.ones(len(named), bool))}
            latents |= {f"z_{k + 1}": (z[named, k], own[named, k]) for k in range(z.shape[1])}
            one["probe"] = _probed(latents, [labels[i] for i in named], [images[i] for i in named], seed)
        found.append(one)
    return found


def _share(hits: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    count, n = int(np.sum(hits)), len(hits)
    low, high = wilson(count, n)
    return {"n": n, "share": count / n, "low": low, "high": high}


# --- what the text decoder reads --------------------------------------------------------------------------------------


def _read(chains: Sequence[Sequence[str]], said: Sequence[Sequence[str]], own: np.ndarray) -> dict[str, Any]:
    length, out = len(chains[0]), {}
    for k in range(own.shape[1]):
        if len(rows := np.flatnonzero(own[:, k])):
            step = min(k, length - 1)
            pairs = [(chains[i][step], said[i][k]) for i in rows]
            exact, last = ([same(*pair) for pair in pairs] for same in (_exact, _last))
            one = {"step": step + 1, "beyond": k >= length, "n": len(rows)}
            out[f"z_{k + 1}"] = one | {"exact": _share(exact), "last_word": _share(last)}
    return out


def _exact(taught: str, said: str) -> bool:
    return normalise(taught) == normalise(said)


def _last(taught: str, said: str) -> bool:
    """Whether the last words are one, but for full stop and case."""
    return bool(said.strip()) and bare(taught).split()[-1:] == bare(said).split()[-1:]


# --- what a probe reads -----------------------------------------------------------------------------------------------


def halves(images: Sequence[Hashable], seed: int = 0) -> np.ndarray:
    """Which half each row is in, [n] 0 or 1, all rows of an image in one; they differ by one image at most."""
    each = list(dict.fromkeys(images))
    order = np.random.default_rng(seed).permutation(len(each))
    half = {image: int(place % 2) for image, place in zip(each, order, strict=True)}
    return np.array([half[image] for image in images])


def ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Outputs [m, C] for `asked` [m, D] of the regression of y [n, C] on x [n, D]; see the top."""
    x, y, asked = (np.asarray(each, np.float64) for each in (x, y, asked))
    middle, width = x.mean(0), x.std(0)
    width[width == 0] = 1.0
    x, asked = (x - middle) / width, (asked - middle) / width
    gram = x @ x.T
    penalty = RIDGE * np.trace(gram) / len(x) or 1.0  # all latents alike: only the means are left
    mean = y.mean(0)
    return mean + asked @ x.T @ np.linalg.solve(gram + penalty * np.eye(len(x)), y - mean)


def _probed(latents: dict[str, Any], labels: _Labels, images: Sequence[Hashable], seed: int) -> dict[str, Any]:
    half, length = halves(images, seed), len(labels[0])
    names = [sorted({row[j] for row in labels}) for j in range(length)]
    codes = [np.array([names[j].index(row[j]) for row in labels]) for j in range(length)]
    ends = np.cumsum([0, *map(len, names)])
    y = np.concatenate([np.eye(len(names[j]))[codes[j]] for j in range(length)], axis=1)

    def tested(outputs, counted: np.ndarray) -> list[dict[str, Any]] | None:
        """The shares of each step where `outputs(training, test)` decides; None where a half has no counted row."""
        scores = np.zeros(y.shape)
        for side in (0, 1):
            train, test = ((half == one) & counted for one in (1 - side, side))
            if not train.any() or not test.any():
                return None
            scores[test] = outputs(train, test)
        right = [scores[:, a:b].argmax(1) == code for a, b, code in zip(ends, ends[1:], codes, strict=False)]
        return [_share(each[counted]) for each in right]

    made = {"most frequent": tested(lambda train, test: y[train].mean(0), np.ones(len(y), bool))}
    for name, (x, counted) in latents.items():
        made[name] = tested(lambda train, test, x=x: ridge(x[train], y[train], x[test]), counted)
    return {name: shares for name, shares in made.items() if shares}


# --- as lines and tables ----------------------------------------------------------------------------------------------


def lines(found: Sequence[dict[str, Any]]) -> list[Line]:
    """The lines of the audit's table: each latent against its own step, and the most frequent name of each step."""
    out = []

    def add(what: str, measure: str, one: dict[str, Any]) -> None:
        out.append(Line(table.STEPS, what, measure, one["n"], one["share"], one["low"], one["high"], "Wilson"))

    for one in found:
        for name, read in one.get("read", {}).items():
            what = f"{one['kind']}: {name}, step {read['step']}{_beyond(read['beyond'])}"
            add(what, table.SENTENCE, read["exact"])
            add(what, table.LAST_WORD, read["last_word"])
        for name, shares in one.get("probe", {}).items():
            own = min(int(name[2:]), one["length"]) if name.startswith("z_") else 0
            for j, share in enumerate(shares, 1):
                if j == own or not name.startswith("z_"):
                    beyond = _beyond(name.startswith("z_") and int(name[2:]) > one["length"])
                    add(f"{one['kind']}: {name}, step {j}{beyond}", table.PROBE, share)
    return out


def _beyond(beyond: bool) -> str:
    return " (beyond its chain)" if beyond else ""


def tables(found: Sequence[dict[str, Any]]) -> list[Table]:
    """Sentences read, names probed for all pairs, and how alike the steps are, each as one table over the kinds of chains."""
    made: list[Table] = []
    percent = lambda one: f"{100 * one['share']:.1f}"  # noqa: E731
    ends = lambda one: f"{percent(one)} [{100 * one['low']:.0f}, {100 * one['high']:.0f}]"  # noqa: E731
    latents = sorted({name for one in found for name in one.get("read", {})}, key=lambda name: int(name[2:]))
    if latents:
        rows = [
            [one["kind"], str(one["n"])]
            + [_said(one["read"].get(name), percent) for name in latents]
            for one in found
            if "read" in one
        ]  # fmt: skip
        title = "What the text decoder writes from each latent: the step's sentence word for word (its last word), %; +: beyond the chain"
        made.append((title, ["chains", "N", *latents], rows))
    if any("probe" in one for one in found):
        steps = max(one["length"] for one in found if "probe" in one)
        rows = [
            [one["kind"], name, str(shares[0]["n"]), *map(ends, shares), *[""] * (steps - len(shares))]
            for one in found
            for name, shares in one.get("probe", {}).items()
        ]
        title = "What a linear probe names from each latent: what step j is about, % [95 % interval]"
        made.append((title, ["chains", "latent", "N", *(f"step {j + 1}" for j in range(steps))], rows))
    pairs = list(dict.fromkeys(pair for one in found for pair in one["cosine"]))
    if pairs:
        value = lambda one, digits: "" if one is None else f"{one['value']:.{digits}f}"  # noqa: E731
        rows = []
        for one in found:
            ranks = " ".join(f"{value(rank, 2)} of {k}" for k, rank in one["rank"].items())
            rows.append([one["kind"], str(one["n"]), ranks, *(value(one["cosine"].get(pair), 3) for pair in pairs)])
        made.append(
            (
                "How alike the steps are: effective rank, and mean cosine (equation 9)",
                ["chains", "N", "rank", *pairs],
                rows,
            )
        )
    return made


def _said(read: dict[str, Any] | None, percent: Any) -> str:
    return "" if read is None else f"{percent(read['exact'])} ({percent(read['last_word'])}){'+' * read['beyond']}"
