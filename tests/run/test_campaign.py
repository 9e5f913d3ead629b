"""Campaigns with a training that only writes known evidence: which runs are made, what is done again, and the report's numbers."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import bench
from vital_jax.evaluate import audit_table
from vital_jax.evaluate.audit_table import Line
from vital_jax.run import campaign, plan
from vital_jax.training.config import resolved

LATENTS = ("VITAL", {})
PLAIN = ("LoRA, direct", {"method": {"name": "direct"}})


def recipe(folder, runs=(PLAIN, LATENTS), seeds=(0,)):
    config = bench.get_config()
    config.workdir, config.runs, config.seeds = str(folder), runs, seeds
    return config


def rows(yesno: str, location: str) -> list[dict]:
    """Judged answers of two question types; a 1 is an exact one."""
    marks = [("yesno", mark) for mark in yesno] + [("location", mark) for mark in location]
    return [
        {
            "id": f"image {i}/{kind}",
            "image": f"image {i}/{kind}",
            "question": "Which side?",
            "gold": "Left.",
            "answer": "Left." if mark == "1" else "Right.",
            "exact": mark == "1",
            "question_type": kind,
            "ask": "side",
        }
        for i, (kind, mark) in enumerate(marks)
    ]


def share(value: float) -> dict:
    return {"share": value, "low": max(value - 0.1, 0.0), "high": min(value + 0.1, 1.0)}


def found(answers: list, blind: list, K: int = 2, own: float = 0.5, same: float | None = 0.25, cosine=0.1) -> dict:
    """What `evidence.evidence` returns, with these numbers; K = 0 has answers alone."""
    out = {"max_steps": K, "gap": "", "answers": answers, "blind": blind}
    if not K:
        return out
    exchanges = {"own": own, "shuffled": 0.05} | ({} if same is None else {"same_class": same})
    hits = {who: {"n": 8, **{f"hit@{k}": share(value) for k in (1, 5, 10)}} for who, value in exchanges.items()}
    retrieval = {"projector": "trained with the run", "n": 8, "gallery": 6, "last": hits, "mean": hits}
    retrieval["chance"] = {f"hit@{k}": min(1, k / 6) for k in (1, 5, 10)}
    sample = {**answers[0], "chain": ["It lies to the left."], "steps": ["It is\non the left."]}
    collapse = [[1.0, cosine], [cosine, 1.0]] if K == 2 else [[1.0]]
    return out | {"collapse": collapse, "retrieval": retrieval, "samples": [sample]}


UNTRAINED = {"config": {"seed": 0}, "frozen backbone": rows("1000", "0000"), "majority answer": rows("1100", "1000")}
GOOD = found(rows("1110", "1110"), rows("1100", "0000"))
PERFECT = found(rows("1111", "1111"), rows("1000", "0000"), own=1.0, same=0.5, cosine=0.3)
NO_LATENTS = found(rows("1100", "1100"), rows("1100", "0000"), K=0)
ZEROS = Line(
    audit_table.TOKENS, "zeros", audit_table.ACCURACY, 8, 0.25, 0.1, 0.6, "Wilson", 0.75, -0.5, -0.75, -0.25, 0.06, 0.5
)
RUN = Line(audit_table.RUN, "K = 2", audit_table.ACCURACY, 8, 0.75, 0.4, 0.9, "Wilson")
AUDIT = {"lines": [vars(ZEROS)], "sentences": ["Zeros do not serve as latents do."], "left_out": []}


def table_rows(text: str, name: str) -> list[list[str]]:
    """The cells behind `name`, of every table row that begins with it."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [cells[1:] for cells in lines if cells[0] == name]


# --- children ---------------------------------------------------------------------------------------------------------


def test_every_run_has_its_own_folder_seed_and_change(tmp_path):
    config = recipe(tmp_path, seeds=(3, 5))
    before = copy.deepcopy(resolved(config))
    made = list(campaign.children(config))
    assert [(name, seed, one.seed) for name, seed, one in made] == [
        (PLAIN[0], 3, 3), ("VITAL", 3, 3), (PLAIN[0], 5, 5), ("VITAL", 5, 5),
    ]  # fmt: skip
    folders = [Path(one.workdir).relative_to(tmp_path).as_posix() for _, _, one in made]
    assert folders == ["lora_direct/seed3", "vital/seed3", "lora_direct/seed5", "vital/seed5"]
    assert [one.method.name for _, _, one in made] == ["direct", "vital"] * 2 and made[0][2].method.to_dict() == {
        "name": "direct"
    }
    assert all(one.runs == () for _, _, one in made)
    # All share the records, and nothing is left behind in the recipe or in a sister.
    assert len({one.data.records for _, _, one in made}) == 1
    assert resolved(config) == before
    made[0][2].phases[0].steps = 1
    assert made[1][2].phases[0].steps == config.phases[0].steps != 1


