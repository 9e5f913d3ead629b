"""A method's tokens and modules inside its loop, from recipe to checkpoint: drawn, placed, trained, refused where they do not fit."""

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import marked
import numpy as np
import pytest
import toy

import vital_jax
from vital_jax.latent.loop import variables_of
from vital_jax.methods import base as methods
from vital_jax.models.families import read_config
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.prompts import Prompter
from vital_jax.run import setup
from vital_jax.training.partition import flatten, split


@pytest.fixture(scope="module", autouse=True)
def known():
    with marked.known:
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(configuration, method, parameters as training starts them)."""
    config = marked.config_of(marked.write_base(tmp_path_factory.mktemp("added") / "base", tied=False))
    return config, *marked.load(config)


def test_they_stand_behind_the_tokenizers_last_row_and_start_as_the_method_says(made):
    config, method, params = made
    prompter = Prompter(config.model.folder, (marked.A, marked.B))
    last = max(Prompter(config.model.folder).tokenizer.get_vocab().values())
    assert method.model.added == tuple(prompter.added.values()) == (last + 1, last + 2)
    start = prompter.literal("the")
    words = method.model.apply(variables_of(params), jnp.asarray([last + 1, *start]), method="embed_tokens")
    np.testing.assert_allclose(words[0], words[1:].mean(0), rtol=0, atol=1e-5)
    assert not np.any(params["tokens"]["input"][1]) and not np.any(params["tokens"]["head"][1])


def test_what_trains_is_in_the_recipes_table(made):
    config, _, params = made
    trainable, frozen = split(params, setup.tables(config)[0])
    assert set(trainable) == {"lora", "tokens", "feedback"} and set(frozen) == {"base"}
    config = config.copy_and_resolve_references()
    config.method.name = "coconut"
    assert {row[0] for row in setup.tables(config)[0]} == {"base/.*", "lora/.*", "tokens/.*"}


def test_a_step_moves_the_rows_on_both_sides_and_the_module_inside_the_loop(made):
    config, method, params = made
    phase = dataclasses.replace(setup.phases_of(config)[1], latent_steps=2)
    budgets = methods.Budgets(answer=5, written=6)
    suffix = method.layout(phase, budgets).suffix.bound(Prompter(config.model.folder, (marked.A, marked.B)))
    rows = toy.batch(2)
    model = read_config(config.model.folder)
    batch = {name: rows[name] for name in ("tokens", "lengths", "positions", "next_position", "answer", "answer_mask")}
    batch |= {"patches": np.zeros((2, 0, model.vision.patch_width), np.float32)}
    batch |= {"written": rows["chain"][:, 0], "written_mask": np.ones((2, 6), bool), "latent_steps": np.asarray([2, 1])}
    batch["answer"] = batch["answer"].copy()
    batch["answer"][:, 0], batch["answer_mask"] = method.model.added[0], np.ones_like(batch["answer_mask"])
    norms = method.normalizers(batch, phase, suffix)
    trainable, frozen = split(params, setup.tables(config)[1])
    loss = methods.make_loss(method, phase, suffix)
    grads = jax.jit(jax.grad(lambda t: loss(t, frozen, batch, None, norms)[0]))(trainable)
    for path in ("tokens/input", "tokens/head", "feedback/mixer/kernel"):
        assert np.all(np.abs(flatten(grads)[path]).max(-1) > 0), path


def test_a_vocabulary_without_room_is_refused(made, tmp_path):
    config, *_ = made
    folder = tmp_path / "full"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(config.model.folder) / name).read_bytes())
    table = json.loads((Path(config.model.folder) / "config.json").read_text())
    table["text_config"]["vocab_size"] -= 15
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(
        ValueError, match=r"no room for 2 added tokens .*: the vocabulary has \d+ rows and the tokenizer uses \d+"
    ):
        Prompter(folder, (marked.A, marked.B))
    assert Prompter(folder, (marked.A,)).added
    for texts in (("",), (marked.A, marked.A)):
        with pytest.raises(ValueError, match="is empty or there twice"):
            Prompter(folder, texts)


@pytest.mark.parametrize("short", [1, 3])
def test_a_tokenizer_with_more_tokens_than_the_embeddings_have_rows_is_refused(made, tmp_path, short):
    """A gather past the last row gives the last row, so such a token would be answered as another one."""
    folder = shutil.copytree(made[0].model.folder, tmp_path / "short")
    table = json.loads((folder / "config.json").read_text())
    vocabulary = sorted((number, text) for text, number in Prompter(folder).tokenizer.get_vocab().items())
    rows = table["text_config"]["vocab_size"] = len(vocabulary) - short
    (folder / "config.json").write_text(json.dumps(table))
    number, text = vocabulary[rows]
    message = rf"{short} tokens of the tokenizer have no row in the embeddings, which have {rows} .*: {re.escape(repr(text))} \({number}\)"
    for open_folder in (Prompter, Encoder.from_folder, vital_jax.load):
        with pytest.raises(ValueError, match=message):
            open_folder(folder)
    table["text_config"]["vocab_size"] = rows + short
    (folder / "config.json").write_text(json.dumps(table))
    assert Prompter(folder).last_id == rows + short - 1


def test_they_are_control_tokens(made):
    prompter = Prompter(made[0].model.folder, (marked.A, marked.B))
    with pytest.raises(ValueError, match=r"control token <\|latent_start\|>"):
        prompter.encode_text(f"a {marked.A}")
    ids = prompter.literal(f"the{marked.A}liver")
    assert prompter.added[marked.A] in ids and prompter.decode(ids) == "theliver"
    again = pickle.loads(pickle.dumps(prompter))
    assert again.added == prompter.added
