"""Coconut against what its published code computes: losses, scores, latents and gradients of tiny models (oracles/README.md).

All cases of a file have one shape here, padded with rows that carry nothing, so each file is one compiled program.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vital_jax.latent.choose import Decoding
from vital_jax.latent.decode import Plan, respond
from vital_jax.latent.interpret import run
from vital_jax.latent.loop import prefill, variables_of
from vital_jax.methods.base import Budgets, Phase
from vital_jax.methods.coconut import BOT, EOT, Coconut
from vital_jax.models.backbone import Backbone, Prefix
from vital_jax.models.config import BackboneConfig, decoder_config
from vital_jax.models.names import decoder_entries
from vital_jax.training.partition import flatten, unflatten

ORACLES = Path(__file__).parent / "oracles"
ROWS, S, K, W, T = 4, 16, 8, 16, 8
# Float32 against float32: oracles/README.md measured up to 8.1e-6 between the published code and a recompute in the same library.
CLOSE = 2e-5


class Markers:
    """The oracle's tokens; its answers bring their lead-in along."""

    def literal(self, text):
        return {BOT: [61], EOT: [63]}.get(text, [])


class Oracle:
    """One file: its model as ours, and its cases as our batches."""

    def __init__(self, name):
        with np.load(ORACLES / name) as file:
            self.arrays = dict(file)
        decoder = decoder_config(json.loads(str(self.arrays["config"])))
        self.config = BackboneConfig("qwen3_vl", decoder, toy.CONFIG.vision, 57, 58, 59)
        self.model = Backbone(self.config, dtype=jnp.float32, attention="xla")
        leaves = {}
        for entry in decoder_entries(decoder):
            held = [self.arrays[f"weights/{name}"] for name in entry.names]
            leaves[entry.path] = jnp.asarray(np.stack(held) if entry.stacked else held[0])
        self.params = {"base": {"language_model": unflatten(leaves)}}

    @property
    def cases(self):
        return [str(name) for name in self.arrays["cases"]]

    def ragged(self, case, part):
        """[B] lists of a part."""
        flat, lengths = (self.arrays[f"{case}/{part}{end}"] for end in ("", "_lengths"))
        return np.split(flat, np.cumsum(lengths)[:-1])

    def batch(self, case):
        """Our arrays, padded to `ROWS` rows."""
        found = {}
        for part, name, room in (("question", "tokens", S), ("chain", "written", W), ("answer", "answer", T)):
            rows = [*self.ragged(case, part)]
            rows += [np.zeros(int(part == "question"), np.int32)] * (ROWS - len(rows))
            assert max(map(len, rows)) <= room
            found[name] = np.stack([np.pad(row, (0, room - len(row))) for row in rows]).astype(np.int32)
            found[f"{name}_mask"] = np.arange(room) < np.array([len(row) for row in rows])[:, None]
        found["lengths"] = found.pop("tokens_mask").sum(-1).astype(np.int32)
        found["next_position"] = found["lengths"]
        steps = self.arrays[f"{case}/latents"]
        found["latent_steps"] = np.pad(steps, (0, ROWS - len(steps))).astype(np.int32)
        return found

    def suffix(self, stage=1):
        """Columns for the whole file; which steps are still written is the batch's business."""
        method = Coconut(self.model)
        layout = method.layout(Phase(K, stage=stage), Budgets(T, written=W))
        return layout.suffix.bound(Markers())


@functools.cache
def oracle(name):
    return Oracle(name)


def start(model, params, batch):
    """z_0 and the prompt of text alone."""
    variables = variables_of(params)
    x = model.apply(variables, batch["tokens"], method="embed_tokens")
    positions = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), (3, *batch["tokens"].shape))
    return prefill(model, variables, Prefix(x, None, positions, batch["lengths"]), batch["next_position"])