def test_a_phase_can_be_changed_too(tmp_path):
    one = campaign.child(recipe(tmp_path), "short", {"phases[2].steps": 7, "lora.rank": 4}, 0)
    assert one.phases[2].steps == 7 and one.lora.rank == 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "nothing"}, "run 'VITAL': config.method.name='nothing': no such method; there are vital, direct"),
        ({"projektor": "linear"}, "run 'VITAL': config.method.projektor: .* did you mean 'projector'"),
    ],
)
def test_a_mistake_in_the_last_run_is_named_before_the_first_is_trained(tmp_path, changes, words):
    config = recipe(tmp_path)
    config.method = ConfigDict({**config.method.to_dict(), **changes})
    with pytest.raises(ValueError, match=words):
        campaign.run(config, lambda one: pytest.fail("trained"))


def test_an_unknown_key_is_named_with_the_nearest_and_nothing_is_trained(tmp_path):
    config, trained = recipe(tmp_path, (LATENTS, ("wide", {"lora.rnk": 4}))), []
    with pytest.raises(ValueError, match=r"run 'wide' changes 'lora\.rnk', which is no key; is it 'lora\.rank'\?"):
        campaign.run(config, trained.append)
    assert not trained
    with pytest.raises(ValueError, match=r"run 'far' changes 'zzzz', which is no key$"):
        campaign.child(config, "far", {"zzzz": 4}, 0)


# --- probe and baselines ----------------------------------------------------------------------------------------------


@pytest.fixture
def probed(monkeypatch):
    """(seed, K, splits opened) of every probe that looked; what it finds is `GOOD`."""
    calls, splits = [], []

    def look(method, params, train, test, max_steps, seed):
        calls.append((seed, max_steps, train, test))
        return GOOD if max_steps else NO_LATENTS

    monkeypatch.setattr(campaign.plan, "open_feed", lambda config, split, regions=False: splits.append(split) or split)
    monkeypatch.setattr(campaign.evidence, "evidence", look)
    monkeypatch.setattr(campaign, "audit", lambda config, method, params, feed, K: {**AUDIT, "asked": (feed, K)})
    return calls


class Taught:
    """A method that was taught as it is asked, or not."""

    def __init__(self, said=""):
        self._said = said

    def gap(self, latent_steps):
        return self._said and f"{self._said} {latent_steps}"


def one_run(folder, **changes):
    config = campaign.child(recipe(folder), *LATENTS, 0)
    config.update_from_flattened_dict(changes)
    plan.resolve(config)
    Path(config.workdir).mkdir(parents=True, exist_ok=True)
    return config


def test_a_probe_is_made_once_per_configuration(tmp_path, probed):
    for _ in range(2):
        campaign.probe(one_run(tmp_path), Taught(), {})
    assert len(probed) == 1 and probed[0][1:] == (4, "train", "test")
    path = Path(one_run(tmp_path).workdir) / campaign.EVIDENCE
    written = json.loads(path.read_text())
    assert written.pop("audit") and written == {"config": resolved(one_run(tmp_path)), **GOOD}
    campaign.probe(one_run(tmp_path, **{"optim.learning_rate": 0.5}), Taught(), {})
    assert len(probed) == 2
    assert json.loads(path.read_text())["config"]["optim"]["learning_rate"] == 0.5
    assert [file.name for file in path.parent.iterdir()] == [campaign.EVIDENCE]


def test_a_reversed_curriculum_is_asked_at_its_largest_K(tmp_path, probed):
    config = one_run(tmp_path, curriculum="reverse")
    assert config.phases[-1].latent_steps == 1
    campaign.probe(config, Taught(), {})
    assert probed[0][1] == 4


