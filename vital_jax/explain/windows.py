"""From answers with their latents to cases: what each step says, where it looks, what it is like.

Text window: the text decoder reads every latent. Visual window: the projector's output is compared with every patch of the frozen encoder
(figure 12), and with the regions of the training set (section 3.3). Both modules are put back on here, after the answer; the program that
answers has neither.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vital_jax.construct.roi import ahead, encode_all, patches_of, siglip_pixels
from vital_jax.evaluate import evidence
from vital_jax.explain import pointing
from vital_jax.explain.bank import Bank
from vital_jax.explain.case import Case, Similar, Step
from vital_jax.explain.pointing import Baselines, Pointed
from vital_jax.hub.encoders import Encoder, identity, load_encoder
from vital_jax.latent.engine import Reply, Request
from vital_jax.latent.scaffold import VisualProjector
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask, regions_of
from vital_jax.scoring.text import normalise

SIMILAR = 3
_NEVER = "\0"  # a group that no record has


@dataclass(frozen=True, eq=False)
class Viewer:
    """The visual window of a run.

    Attributes:
      visual: the projector's module. encoder_folder, hook, max_pixels: the frozen encoder whose space it projects to, as the run names it.
    """

    visual: VisualProjector
    encoder_folder: Path
    hook: str
    max_pixels: int | None = None

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.encoder_folder.absolute().name

    @cached_property
    def fingerprint(self) -> str:
        """What tells this encoder's features from every other's."""
        return identity(self.encoder_folder, self.max_pixels)

    @cached_property
    def encoder(self) -> Encoder:
        """Loaded when first used. Raises: as `load_encoder`; ValueError where it has not the width that the projector gives."""
        found = load_encoder(self.encoder_folder, self.hook, max_pixels=self.max_pixels)
        if found.width != self.visual.features:
            raise ValueError(
                f"{self.encoder_folder}: its features have {found.width} numbers, the projector gives {self.visual.features}; "
                "name the encoder that the run's region features were made with"
            )
        return found

    def bank(self, folder: str | Path, split: str = "train") -> Bank:
        """Opens the bank of a record folder for this encoder. Raises: as `Bank.open`."""
        return Bank.open(folder, self.name, self.fingerprint, self.hook, split)


class Explained(NamedTuple):
    """Cases in the order of the questions, and the numbers of those that have a mask; none where no baselines were asked for."""

    cases: list[Case]
    pointed: list[Pointed]


@dataclass(frozen=True)
class _Picture:
    """One image as it is decoded, however many questions show it, and which: (question, image of it)."""

    data: bytes
    name: str
    window: Any
    users: list[tuple[int, int]]


def explain(
    requests: Sequence[Request],
    replies: Sequence[Reply],
    read: Callable[[np.ndarray], list[list[str]]] | None = None,
    viewer: Viewer | None = None,
    projector: Mapping[str, Any] | None = None,
    bank: Bank | None = None,
    *,
    similar: int = SIMILAR,
    batch: int = 8,
    seed: int | None = None,
    targets: Sequence[np.ndarray | None] | None = None,
) -> Explained:
    """The cases of answered questions.

    Args:
      requests: records, or plain questions, which have no gold, masks or metadata. replies: to each, with its latents.
      read: latents [b, K, D] to sentences, of `Model.read`. viewer, projector: the visual window and the projector's parameters.
      bank, similar: where the nearest regions are looked for, and how many of each step. A record's own group does not count.
      batch: rows and images of a program.
      seed: of the baselines' draws; None makes no baselines, hence no `pointed`. targets: each question's region feature [E], or those
        of its steps [n, E], if known.
    Raises: ValueError for no questions, a reply without latents, a bank without a viewer, or naming an image or mask that cannot be used.
    """
    if not requests or any(not reply.latent_steps for reply in replies):
        raise ValueError("nothing to explain: no questions, or answers without latent steps")
    if bank is not None and viewer is None:
        raise ValueError("a bank is searched with projected latents, and this model has no visual projector")
    most, batch = max(reply.latent_steps for reply in replies), min(batch, len(requests))
    z, own = evidence.latents(replies, most)
    steps = own.sum(1).tolist()
    said = _sentences(read, z, steps, batch) if read else [[""] * K for K in steps]
    vectors = None if viewer is None else _projected(viewer, projector, z, own, batch)
    near = _similar(bank, vectors, steps, requests, similar) if bank is not None else [[()] * K for K in steps]
    seen = _Seen(requests, steps, vectors, targets, seed)
    for picture, (info, patches) in zip(seen.pictures, _encoded(seen.pictures, viewer, batch), strict=True):
        seen.add(picture, info, patches)
    cases = []
    for i, (request, reply) in enumerate(zip(requests, replies, strict=True)):
        chain = request.chain
        made = tuple(
            Step(
                said[i][k],
                chain[k] if k < len(chain) else "",
                tuple(maps[k] for maps in seen.heat[i] if maps is not None),
                float(np.linalg.norm(z[i, k])),
                seen.scores(i, k),
                near[i][k],
                seen.regions[i][k],
            )
            for k in range(steps[i])
        )
        unit = _unit(z[i, : steps[i]])
        cases.append(_case(request, reply, seen.masks[i], made, unit @ unit.T))
    return Explained(cases, [one for one in seen.pointed if one is not None])


def answered(request: Request, reply: Reply) -> Case:
    """The case of a model whose steps can be neither read nor shown: question and answer, no steps. Raises: as `explain`, of images."""
    seen = _Seen([request], [0], None, None, None)
    for picture, (info, _) in zip(seen.pictures, _encoded(seen.pictures, None, 1), strict=True):
        seen.add(picture, info, None)
    return _case(request, reply, seen.masks[0], (), np.zeros((0, 0), np.float32))


def _case(
    request: Request, reply: Reply, masks: Sequence[np.ndarray | None], steps: tuple[Step, ...], similarity: np.ndarray
) -> Case:
    gold = getattr(request, "answer", "")
    correct = normalise(reply.text) == normalise(gold) if gold else None
    return Case(
        request.id, request.question, reply.text, reply.log_prob, len(reply.tokens), reply.complete, gold, correct,
        tuple(request.images), tuple(masks), steps, similarity, dict(request.metadata),
    )  # fmt: skip


# --- parts --------------------------------------------------------------------------------------------------------------


def _parts(batch: int, *arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows in groups of exactly `batch`, the last filled up with its last row: one program."""
    for start in range(0, len(arrays[0]), batch):
        rows = np.minimum(np.arange(start, start + batch), len(arrays[0]) - 1)
        yield tuple(array[rows] for array in arrays)