@functools.partial(jax.jit, static_argnums=(0, 3))
def step(model, params, batch, suffix):
    """((loss, columns and scores), gradients)."""
    method = Coconut(model)

    def loss(params):
        z0, prompt = start(model, params, batch)
        columns = run(model, variables_of(params), prompt, z0[:, None], suffix, batch)
        norms = method.normalizers(batch, Phase(K), suffix)
        values, _ = method.loss(params, columns, batch, norms, Phase(K), suffix, None)
        score = lambda name: model.apply(variables_of(params), columns.reads[name][:, 0], method="logits")  # noqa: E731
        return values["task"], (columns.steps("latent")[0][:, 0], score("written"), score("answer"))

    with jax.default_matmul_precision("highest"):
        return jax.value_and_grad(loss, has_aux=True)(params)


def near(got, expected, name):
    np.testing.assert_allclose(got, expected, rtol=0, atol=CLOSE, err_msg=name)


FILES = [*(pytest.param(f"coconut_{i}.npz", marks=pytest.mark.slow) for i in range(2)), "coconut_2.npz"]


@pytest.mark.parametrize("file", FILES)
def test_every_case_equals_the_published_code(file):
    held = oracle(file)
    suffix, entries = held.suffix(), {entry.path: entry for entry in decoder_entries(held.config.decoder)}
    for case in held.cases:
        batch, arrays = held.batch(case), held.arrays
        (loss, (fed, written, answer)), grads = step(held.model, held.params, batch, suffix)
        near(loss, arrays[f"{case}/loss"], f"{case} loss")
        rows = len(arrays[f"{case}/latents"])
        own = np.arange(K) < batch["latent_steps"][:, None]
        near(np.asarray(fed)[own], arrays[f"{case}/fed"], f"{case} fed")
        scores = [
            np.concatenate([written[i][batch["written_mask"][i]], answer[i][batch["answer_mask"][i]]])
            for i in range(rows)
        ]
        near(np.concatenate(scores), arrays[f"{case}/logits"], f"{case} logits")
        leaves = flatten(grads["base"]["language_model"])
        near(leaves["embed_tokens/embedding"][np.array([61, 62, 63])], arrays[f"{case}/grad.marker_rows"], case)
        compared = 0
        for path, leaf in leaves.items():
            for layer, name in enumerate(entries[path].names):
                if (expected := arrays.get(f"{case}/grad.{name}")) is not None:
                    near(leaf[layer] if entries[path].stacked else leaf, expected, f"{case} gradient of {name}")
                    compared += 1
        assert compared == 4, case
    assert len(held.cases) >= 6


@pytest.mark.parametrize("file", FILES)
def test_answers_equal_the_published_generate(file):
    """Its first new token is not tested for the end there, and the end that stops it is not returned: both are known."""
    held = oracle(file)
    for kind in map(str, held.arrays["generations"]):
        get = lambda name, kind=kind: held.arrays[f"generate_{kind}/{name}"]  # noqa: E731
        question, n, end = get("question"), int(get("latents")), int(get("eos"))
        batch = {"tokens": question[None].astype(np.int32), "lengths": np.array([len(question)], np.int32)}
        batch |= {"next_position": batch["lengths"], "positions": np.tile(np.arange(len(question)), (1, 3, 1))}
        batch |= {"patches": np.zeros((1, 0, 1), np.float32), "latent_steps": np.array([n], np.int32)}
        suffix = Coconut(held.model).asking(n, Budgets(12, written=0)).bound(Markers())
        tokens = get("tokens").tolist()
        first = kind.endswith("first_is_end")
        ends = (999,) if first else (end,)
        found = respond(held.model, variables_of(held.params), batch, Plan(suffix), Decoding(12, ends).rows(1))
        words, _ = found.answers(12, -1)
        words = [int(word) for word in words[0, 0] if word not in (-1, *ends)]
        if first:  # the published code stops at the second end
            words = words[: 1 + words[1:].index(end)] if end in words[1:] else words
        assert words == tokens, kind