def test_training_shows_answers_at_the_K_of_every_command(tmp_path, monkeypatch):
    """Of a reversed curriculum too, whose later phases take fewer steps: at each step what `vital answer` would take then."""
    config, asked = one_run(tmp_path, curriculum="reverse"), []

    def answers(method, params, preview, numbers, K):
        asked.append(K)
        return [{"question": "?", "gold": "Yes.", "answer": "Yes.", "exact": True}]

    class Preview:
        def select(self, max_steps):
            return np.array([0])

    monkeypatch.setattr(plan, "answers", answers)
    for done in (1, 2, 3):
        plan.preview_answers(config, None, {}, Preview(), config.phases[:done], done)
    assert [phase.latent_steps for phase in config.phases] == [4, 2, 1] and asked == [4, 4, 4]
    shown = [json.loads(line) for line in (Path(config.workdir) / "answers.jsonl").read_text().splitlines()]
    assert [row["K"] for row in shown] == [4, 4, 4]


def test_a_gap_between_training_and_use_is_kept_and_said(tmp_path, probed, capsys):
    campaign.probe(one_run(tmp_path), Taught("taught otherwise than"), {})
    path = Path(one_run(tmp_path).workdir) / campaign.EVIDENCE
    assert json.loads(path.read_text())["gap"] == "taught otherwise than 4"
    assert "with and without their images, K = 4; taught otherwise than 4" in capsys.readouterr().err


def test_baselines_are_answered_once_per_configuration(tmp_path, monkeypatch):
    asked = []

    class Feed:
        def __init__(self, split):
            self.split, self.source = split, {0: f"{split} record"}

    def ask(method, params, feed, numbers, max_steps, batch):
        asked.append((params, feed.split, numbers, max_steps))
        return ["a reply"]

    def majority(best, test, worded=False):
        assert (best, test) == (["train record"], ["test record"])
        return rows("1110", "1000") if worded else rows("1100", "1000")

    monkeypatch.setattr(campaign.plan, "open_feed", lambda config, split: Feed(split))
    monkeypatch.setattr(campaign.evidence, "questions", lambda feed: [0])
    monkeypatch.setattr(campaign, "ask", ask)
    monkeypatch.setattr(campaign.evidence, "judged", lambda feed, numbers, replies: rows("1000", "0000"))
    monkeypatch.setattr(campaign.score, "frequent", list)
    monkeypatch.setattr(campaign.score, "majority", majority)
    monkeypatch.setattr(campaign.score, "chance", lambda test: [f"chance of a {record}" for record in test])
    monkeypatch.setattr(campaign.setup, "make_method", lambda config, width: "method")
    trained = {"base": "frozen weights", "lora": "drawn adapters"}
    monkeypatch.setattr(campaign.setup, "load_params", lambda config, method, mesh: trained)

    def untrained(**changes):
        config = campaign.child(recipe(tmp_path), "untrained", {"method": {"name": "direct"}, **changes}, 0)
        Path(config.workdir).mkdir(parents=True, exist_ok=True)
        return campaign.baselines(config)

    first = untrained()
    assert first["frozen backbone"] == rows("1000", "0000") and first["majority answer"] == rows("1100", "1000")
    assert first["majority answer to the same question"] == rows("1110", "1000")
    assert first[campaign.score.CHANCE] == ["chance of a test record"]
    # Neither adapters nor latents: the backbone as it came.
    assert asked == [({"base": "frozen weights"}, "test", [0], 0)]
    assert untrained() == first and len(asked) == 1
    assert untrained(**{"data.max_pixels": 64 * 64}) != first and len(asked) == 2


# --- run --------------------------------------------------------------------------------------------------------------


def test_a_campaign_that_broke_off_goes_on_where_it_was(tmp_path, probed, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "baselines", lambda config: UNTRAINED)
    trained = []

    def train(config, broken=None):
        plan.resolve(config)
        trained.append(Path(config.workdir).parent.name)
        if trained[-1] == broken:
            raise RuntimeError("killed")
        Path(config.workdir).mkdir(parents=True, exist_ok=True)
        campaign.probe(config, Taught(), {})

    runs = (PLAIN, LATENTS, ("linear", {"method.projector": "linear"}))
    with pytest.raises(RuntimeError, match="killed"):
        campaign.run(recipe(tmp_path, runs), lambda config: train(config, "vital"))
    assert trained == ["lora_direct", "vital"] and [K for _, K, *_ in probed] == [0]
    assert not (tmp_path / "report.md").exists()
    campaign.run(recipe(tmp_path, runs), train)
    assert trained[2:] == ["lora_direct", "vital", "linear"]
    assert [K for _, K, *_ in probed] == [0, 4, 4]
    report = (tmp_path / "report.md").read_text()
    assert report in capsys.readouterr().out
    assert [table_rows(report, name)[0][1] for name in (PLAIN[0], "VITAL", "linear")] == ["50.0", "75.0", "75.0"]