def _sentences(
    read: Callable[[np.ndarray], list[list[str]]], z: np.ndarray, steps: Sequence[int], batch: int
) -> list[list[str]]:
    said = [row for (part,) in _parts(batch, z) for row in read(part)]
    return [row[:K] for row, K in zip(said, steps, strict=False)]


def _projected(viewer: Viewer, projector: Mapping[str, Any], z: np.ndarray, own: np.ndarray, batch: int) -> np.ndarray:
    """VP(z) [n, K, E] of unit length."""
    found = [evidence.project(viewer.visual, projector, *part) for part in _parts(batch, z, own)]
    return _unit(np.concatenate(found)[: len(z)])


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _similar(
    bank: Bank, vectors: np.ndarray, steps: Sequence[int], requests: Sequence[Request], top: int
) -> list[list[tuple[Similar, ...]]]:
    """Per question and step."""
    places = [(i, k) for i, K in enumerate(steps) for k in range(K)]
    queries = np.stack([vectors[i, k] for i, k in places])
    apart = [str(requests[i].metadata.get("group") or _NEVER) for i, _ in places]
    found = iter(bank.similar(queries, [k + 1 for _, k in places], top, apart))
    return [[next(found) for _ in range(K)] for K in steps]


def _encoded(
    pictures: Sequence[_Picture], viewer: Viewer | None, batch: int
) -> Iterator[tuple[dict, np.ndarray | None]]:
    """`decode`'s info and the unit patches [P, E] of each picture, None without a viewer; images are squeezed to the encoder's square."""
    opened = ahead(lambda one: decode(one.data, one.name, one.window), pictures, 2 * batch)
    if viewer is None:
        yield from ((info, None) for _, info in opened)
        return
    encoder = viewer.encoder
    groups = ((info, [siglip_pixels(image, encoder.size)]) for image, info in opened)
    for info, (states,) in encode_all(groups, encoder.apply, min(batch, len(pictures)), encoder.grid):
        yield info, _unit(patches_of(states, encoder.grid))


