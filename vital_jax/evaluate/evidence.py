"""What one trained run shows for itself on held-out records: answers, answers without the right image, and what its latents hold.

Accuracy alone does not show that the image is read, nor that the latents carry anything. So every number here stands beside the same
number with the link cut: the images exchanged between records, the latents exchanged between records. Retrieval asks whether a latent, sent
through the visual projector, is nearer to the features of the region it is about than to those of every other held-out region; the exchange
among regions of the same target is the strict one, because a question names its target and that name alone tells most regions apart.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vital_jax.evaluate.preview import ask, shuffled
from vital_jax.evaluate.score import Row, judge, kind, markdown, percent
from vital_jax.evaluate.text_floor import Reader, written
from vital_jax.latent.engine import Reply
from vital_jax.latent.scaffold import VisualProjector
from vital_jax.methods.base import Method
from vital_jax.pipeline.feed import Feed
from vital_jax.statistics import wilson

BATCH = 32  # rows of every program here: on a CPU compiling one costs more than running it, so there is one size
HITS = (1, 5, 10)
SAMPLES = 4
FIT_ROWS = 1024  # training records a projector is fitted to afterwards, at most


def questions(feed: Feed) -> list[int]:
    """Numbers of the records that exact match is asked of: the closed-ended ones, or all where no record says its form.

    Raises: ValueError where records say theirs and none is closed.
    """
    forms = [row["metadata"].get("form") for row in feed.source.index]
    chosen = [i for i, form in enumerate(forms) if form == "closed" or not any(forms)]
    if not chosen:
        raise ValueError(f"{feed.source.folder}: no record of split {feed.source.split!r} is of form 'closed'")
    return chosen


def judged(
    feed: Feed, numbers: Sequence[int], replies: Sequence[Reply], images: Sequence[int] | None = None
) -> list[Row]:
    """Replies as `Score.of` takes them: the verdict, question_type and ask, and `image`, the id of the record whose images were shown."""
    index = feed.source.index
    shown = numbers if images is None else images
    return [
        {
            **judge(feed.source[number], reply.text),
            **kind(index[number]["metadata"]),
            "image": index[image]["id"],
        }
        for reply, number, image in zip(replies, numbers, shown, strict=True)
    ]


# --- latents ------------------------------------------------------------------------------------------------------------


def latents(replies: Sequence[Reply], max_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """z_1..z_K of replies [n, K, D], zero beyond a row's own steps, and which steps are its own [n, K] bool.

    Raises: ValueError for no steps or no replies.
    """
    if not max_steps or not len(replies):
        raise ValueError(f"no latents of {len(replies)} records at {max_steps} steps")
    z = [np.pad(reply.z, ((0, max_steps - reply.latent_steps), (0, 0))) for reply in replies]
    return np.stack(z), np.arange(max_steps) < np.array([reply.latent_steps for reply in replies])[:, None]


def collapse(z: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Mean cosine of z_i and z_j over the rows that have both (equation 9), [K, K]; NaN where none has."""
    unit, own = _unit(z) * own[..., None], own.astype(np.float64)
    both = np.einsum("ni,nj->ij", own, own)
    cosine = np.einsum("nid,njd->ij", unit, unit)
    return np.divide(cosine, both, out=np.full_like(cosine, np.nan), where=both > 0)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


# --- the projector ------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="visual")
def _project(visual: VisualProjector, projector: Mapping[str, Any], z: jax.Array, own: jax.Array) -> jax.Array:
    return visual.apply({"params": projector}, z, own)


def project(visual: VisualProjector, projector: Mapping[str, Any], z: np.ndarray, own: np.ndarray) -> np.ndarray:
    """VP(z), [n, K, D] -> [n, K, E] (equation 5), without dropout.

    Args:
      visual: `method.visual`. projector: its parameters, `params["scaffold"]["visual_projector"]` or what `fit_projector` returns.
    """
    return np.asarray(_project(visual, projector, z, own))