@pytest.mark.parametrize("key, value", [("dry_run", True), ("eval.evidence", "")])
def test_without_evidence_there_is_nothing_to_report(tmp_path, key, value):
    config, trained = recipe(tmp_path), []
    config.update_from_flattened_dict({key: value})
    campaign.run(config, trained.append)
    assert len(trained) == 2 and not list(tmp_path.iterdir())


def test_runs_with_latents_are_audited_where_the_recipe_asks_for_it(tmp_path, probed):
    def audited(**changes):
        config = one_run(tmp_path, **changes)
        campaign.probe(config, Taught(), {})
        return json.loads((Path(config.workdir) / campaign.EVIDENCE).read_text()).get("audit")

    assert audited()["asked"] == ["test", 4]
    assert audited(**{"eval.audit": 0}) is None and audited(**{"method.max_steps": 0}) is None


# --- report -----------------------------------------------------------------------------------------------------------


def test_one_seed_is_a_table_of_systems_and_what_the_latents_hold():
    text = campaign.report(UNTRAINED, [(PLAIN[0], 0, NO_LATENTS), ("VITAL", 0, GOOD)])
    # Wilson's 95 % intervals of 1, 3, 2, 4 and 6 of 8; then the accuracy per question type.
    assert table_rows(text, "system") == [["N", "accuracy", "95 % interval", "location (4)", "yesno (4)"]]
    assert table_rows(text, "frozen backbone") == [["8", "12.5", "2.2 to 47.1", "0.0", "25.0"]]
    assert table_rows(text, "majority answer") == [["8", "37.5", "13.7 to 69.4", "25.0", "50.0"]]
    assert table_rows(text, "VITAL, images exchanged") == [["8", "25.0", "7.1 to 59.1", "0.0", "50.0"]]
    assert table_rows(text, PLAIN[0]) == [["8", "50.0", "21.5 to 78.5", "50.0", "50.0"]]
    assert table_rows(text, "VITAL") == [["8", "75.0", "40.9 to 92.9", "75.0", "75.0"]]
    assert "## What the latents of 'VITAL' hold (seed 0)" in text
    assert table_rows(text, "own latents, last step") == [["8", *["50.0 [40.0, 60.0]"] * 3]]
    assert table_rows(text, "z_1") == [["1.000", "0.100"]]
    assert "step 1 says: It is on the left." in text and "(taught: It lies to the left.)" in text
    assert "Mean and standard deviation" not in text and text.endswith(campaign.CLOSING)


def test_the_table_says_with_how_many_steps_each_run_is_asked():
    text = campaign.report(
        UNTRAINED, [(PLAIN[0], 0, NO_LATENTS), ("VITAL", 0, GOOD), ("own", 0, {**GOOD, "gap": "taught otherwise"})]
    )
    said = "LoRA, direct with K = 0, VITAL with K = 2, own with K = 2 (taught otherwise)."
    assert f"Every question is asked with the same number of latent steps, as every command asks: {said}" in text


def test_an_audit_stands_beside_what_the_latents_hold():
    text = campaign.report(UNTRAINED, [("VITAL", 0, {**GOOD, "audit": AUDIT})])
    (_, _, section) = text.partition("## Whether the latents of 'VITAL' matter (seed 0)")
    (cells,) = table_rows(section, "token replacement")
    assert cells[:4] == ["zeros", "accuracy, %", "8", "25.0"] and "- Zeros do not serve as latents do." in section
    assert "Whether the latents" not in campaign.report(UNTRAINED, [("VITAL", 0, GOOD)])
    by = {"key": "question_type", "lines": [{"group": "yesno", **vars(ZEROS)}, {"group": "yesno", **vars(RUN)}]}
    held = [
        {"kind": "yesno", "length": 1, "n": 4, "cosine": {}, "rank": {}, "probe": {"z_1": [{"n": 4, **share(0.5)}]}}
    ]
    text = campaign.report(UNTRAINED, [("VITAL", 0, {**GOOD, "audit": {**AUDIT, "by": by, "steps": held}})])
    assert "Accuracy by question_type" in text and table_rows(text, "token replacement")[-1] == [
        "zeros",
        "25.0 (-50.0)",
    ]
    assert table_rows(text, "yesno") == [["z_1", "4", "50.0 [40, 60]"]] and "every line" not in text