class _Seen:
    """What the pictures of questions give: heat maps, masks and numbers, collected picture by picture."""

    def __init__(
        self,
        requests: Sequence[Request],
        steps: Sequence[int],
        vectors: np.ndarray | None,
        targets: Sequence[np.ndarray | None] | None,
        seed: int | None,
    ):
        self._requests, self._steps, self._vectors, self._targets = requests, steps, vectors, targets
        self.images = [
            str(one.metadata.get("group") or hashlib.sha256(b"".join(one.images)).hexdigest()) for one in requests
        ]
        self.heat: list[list[np.ndarray | None]] = [[None] * len(one.images) for one in requests]
        self.masks: list[list[np.ndarray | None]] = [[None] * len(one.images) for one in requests]
        self.regions: list[list[np.ndarray | None]] = [
            [None] * K for K in steps
        ]  # of the steps, where they have their own
        self.pointed: list[Pointed | None] = [None] * len(requests)
        self._own: dict[int, dict[str, np.ndarray]] = {}
        self._baselines = None
        if seed is not None and vectors is not None:
            metadata = [one.metadata for one in requests]
            self._baselines = Baselines(vectors, steps, self.images, metadata, seed)
        found: dict[tuple[bytes, str], _Picture] = {}
        for i, request in enumerate(requests):
            window = request.metadata.get("window")
            for j, data in enumerate(request.images):
                name = f"{request.id}: image {j + 1}"
                picture = found.setdefault((data, str(window)), _Picture(data, name, window, []))
                picture.users.append((i, j))
        self.pictures = list(found.values())

    def add(self, picture: _Picture, info: dict, patches: np.ndarray | None) -> None:
        """Takes a picture's patches into all questions about it."""
        for i, j in picture.users:
            masks = getattr(self._requests[i], "masks", ())
            if masks:
                mask = decode_mask(masks[j], f"mask of {self._requests[i].id}", info)
                self.masks[i][j] = mask if mask.any() else None
            # A region is one of the first image, as its feature is (construct/roi.py).
            regions = regions_of(self._requests[i], self._steps[i], info) if j == 0 else []
            if regions and getattr(self._requests[i], "step_masks", ()):
                self.regions[i] = regions
            if patches is None:
                continue
            grid = round(len(patches) ** 0.5)
            K = self._steps[i]
            self.heat[i][j] = (self._vectors[i, :K] @ patches.T).reshape(K, grid, grid)
            if regions and all(one is not None for one in regions):
                self._score(i, patches, [pointing.patch_shares(one, (grid, grid)) for one in regions])

    def _score(self, i: int, patches: np.ndarray, shares: Sequence[np.ndarray]) -> None:
        """shares: of each step's region."""
        K = len(shares)

        def judged(vectors: np.ndarray) -> dict[str, np.ndarray]:
            """The measures of each step, means over the maps of vectors [n, K, E]."""
            maps = (vectors @ patches.T).reshape(len(vectors), K, *shares[0].shape)
            found = [pointing.score(maps[:, k], one) for k, one in enumerate(shares)]
            return {measure: np.array([one[measure].mean() for one in found]) for measure in pointing.MEASURES}

        self._own[i] = judged(self._vectors[i, None, :K])
        if self._baselines is None:
            return
        found = {pointing.OWN: self._own[i]}
        for who, others in self._baselines.of(i).items():
            found[who] = judged(others)
        if self._targets is not None and (target := self._targets[i]) is not None:
            rows = np.atleast_2d(target)
            found[pointing.TARGET] = judged(_unit(rows[None, np.minimum(np.arange(K), len(rows) - 1)]))
        modality = self._requests[i].metadata.get("modality") or pointing.UNKNOWN
        self.pointed[i] = Pointed(modality, self.images[i], float(np.mean(shares)), found)

    def scores(self, i: int, k: int) -> dict[str, float | bool] | None:
        """The measures of a step; None without a mask or a heat map."""
        if i not in self._own:
            return None
        found = {measure: float(values[k]) for measure, values in self._own[i].items()}
        return {**found, "pointing": bool(found["pointing"])}
