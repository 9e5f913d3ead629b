"""Every row of the ablation tables changes what it names and nothing else: data order, steps taken, losses, region features.

Each row of `configs.ablations.RUNS` is compared with the reference on drawn images with small random models. The table below says what must
differ; everything else must be the same, for a row that changes two things at once compares nothing. Losses are those of the toy VITAL with
the switches that `setup.make_method` sets; its latent pass is compiled once per K and shared by all rows.
"""

import dataclasses
import sys
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from absl import flags
from ml_collections import config_flags

from configs import ablations, quickstart
from configs import vital as paper
from vital_jax.hub import tiny
from vital_jax.methods import base
from vital_jax.methods.vital import Vital
from vital_jax.models.decoder import Decoder
from vital_jax.pipeline.records import RecordSource
from vital_jax.run import campaign, plan, setup
from vital_jax.run.prepare import make_features, make_records
from vital_jax.training import config as configuration

# ml_collections loads a recipe by its path in a way that Python 3.12 leaves out.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

REPOSITORY = Path(__file__).resolve().parents[2]
TERMS = {"task", "text", "visual"}
# What a row changes, among: `order` (which records, phase by phase, and for how many steps), `taken` (the latent and chain steps of one
# record), the terms of the loss, `features` (the targets of the visual loss).
CHANGES = {
    "task only": {"text", "visual"},
    "task and text": {"visual"},
    "task and visual": {"text"},
    "K = 0": {"taken", "features", *TERMS},  # nothing reads them
    "K = 1": {"taken", *TERMS},
    "K = 2": {"taken", *TERMS},
    "K = 3": {"taken", *TERMS},
    # A record takes the steps of the phase it is met in.
    "full_mix": {"order", "taken"},
    "two_phase": {"order", "taken"},
    "reverse": {"order", "taken"},
    "projector linear": {"visual"},
    "projector mlp": {"visual"},
    "projector mlp_ln": {"visual"},
    "projector transformer": {"visual"},
    "encoder: the backbone's own": {"features"},
    "encoder: low resolution": {"features"},
    "shared target": {"visual"},
    "per_step target": {"visual"},
    "K of each record": {"taken"},
}
QUICK = ("task only", "K = 2", "reverse", "projector mlp", "encoder: low resolution")  # one of each kind of change
ROWS = dict(row for rows in ablations.RUNS.values() for row in rows)


def test_every_row_is_in_the_table_and_has_a_folder_of_its_own():
    assert ROWS.keys() == CHANGES.keys()
    assert len(ROWS) == sum(map(len, ablations.RUNS.values()))
    config = ablations.get_config("all")
    made = list(campaign.children(config))
    assert len(config.seeds) >= 3 and len(made) == len(config.seeds) * (1 + len(ROWS))
    assert len({one.workdir for _, _, one in made}) == len(made)


@pytest.mark.parametrize("name", ablations.RUNS)
def test_a_list_is_the_reference_and_its_own_rows(name):
    assert ablations.get_config(name).runs == (ablations.REFERENCE, *ablations.RUNS[name])


# --- what a row computes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """`configured(changes)`: the resolved configuration of a row, its paths leading to small random models and some 100 drawn records."""
    folder = tmp_path_factory.mktemp("ablations")
    recipe = ablations.get_config()
    recipe.data.update(records=str(folder / "records"), buckets=((96, 64),), answer=24, chain=96)
    recipe.data.build.update(count=24, val=0.0, test=0.0)
    recipe.batch = 8

    def configured(changes):
        config = campaign.child(recipe, "row", changes, 0)
        for part, key in ((config.model, "folder"), (config.model, "text_decoder"), (config.data, "encoder")):
            part[key] = part[key].replace(quickstart.WEIGHTS, str(folder))
        plan.resolve(config)
        return config

    reference = configured({})
    make_records(reference)
    texts = [text for r in RecordSource(reference.data.records) for text in (r.question, r.answer, *r.chain)]
    tiny.write_backbone(folder / "backbone", texts, width=64, layers=2)
    tiny.write_text_decoder(folder / "text_decoder", folder / "backbone", width=32, layers=1)
    tiny.write_siglip(folder / "siglip", layers=1)
    tiny.write_siglip(folder / "siglip_low", layers=1, image=56)
    return configured