def test_the_words_of_a_report_are_true_of_free_answers_too():
    text = campaign.report(UNTRAINED, [("VITAL", 0, GOOD)])
    assert text.startswith("# Held-out questions: exact answers in percent\n")
    for words in ("closed-ended", "balanced", "offers its answers", "equally often"):
        assert words not in text


def test_runs_without_latents_alone_have_no_section_about_them():
    text = campaign.report(UNTRAINED, [(PLAIN[0], 0, NO_LATENTS)])
    assert table_rows(text, f"{PLAIN[0]}, images exchanged") and "What the latents" not in text


def test_several_seeds_have_a_table_each_and_mean_and_spread():
    runs = [(PLAIN[0], 0, NO_LATENTS), ("VITAL", 0, GOOD), (PLAIN[0], 1, NO_LATENTS), ("VITAL", 1, PERFECT)]
    text = campaign.report(UNTRAINED, runs)
    assert "Seed 0:" in text and "Seed 1:" in text and "over 2 seeds:" in text
    assert "What the latents of 'VITAL' hold (seed 1)" in text
    first, second, both, kinds = table_rows(text, "VITAL")
    assert (first[1], second[1]) == ("75.0", "100.0") and second[2] == "67.6 to 100.0"
    # Of (a, b): mean (a + b) / 2, sample standard deviation |a - b| / sqrt(2).
    assert both == ["87.5 ± 17.7", "18.8 ± 8.8", "75.0 ± 35.4", "37.5 ± 17.7", "20.0 ± 14.1"]
    assert table_rows(text, PLAIN[0])[-2] == ["50.0 ± 0.0", "25.0 ± 0.0", "", "", ""]
    # 3 and 4 of 4 of each kind; 2 of 4 at both seeds.
    assert table_rows(text, "run")[1] == ["location (4)", "yesno (4)"] and kinds == ["87.5 ± 17.7"] * 2
    assert table_rows(text, PLAIN[0])[-1] == ["50.0 ± 0.0"] * 2


def test_three_seeds_by_hand():
    answers = [rows("1000", "0000"), rows("1100", "0000"), rows("1111", "1000")]  # 12.5, 25 and 62.5 percent
    text = campaign.spread([("VITAL", seed, found(each, each)) for seed, each in enumerate(answers)])
    # Mean 100 / 3; squared differences 434.0, 69.4 and 850.7, their sum over 2 is 677.1, its root 26.0.
    assert table_rows(text, "VITAL")[0][:2] == ["33.3 ± 26.0"] * 2
    # Yes or no: 25, 50 and 100 percent, 58.3 in the mean; squared differences 1111.1, 69.4 and 1736.1. Location: 0, 0, 25.
    by_kind = campaign.spread_by_kind([("VITAL", seed, found(each, each)) for seed, each in enumerate(answers)])
    assert table_rows(by_kind, "VITAL") == [["8.3 ± 14.4", "58.3 ± 38.2"]]


@pytest.mark.parametrize(
    "lacks, blank",
    [
        (found(rows("1", "1"), rows("1", "0"), same=None), [3]),  # every region is of another target
        (found(rows("1", "1"), rows("1", "0"), cosine=None), [4]),  # no record takes both steps
        (found(rows("1", "1"), rows("1", "0"), K=1), [4]),  # one step has no other to be compared with
        ({name: value for name, value in GOOD.items() if name != "retrieval"}, [2, 3]),
    ],
    ids=["no partner", "no pair", "one step", "no features"],
)
def test_what_a_run_does_not_show_is_blank(lacks, blank):
    (cells,) = table_rows(campaign.spread([("VITAL", 0, lacks), ("VITAL", 1, lacks)]), "VITAL")
    assert [i for i, cell in enumerate(cells) if not cell] == blank


def test_systems_that_answered_other_questions_are_not_compared():
    other = found(rows("1110", "111"), rows("1100", "000"))
    with pytest.raises(ValueError, match="did not answer the same questions"):
        campaign.report(UNTRAINED, [("VITAL", 0, other)])
