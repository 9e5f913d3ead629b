"""The text decoder's cross-entropy: the training loss with own latents, and planted latents of whom it is known what they tell."""

import jax
import numpy as np
import pytest
import toy

from vital_jax.evaluate import text_floor
from vital_jax.evaluate.text_floor import OWN, Reader, sentence_losses, taught, text_floors
from vital_jax.methods.base import losses, read
from vital_jax.pipeline.records import Record

ROWS, K = 6, 3


@pytest.fixture(scope="module")
def batch():
    return toy.batch(ROWS, K=K)


class Words:
    """Sentence "i k" has the tokens of row i and step k."""

    def __init__(self, batch):
        self.batch = batch

    def encode_text(self, text, name=""):
        i, k = map(int, text.split())
        return self.batch["chain"][i, k][self.batch["chain_mask"][i, k]]


def rows(batch, **metadata):
    for i, steps in enumerate(batch["latent_steps"]):
        chain = tuple(f"{i} {k}" for k in range(steps))
        known = {name: values[i] for name, values in metadata.items()}
        yield Record(f"r{i}", (b"x",), "Where?", "There.", chain=chain, metadata=known)


@pytest.fixture(scope="module")
def toys(batch):
    vital = toy.method()
    params = toy.params(vital)
    own = np.arange(K) < batch["latent_steps"][:, None]
    z = np.asarray(
        jax.jit(lambda p, b: read(vital, p, b, toy.suffix(vital, K)).steps("latent")[1][:, 0])(params, batch)
    )
    return vital, params, z, own, Reader(vital.decoder, params["scaffold"], Words(batch))


def test_own_latents_have_the_loss_that_training_minimises(batch, toys):
    vital, params, z, own, reader = toys
    phase, suffix = toy.phase(K), toy.suffix(vital, K)

    @jax.jit
    def text(p, b):
        return losses(vital, p, b, vital.normalizers(b, phase, suffix), phase, suffix)[0]["text"]

    want = text(params, batch)
    found = text_floors(reader, list(rows(batch)), z, own, list(range(ROWS)), batch=4)
    assert found[OWN]["all"]["value"] == pytest.approx(float(want), rel=1e-4)
    assert found[OWN]["all"]["n"] == ROWS and found[OWN]["3"]["n"] == int(own[:, 2].sum())
    # Steps 1, 2, 3, 1, 2, 3: each row has one partner, whose latents were made for other words.
    for name in ("latents of another sample", "mean latent"):
        one = found[name]["all"]
        assert one["n"] == ROWS and one["own"] == pytest.approx(float(want), rel=1e-4)
        assert one["difference"] == pytest.approx(one["value"] - one["own"]) and one["difference"] != 0
        assert one["difference_low"] <= one["difference"] <= one["difference_high"]
    # Records that name neither type nor target are like no other.
    assert set(found) == {OWN, "latents of another sample", "mean latent"}


def test_what_is_exchanged_and_among_whom(batch, toys, monkeypatch):
    _, _, _, own, reader = toys
    asked = []

    def cost(reader, z, chain, mask, size):
        """The latent of row i is i itself: the cost is how far it is from the row that is read."""
        asked.append(z[:, :, 0].copy())
        return np.abs(z[:, :, 0] - np.arange(ROWS)[:, None])

    monkeypatch.setattr(text_floor, "sentence_losses", cost)
    z = np.broadcast_to(np.arange(ROWS, dtype=np.float32)[:, None, None], (ROWS, K, 2)) * own[..., None]
    types = ["side", "side", "side", "side", "size", "side"]
    records = list(rows(batch, question_type=types, target_name=["spleen"] * ROWS))
    found = text_floors(reader, records, z, own, ["a", "b", "c", "d", "e", "c"])
    assert found["latents of another sample"]["all"]["n"] == 4  # rows 2 and 5 show one image
    assert found["latents of another sample"]["all"]["value"] == 3  # the only other row of as many steps
    assert found["of another sample, same question type"]["all"]["n"] == 2
    assert found["of another sample, same target"]["all"]["n"] == 4
    assert found["mean latent"]["1"]["value"] == pytest.approx(np.abs(np.arange(6) - 2.5).mean())


def test_a_latent_that_says_the_sentence_costs_less_than_any_other(batch, toys):
    """Sentences by gradient: latents moved towards their own sentence, which others then do not serve."""
    vital, params, z, own, reader = toys
    chain, mask = taught(list(rows(batch)), own, reader.prompter)
    scaffold = {name: params["scaffold"][name] for name in ("pj_in", "text_decoder")}

    @jax.jit
    def moved(z):
        cost = lambda z: text_floor._sentence_losses(vital.decoder, scaffold, z, chain, mask).sum()  # noqa: E731
        return jax.lax.fori_loop(0, 30, lambda i, z: z - 0.5 * jax.grad(cost)(z), z)

    told = np.asarray(moved(z)) * own[..., None]
    found = text_floors(reader, list(rows(batch)), told, own, list(range(ROWS)))
    assert found[OWN]["all"]["value"] < 0.8 * sentence_losses(reader, z, chain, mask)[own].mean()
    for name in ("latents of another sample", "mean latent"):
        assert found[name]["all"]["difference_low"] > 0


def test_chains_shorter_than_the_steps_and_none_at_all(batch, toys):
    *_, z, own, reader = toys
    fixed = np.ones_like(own)
    found = text_floors(reader, list(rows(batch)), z, fixed, list(range(ROWS)))
    assert found[OWN]["3"]["n"] == int(own[:, 2].sum())  # a step without a sentence is not counted
    with pytest.raises(ValueError, match="no record has a chain"):
        text_floors(reader, [Record("r", (b"x",), "Where?", "There.")], z[:1], fixed[:1], ["a"])