def fed(config):
    """(order, taken): (phase's steps, numbers of its first records) by phase, and {record: {(latent steps, tokens of each chain step)}}."""
    feed, order, taken = plan.open_feed(config, "train"), [], {}
    width = feed.features.info["width"] if feed.features else None
    layouts = setup.layouts_of(config, setup.make_method(config, width), width, feed.encoder.prompter)
    for index, (phase, layout) in enumerate(zip(config.phases, layouts, strict=True)):
        batches = feed.phase(layout, phase.max_steps, batch=config.batch, steps=phase.steps, seed=config.seed + index)
        numbers = []
        for _, batch in islice(batches, 4):
            numbers += batch["index"].tolist()
            words = batch["chain_mask"].sum(-1) if "chain_mask" in batch else np.zeros((len(batch["index"]), 1), int)
            for number, K, row in zip(batch["index"].tolist(), batch["latent_steps"].tolist(), words, strict=True):
                taken.setdefault(number, set()).add((K, tuple(row[row > 0].tolist())))
        order.append((phase.steps, numbers))
    return order, taken


@pytest.fixture(scope="module")
def toy_terms():
    """`terms(config)`: the weighted terms of the loss on one batch, at the largest K of the configuration's phases."""
    r = dataclasses.replace
    decoder = r(
        toy.DECODER, layers=2
    )  # one more than the deepest feature of the tower, and no more: compiling is what costs
    sizes = r(toy.CONFIG, decoder=decoder, vision=r(toy.CONFIG.vision, layers=2))
    text = Decoder(r(toy.TEXT, layers=1))
    batch = toy.batch(P=16, K=4)
    whole = setup.abstract_params(Vital(toy.Backbone(sizes, toy.LORA), text, toy.ROI))
    drawn = {name: toy.draw(whole[name]) for name in ("base", "lora")}
    drawn["scaffold"] = {name: toy.draw(whole["scaffold"][name]) for name in ("pj_in", "text_decoder")}
    latent_pass, passes = base.read, {}

    def terms(config):
        phase = max(setup.phases_of(config), key=lambda phase: phase.latent_steps)
        K = phase.latent_steps
        made = setup.make_method(config, 64)
        model = toy.Backbone(sizes, toy.LORA, dtype=np.float32, latent_state=made.model.latent_state)
        method = r(made, model=model, decoder=made.decoder and text, roi_width=made.roi_width and toy.ROI)
        # Each part drawn for itself, so that parts which two rows share are the same.
        parts, suffix = (
            method.abstract().get("scaffold", {}),
            method.layout(phase, base.Budgets(5, 6, roi=toy.ROI)).suffix,
        )
        params = {
            **drawn,
            "scaffold": {name: drawn["scaffold"].get(name) or toy.draw(part) for name, part in parts.items()},
        }
        # A longer chain is cut, as the feed does.
        rows = batch | {"latent_steps": np.minimum(batch["latent_steps"], K)}
        rows |= {name: batch[name][:, :K] for name in ("chain", "chain_mask")}
        regions = np.random.default_rng(5).normal(size=(len(batch["roi"]), K, toy.ROI)).astype(np.float32)
        rows |= {"roi_steps": regions, "roi_steps_mask": np.ones(regions.shape[:2], bool)}
        rows["record_steps"] = rows["latent_steps"]

        def shared(method, params, *rest):
            if (key := (method.model, method.fused, K)) not in passes:
                passes[key] = jax.jit(lambda p, b: latent_pass(method, p, b, suffix))(
                    {name: drawn[name] for name in ("base", "lora")}, rows
                )
            return passes[key]

        shared(method, params)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "read", shared)
            norms = method.normalizers(rows, phase, suffix)
            values = jax.jit(lambda p, b: base.losses(method, p, b, norms, phase, suffix)[0])(params, rows)
        return {name: phase.weight(name) * float(value) for name, value in values.items()}

    return terms


@pytest.fixture(scope="module")
def reference(bench, toy_terms):
    """Everything of the reference, computed once."""
    return computed(bench({}), toy_terms)


def computed(config, toy_terms):
    make_features(config)
    features = plan.open_feed(config, "train", regions=True).features
    order, taken = fed(config)
    return {"order": order, "taken": taken, "features": features, "terms": toy_terms(config)}