def fit_projector(
    visual: VisualProjector,
    z: np.ndarray,
    own: np.ndarray,
    targets: np.ndarray,
    steps: int = 500,
    batch: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """A projector trained on frozen latents: what could be read off a run that was never asked to show its regions (lambda_2 = 0).

    The loss is equation 6, summed over E, mean over a row's own steps, by Adam with a cosine to zero.

    Args:
      visual: its kind and width. z [n, K, D], own [n, K]: latents of training records. targets: [n, E] their region features.
      steps, batch, learning_rate, seed: of the training.
    Returns: the projector's parameters.
    """
    drawn, drops = jax.random.split(jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    z, own, targets = (jnp.asarray(x) for x in (z, own, targets))
    chosen = np.random.default_rng(seed).integers(0, len(z), (steps, min(batch, len(z))))

    def loss(projector, rows, key):
        mine = own[rows]
        shown = visual.apply({"params": projector}, z[rows], mine, False, rngs={"dropout": key})
        distance = jnp.sum(jnp.abs(shown - targets[rows, None]), axis=-1)
        return jnp.mean(jnp.sum(jnp.where(mine, distance, 0), axis=1) / jnp.sum(mine, axis=1))

    def step(carry, inputs):
        projector, state = carry
        updates, state = optimizer.update(jax.grad(loss)(projector, *inputs), state)
        return (optax.apply_updates(projector, updates), state), None

    @jax.jit
    def train(projector):
        start = (projector, optimizer.init(projector))
        return jax.lax.scan(step, start, (jnp.asarray(chosen), jax.random.split(drops, steps)))[0][0]

    return train(visual.init(drawn, z[:1])["params"])


# --- retrieval ----------------------------------------------------------------------------------------------------------


def retrieval(
    projected: np.ndarray, own: np.ndarray, targets: np.ndarray, keys: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Whether a projected latent finds its own region among all held-out regions, by cosine.

    A hit@k is a row whose region is among the k nearest; a region as near as its own counts as nearer, so equal projections find nothing.
    The two exchanges are means over all partners, not over one draw: each row's region looked for with the latents of every row that is
    about another region (`shuffled`), and of every such row with the same class (`same_class`). Intervals are Wilson's at 95 % and n rows.

    Args:
      projected: [n, K, E]. own: [n, K] bool, a row's own steps, the first ones. targets: [n, E] region features.
      keys: [n] which region a row is about; rows with the same key share one entry of the gallery.
      classes: [n] what the region is of (the target's name).
    Returns: n, gallery (its number of regions), chance {hit@k}, and for the row's `last` step and the `mean` direction of its steps:
      {own | shuffled | same_class: {"n", "hit@k": {"share", "low", "high"}}}; an exchange for which no row has a partner is left out.
    Raises: ValueError for no rows, or where rows of one key have different features.
    """
    if not len(keys):
        raise ValueError("no record has a region feature: there is nothing to retrieve")
    _, first, entry = np.unique(np.asarray(keys), return_index=True, return_inverse=True)
    features = _unit(targets)
    if (stray := np.abs(features - features[first][entry]).max()) > 0.05:
        raise ValueError(
            f"rows of one region have features that differ by {stray:.2f}: the keys do not tell regions apart"
        )
    gallery, n = features[first], len(entry)
    steps = _unit(projected) * own[..., None]
    last = np.take_along_axis(steps, own.sum(1)[:, None, None] - 1, axis=1)[:, 0]
    other = entry[:, None] != entry[None]
    _, named = np.unique(np.asarray(classes), return_inverse=True)
    partners = {
        "own": np.eye(n, dtype=bool),
        "shuffled": other,
        "same_class": other & (named[:, None] == named[None]),
    }
    out = {"n": n, "gallery": len(gallery), "chance": {f"hit@{k}": min(1.0, k / len(gallery)) for k in HITS}}
    for name, query in (("last", last), ("mean", steps.sum(1))):
        similar = query @ gallery.T  # [n, gallery]
        # rank[j, i]: the place of row i's region when row j's latents look for it, from 1; ties count against it.
        ordered = np.sort(similar, axis=1)
        rank = np.stack([len(gallery) - np.searchsorted(a, s) for a, s in zip(ordered, similar, strict=True)])[:, entry]
        out[name] = {who: _hits(rank, mask) for who, mask in partners.items() if mask.any()}
    return out


def _hits(rank: np.ndarray, partners: np.ndarray) -> dict[str, Any]:
    """hit@k of the rows that have partners, each the mean over its own; rank and partners [n, n], searching row first."""
    count = partners.sum(0)
    n = int((count > 0).sum())
    out: dict[str, Any] = {"n": n}
    for k in HITS:
        hits = float((((rank <= k) & partners).sum(0)[count > 0] / count[count > 0]).sum())
        low, high = wilson(min(hits, n), n)
        out[f"hit@{k}"] = {"share": hits / n, "low": low, "high": high}
    return out


def regions(feed: Feed, numbers: Iterable[int]) -> tuple[list[int], np.ndarray, list[str], list[str]]:
    """The records among these that have a region feature: places in `numbers` [m], features [m, E], region keys and target names [m].

    A region's key is its image and mask, so all questions about it share one entry. Raises: ValueError where no record has one.
    """
    places, features, keys, names = [], [], [], []
    for place, number in enumerate(numbers):
        feature, valid = feed.features[number]
        if valid:
            record = feed.source[number]
            parts = [hashlib.sha256(data).digest() for data in (*record.images, *record.masks)]
            places.append(place)
            features.append(feature)
            keys.append(hashlib.sha256(b"".join(parts)).hexdigest())
            names.append(record.metadata.get("target_name", ""))
    if not places:
        raise ValueError(f"{feed.features.folder}: none of the chosen records has a region feature")
    return places, np.stack(features), keys, names


def _retrieve(
    method: Method, params: Mapping[str, Any], train: Feed, test: Feed, numbers: Sequence[int],
    z: np.ndarray, own: np.ndarray, max_steps: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """`retrieval` with the run's own projector, or, where it has none, with one fitted to its latents of training records."""
    places, features, keys, names = regions(test, numbers)
    projector = params.get("scaffold", {}).get("visual_projector")
    visual, origin = method.visual, "trained with the run"
    if projector is None:
        origin = "trained afterwards on frozen latents"
        width = features.shape[-1]
        visual = dataclasses.replace(method, roi_width=width).visual or VisualProjector(width)
        candidates = np.flatnonzero(train.features.valid[: train.limit or None])
        candidates = candidates[np.linspace(0, len(candidates) - 1, min(FIT_ROWS, len(candidates))).astype(int)]
        replies = ask(method, params, train, candidates, max_steps, BATCH, length=1)
        seen, mine = latents(replies, max_steps)
        projector = fit_projector(visual, seen, mine, np.asarray(train.features.roi[candidates]), seed=seed)
    shown = project(visual, projector, z[places], own[places])
    return {"projector": origin, **retrieval(shown, own[places], features, keys, names)}


# --- one run ------------------------------------------------------------------------------------------------------------


def _samples(
    method: Method, params: Mapping[str, Any], feed: Feed, numbers: Sequence[int], rows: Sequence[Row],
    z: np.ndarray, own: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """A few answers with what their latents say, beside the sentences of the record's chain."""
    chosen = np.linspace(0, len(numbers) - 1, min(SAMPLES, len(numbers))).astype(int)
    prompter = feed.encoder.chain_prompter or feed.encoder.prompter
    reader = Reader(method.decoder, params["scaffold"], prompter, method.model.dtype)
    said = written(reader, z[chosen], feed.chain, len(chosen))
    return [
        {
            **rows[place],
            "chain": list(feed.source[numbers[place]].chain),
            "steps": sentences[: own[place].sum()],
        }
        for place, sentences in zip(chosen, said, strict=True)
    ]


def evidence(
    method: Method,
    params: Mapping[str, Any],
    train: Feed,
    test: Feed,
    max_steps: int,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Everything about one trained run that does not need another run; JSON as it stands.

    Args:
      method, params {base, lora?, scaffold?}: the trained run.
      train: training records with features, looked at only where the run has no projector (lambda_2 = 0) and one is fitted.
      test: held-out records. Opened without features, there is no retrieval; with chain = 0, no decoded steps.
      max_steps: K of every question; 0 gives the two lists of answers alone. seed: of exchanges and draws.
      numbers: of the test records; by default `questions`.
    Returns: {"max_steps", "answers", "blind"}, the rows of `judged` with the own images and with those of `shuffled`;
      with latents also "collapse" [K][K] (None where no row has both steps), "retrieval" (see `retrieval`; and "projector", which one) and
      "samples", a few answers with "chain" and "steps", the decoded sentences.
    Raises: ValueError as `questions`, `shuffled`, `ask`, `regions`.
    """
    numbers = list(questions(test) if numbers is None else numbers)
    exchanged = shuffled(numbers, test, seed)
    replies = ask(method, params, test, numbers, max_steps, BATCH)
    answered = judged(test, numbers, replies)
    unseen = ask(method, params, test, numbers, max_steps, BATCH, images=exchanged)
    blind = judged(test, numbers, unseen, exchanged)
    found: dict[str, Any] = {"max_steps": max_steps, "answers": answered, "blind": blind}
    if not max_steps:
        return found
    z, own = latents(replies, max_steps)
    found["collapse"] = [[None if np.isnan(x) else float(x) for x in row] for row in collapse(z, own)]
    if test.features is not None:
        found["retrieval"] = _retrieve(method, params, train, test, numbers, z, own, max_steps, seed)
    if method.decoder is not None and test.chain:
        found["samples"] = _samples(method, params, test, numbers, answered, z, own)
    return found


def show_retrieval(found: Mapping[str, Any]) -> str:
    """A `retrieval` as a Markdown table in percent, intervals in brackets."""
    who = {
        "own": "own latents",
        "shuffled": "latents of another region",
        "same_class": "latents of another region of the same target",
    }
    rows = []
    for query, step in (("last", "last step"), ("mean", "mean of the steps")):
        for name, hits in found[query].items():
            cells = [hits[f"hit@{k}"] for k in HITS]
            shares = [f"{percent(h['share'])} [{percent(h['low'])}, {percent(h['high'])}]" for h in cells]
            rows.append([f"{who[name]}, {step}", str(hits["n"]), *shares])
    rows.append([f"chance, {found['gallery']} regions", "", *map(percent, found["chance"].values())])
    return markdown(["retrieval", "N", *found["chance"]], rows)


def show(found: Mapping[str, Any]) -> str:
    """What `evidence` found about the latents, as Markdown: retrieval, collapse matrix, sample answers with decoded steps.

    The answers' scores are the caller's, in one `table` with those of the other systems.
    """
    parts = []
    if "retrieval" in found:
        parts += [f"Retrieval with a projector {found['retrieval']['projector']}:", show_retrieval(found["retrieval"])]
    if "collapse" in found:
        names = [f"z_{k + 1}" for k in range(len(found["collapse"]))]
        cells = [["" if x is None else f"{x:.3f}" for x in row] for row in found["collapse"]]
        rows = ([name, *row] for name, row in zip(names, cells, strict=True))
        parts += ["Mean cosine between latent steps:", markdown(["", *names], rows)]
    for sample in found.get("samples", ()):
        line = lambda text: " ".join(text.split())  # noqa: E731  (what a model writes may hold line breaks)
        lines = [
            f"- {line(sample['question'])}",
            f"  - gold: {sample['gold']}",
            f"  - answer: {line(sample['answer'])}",
        ]
        for k, text in enumerate(sample["steps"]):
            lines.append(f"  - step {k + 1} says: {line(text)}")
            if k < len(sample["chain"]):
                lines.append(f"    (taught: {sample['chain'][k]})")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
