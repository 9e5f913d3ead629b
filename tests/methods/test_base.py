"""The registry and the contract: methods by name, switches by name, and what every method must say."""

import pytest
import toy

from vital_jax.methods import base
from vital_jax.methods.base import METHODS, Budgets, Phase
from vital_jax.pipeline.segments import Suffix

BUDGETS = Budgets(answer=5, chain=6, written=20, roi=12)


class Words:
    """A token for each word of a literal text."""

    def literal(self, text):
        return [len(word) for word in text.split()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "nothing"},
            r"config\.method\.name='nothing': no such method; there are vital, direct, text_cot, coconut",
        ),
        ({"name": "cocnut"}, r"did you mean 'coconut'\? There are vital"),
        (
            {"name": "vital", "projektor": "mlp"},
            r"config\.method\.projektor: method 'vital' has no .*'projector'\? It has",
        ),
        ({"name": "direct", "text": 1.0}, r"config\.method\.text: method 'direct' has no such switch; it has none"),
        ({"name": "coconut", "projector": "mlp"}, "method 'coconut' has no such switch; it has c, max_stage"),
        ({"name": "vital", "train_k": "max"}, r"config\.method\.train_k='max': use one of 'per_sample', 'phase_max'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(given, message):
    with pytest.raises(ValueError, match=message):
        base.settings_of(given)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_the_contract_asks(name):
    kind = base.get(name)
    assert kind.name == name and kind.losses[0] == "task" and kind.mode in base.MODES
    settings = base.settings_of({"name": name})
    assert set(settings) == {"name", *kind.switches}
    assert set(base.meaning(settings)) == {"name", *(s for s, row in kind.switches.items() if not row.free)}
    method = base.make(settings, toy.backbone())
    assert method == base.make(settings, toy.backbone()) and hash(method) == hash(base.make(settings, toy.backbone()))
    phase = Phase(latent_steps=2, max_steps=2, stage=2)
    layout = method.layout(phase, BUDGETS)
    suffix = layout.suffix.bound(Words())
    assert [s.name for s in base.supervised(suffix)][-1] == "answer"
    steps = 2 if suffix.of_kind("latent") else 0
    asked = method.asker(BUDGETS, Words())(steps, "fixed", 7)
    assert isinstance(asked, Suffix) and asked["answer"].budget == 7
    # What is asked is what was taught: the same columns in the same order.
    assert [s.name for s in asked.segments] == [s.name for s in suffix.segments if s.name in asked]
    assert all(segment.ids == suffix[segment.name].ids for segment in asked.segments if segment.fixed)


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"name": "vital"}, True),
        ({"name": "vital", "train_k": "phase_max"}, False),
        ({"name": "coconut"}, True),
        ({"name": "coconut", "pad_latent_to_max": True}, False),
        ({"name": "direct"}, False),
        ({"name": "text_cot"}, False),
    ],
)
def test_a_method_taught_with_steps_that_nobody_knows_in_use_says_so(given, own):
    method = base.make(base.settings_of(given), toy.backbone())
    # What training takes for a row is what the layout of a phase says.
    latents = method.layout(Phase(latent_steps=4, max_steps=4, stage=4), BUDGETS).suffix.of_kind("latent")
    assert [segment.count for segment in latents] == (["own" if own else "all"] if latents else [])
    assert method.gap(4) == own * (
        "taught with each record's own number of latent steps, which nobody knows in use: from 1 to 4; asked with K = 4 for every question"
    )
    assert method.gap(1) == method.gap(0) == ""


@pytest.mark.parametrize("name", ["vital", "coconut"])
def test_how_a_run_is_asked_is_no_switch_of_a_recipe(name):
    with pytest.raises(ValueError, match=r"config\.method\.eval_k: method .* has no such switch"):
        base.settings_of({"name": name, "eval_k": "per_sample"})


@pytest.mark.parametrize("name", ["direct", "text_cot"])
def test_methods_without_latents_refuse_steps_by_name(name):
    method = base.make(base.settings_of({"name": name}), toy.backbone())
    with pytest.raises(ValueError, match=f"latent_steps=2: this model is '{name}', it takes no latent steps"):
        method.asking(2, BUDGETS)


@pytest.mark.parametrize(
    ("settings", "stage", "written"),
    [
        ({}, 0, "chain[0:]"),
        ({}, 2, "chain[2:]"),
        ({"c": 2}, 3, "chain[3:]"),
        ({}, 4, "chain[4:]"),
        ({}, 5, "chain[:0]"),
    ],
)
def test_coconuts_stages(settings, stage, written):
    """A stage drops one more step for c latents; beyond the last, nothing is written."""
    settings = base.settings_of({"name": "coconut", **settings})
    kind = base.get("coconut")
    K = kind.steps_of(settings, {"stage": stage})
    assert settings["c"] * min(stage, 4) == K
    suffix = base.make(settings, toy.backbone()).layout(Phase(K, stage=stage), BUDGETS).suffix
    assert suffix["written"].source == written and suffix["written"].budget == (20 if stage <= 4 else 0)
    assert (suffix["latent"].budget, suffix["latent"].per_step, suffix["latent"].cut) == (K, settings["c"], True)
    assert not suffix["bot"].supervised and not suffix["eot"].supervised
    padded = base.settings_of({**settings, "pad_latent_to_max": True})
    latent = base.make(padded, toy.backbone()).layout(Phase(K, stage=stage), BUDGETS).suffix["latent"]
    assert (latent.count, suffix["latent"].count) == ("all", "own")


def test_a_lead_in_is_needed_to_end_a_chain():
    with pytest.raises(ValueError, match=r"config\.method\.lead_in is empty: nothing would end the chain"):
        base.make(base.settings_of({"name": "text_cot", "lead_in": " "}), toy.backbone())