def differ(one, other, what):
    """Whether two sides of `computed` differ in one of the things of `CHANGES`."""
    if what in TERMS:
        a, b = (side["terms"].get(what) for side in (one, other))
        if a is None or b is None:
            return a is not b
        gap = abs(a / b - 1)
        assert not 1e-5 < gap < 1e-3, f"{what}: neither the same nor clearly another: {a} and {b}"
        return gap > 1e-3
    if what == "features" and None in (one[what], other[what]):
        return one[what] is not other[what]
    if what == "features":
        (a, seen), (b, also) = ((side["features"].roi, side["features"].valid) for side in (one, other))
        assert (
            np.array_equal(seen, also) and np.sum(seen) > 20
        )  # which records have a region is not the encoder's matter
        return not np.array_equal(a, b)
    if what == "taken":
        # A row may take other records; of those that both take, it takes the same steps or not.
        both = one["taken"].keys() & other["taken"].keys()
        assert len(both) > 10
        # Chains are in the batch only where a loss reads them.
        said = all(words for side in (one, other) for steps in side["taken"].values() for _, words in steps)
        seen = lambda side, number: {step if said else step[0] for step in side["taken"][number]}  # noqa: E731
        return any(seen(one, number) != seen(other, number) for number in both)
    return one[what] != other[what]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CHANGES]
)
def test_a_row_changes_what_it_names_and_nothing_else(name, bench, toy_terms, reference):
    config = bench(ROWS[name])
    row = computed(config, toy_terms)
    assert reference["terms"].keys() == TERMS
    changed = {what for what in ("order", "taken", "features", *TERMS) if differ(reference, row, what)}
    assert changed == CHANGES[name]
    # Every row trains as long as the reference does.
    assert sum(steps for steps, _ in row["order"]) == sum(steps for steps, _ in reference["order"])
    # A term without weight is not computed.
    used = {
        loss
        for phase in setup.phases_of(config)
        for loss in ("text", "visual")
        if phase.latent_steps and phase.weight(loss)
    }
    assert {"text", "visual"} & row["terms"].keys() == used


# --- the command line -------------------------------------------------------------------------------------------------


def parsed(monkeypatch, recipe, *overrides):
    """The configuration that `configuration.run` would hand on for this command line."""
    argv = ["train.py", f"--config={REPOSITORY / 'configs' / recipe}", *overrides]
    own = flags.FlagValues()
    with monkeypatch.context() as patch:
        patch.setattr(flags, "FLAGS", own)
        patch.setattr(sys, "argv", argv)
        holder = config_flags.DEFINE_config_file("config", None, flag_values=own, sys_argv=argv)
        configuration._parse(argv)
        return holder.value


def command(name):
    return [f"--config.{key}={value}" for key, value in ROWS[name].items()]


def test_a_row_is_one_override():
    assert all(len(command(name)) == 1 for name in ROWS)


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_is_an_override_on_the_command_line(name, monkeypatch):
    config = parsed(monkeypatch, "bench.py", *command(name))
    row = campaign.child(ablations.get_config(), name, ROWS[name], 0)
    plain = campaign.child(ablations.get_config(), name, {}, 0)
    sides = [configuration.resolved(side) for side in (config, row, plain)]
    for side in sides:
        for key in ("workdir", "runs", "seeds"):  # a campaign's own business
            side.pop(key)
    assert sides[0] == sides[1] != sides[2]
    for side in (config, row):
        plan.resolve(side)
    assert configuration.resolved(config.phases) == configuration.resolved(row.phases)
    assert config.data.features == row.data.features


@pytest.mark.parametrize("name", CHANGES)
def test_the_papers_recipe_takes_the_same_overrides(name, monkeypatch):
    config = parsed(monkeypatch, "vital.py", *command(name))
    row = paper.get_config()
    row.update_from_flattened_dict(ROWS[name])
    assert configuration.resolved(config) == configuration.resolved(row)
    # The bench takes the steps of the phase and a region for each; the paper's recipe, as the paper says, the record's.
    same = configuration.resolved(config) == configuration.resolved(paper.get_config())
    assert same == (name in ("K of each record", "shared target"))
