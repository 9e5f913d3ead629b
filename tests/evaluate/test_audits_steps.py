"""What each step holds: sentences and latents of which it is known, and a probe worked by hand and by least squares."""

import json

import numpy as np
import pytest

from vital_jax.evaluate import audit_table as table
from vital_jax.evaluate import figure, steps_held
from vital_jax.evaluate.geometry import alike
from vital_jax.evaluate.steps_held import RIDGE, halves, labels_of, ridge
from vital_jax.pipeline.records import Record

NAMES = ("aorta", "bladder", "colon", "disc")


def record(number: int, names: list[str], **metadata) -> Record:
    chain = tuple(f"The {a} flows to the {b}." for a, b in zip(["start", *names], names, strict=False))
    return Record(f"r{number}", (b"x",), "Which?", "It.", chain=chain, metadata={"steps": names, **metadata})


def sentence(a: str, b: str) -> str:
    return f"The {a} flows to the {b}."


# --- sentences ----------------------------------------------------------------------------------------------------------


def test_each_sentence_is_compared_with_its_own_and_a_later_one_with_the_last():
    records = [record(i, ["aorta", "colon"]) for i in range(4)] + [record(4, ["disc"])]
    first, second = sentence("start", "aorta"), sentence("aorta", "colon")
    said = [
        [f" {first.upper()}", second, second],
        [first, sentence("heart", "colon"), "colon"],  # the last word is right, the sentence is not
        [second, first, ""],
        [sentence("start", "disc"), second[:-1], "The colon is it."],  # the full stop counts in the sentence alone
        [sentence("start", "disc"), "disc", "nothing"],
    ]
    own = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]], bool)
    z = np.random.default_rng(0).normal(size=(5, 3, 4))
    found = steps_held.steps_held(records, z, own, z[:, 0], list("abcde"), said)
    assert [(one["kind"], one["length"], one["n"]) for one in found] == [("chain of 1", 1, 1), ("chain of 2", 2, 4)]
    read = found[1]["read"]
    assert [(one["step"], one["beyond"], one["n"]) for one in read.values()] == [
        (1, False, 4),
        (2, False, 4),
        (2, True, 3),
    ]
    assert [one["exact"]["share"] for one in read.values()] == [2 / 4, 1 / 4, 1 / 3]
    assert [one["last_word"]["share"] for one in read.values()] == [2 / 4, 3 / 4, 2 / 3]
    assert (read["z_1"]["exact"]["low"], read["z_1"]["exact"]["high"]) == pytest.approx(
        (0.15, 0.85), abs=1e-3
    )  # 2 of 4
    (one,) = (found[0]["read"],)
    assert [each["exact"]["share"] for each in one.values()] == [1, 0] and [
        each["last_word"]["share"] for each in one.values()
    ] == [1, 1]
    assert [each["beyond"] for each in one.values()] == [False, True] and "z_3" not in one
    # Of one image nothing can be held back, and how alike the steps are is that of the same rows.
    assert "probe" not in found[0] and found[1]["cosine"] == alike(z[:4], own[:4], list("abcd"))["cosine"]
    assert found[1]["rank"]["3"]["n"] == 3 and found[1]["rank"]["2"]["n"] == 1


# --- the probe ----------------------------------------------------------------------------------------------------------


def test_ridge_by_hand():
    # x is standard already; its mean squared length is 1, so the penalty is 0.01: slope 1 / (2 + 0.01) of what y lies off its mean.
    out = ridge(np.array([[-1.0], [1.0]]), np.eye(2), np.array([[3.0], [0.0]]))
    np.testing.assert_allclose(out, [[0.5 - 3 / 2.01, 0.5 + 3 / 2.01], [0.5, 0.5]])
    # A coordinate that never changes tells nothing, and where none does the means are left.
    still = ridge(np.array([[-1.0, 7], [1, 7]]), np.eye(2), np.array([[3.0, 9]]))
    assert still.shape == (1, 2)
    np.testing.assert_allclose(ridge(np.ones((4, 3)), np.eye(4)[:, :2], np.ones((1, 3))), [[0.25, 0.25]])


@pytest.mark.parametrize("n, D", [(30, 5), (12, 40)])
def test_ridge_is_least_squares_with_the_penalty_as_further_rows(n, D):
    r = np.random.default_rng(n)
    x, y, asked = r.normal(3, 2, (n, D)), np.eye(4)[r.integers(0, 4, n)], r.normal(3, 2, (7, D))
    standard = lambda rows: (rows - x.mean(0)) / x.std(0)  # noqa: E731
    # Standardised, the mean squared length of a row is D.
    rows = np.concatenate([standard(x), (RIDGE * D) ** 0.5 * np.eye(D)])
    slopes, *_ = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((D, 4))]), rcond=None)
    np.testing.assert_allclose(ridge(x, y, asked), y.mean(0) + standard(asked) @ slopes, atol=1e-9)


def test_halves_never_part_an_image():
    images = [f"image {i // 3}" for i in range(30)]
    half = halves(images, seed=2)
    assert half.shape == (30,) and half.sum() == 15
    assert all(len({int(h) for h, other in zip(half, images, strict=True) if other == image}) == 1 for image in images)
    assert (halves(images, seed=3) != half).any()
    assert sorted(halves("abc").tolist()) == [0, 0, 1]


@pytest.fixture(scope="module")
def planted():
    """60 chains of two and 8 of one; z_k points where the k-th name says, z_0 and z_3 nowhere."""
    r = np.random.default_rng(0)
    names = [[NAMES[i % 4], NAMES[(i // 4) % 4]] for i in range(60)] + [
        ["aorta" if i < 6 else "bladder"] for i in range(8)
    ]
    z, z0 = 0.1 * r.normal(size=(68, 3, 6)), r.normal(size=(68, 6))
    for i, row in enumerate(names[:60]):
        for k, name in enumerate(row):
            z[i, k, NAMES.index(name)] += 1
    records = [record(i, row, question_type=f"{len(row)} hops") for i, row in enumerate(names)]
    images = [str(i) for i in range(68)]
    return records, z, np.ones((68, 3), bool), z0, images


@pytest.fixture(scope="module")
def held(planted):
    found = steps_held.steps_held(*planted)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_a_name_is_found_in_the_step_that_holds_it_and_in_no_other(held):
    one, two = held
    probe = two["probe"]
    assert list(probe) == ["most frequent", "z_0", "z_1", "z_2", "z_3"] and all(
        len(shares) == 2 for shares in probe.values()
    )
    assert probe["z_1"][0] == {"n": 60, "share": 1.0, "low": pytest.approx(0.9398, abs=1e-4), "high": 1.0}
    assert probe["z_2"][1]["share"] == 1
    for name, step in (("z_0", 0), ("z_0", 1), ("z_1", 1), ("z_2", 0), ("z_3", 0), ("z_3", 1)):
        assert probe[name][step]["share"] < 0.5, (name, step)
    # Six of eight are one name, and in no half is it the rarer one: a tie goes to the alphabet.
    assert one["probe"]["most frequent"] == [
        {"n": 8, "share": 0.75, **{k: one["probe"]["most frequent"][0][k] for k in ("low", "high")}}
    ]
    assert "read" not in one


def test_rows_without_the_step_or_without_names_are_not_counted(planted):
    records, z, own, z0, images = planted
    own = own.copy()
    own[:20, 2], own[:10, 1] = False, False
    bare = [record(i, []) if i < 5 else one for i, one in enumerate(records)]
    bare[5] = Record("r5", (b"x",), "Which?", "It.", chain=("One.", "Two."))
    (_, two) = steps_held.steps_held(bare, z, own, z0, images)
    # Five have no chain; one has one and names nothing.
    assert two["n"] == 55 and {name: shares[0]["n"] for name, shares in two["probe"].items()} == {
        "most frequent": 54, "z_0": 54, "z_1": 54, "z_2": 50, "z_3": 40,
    }  # fmt: skip
    shared = steps_held.steps_held(records, z, planted[2], z0, ["one"] * 68)
    assert all("probe" not in one for one in shared)


def test_kinds_are_kept_apart_and_named_by_length_where_they_have_several(planted):
    groups = ["10 hops"] * 30 + ["2 hops"] * 30 + ["2 hops"] * 8
    found = steps_held.steps_held(*planted, groups=groups)
    assert [(one["kind"], one["n"]) for one in found] == [
        ("2 hops, chain of 1", 8),
        ("2 hops, chain of 2", 30),
        ("10 hops", 30),
    ]


def test_a_chain_whose_steps_are_not_all_named_is_refused():
    assert labels_of([record(0, ["aorta"]), Record("r", (b"x",), "?", "It.", chain=("One.",))]) == [["aorta"], []]
    with pytest.raises(
        ValueError, match="record 'r1': metadata 'steps' names 1 steps, its chain has 2; name all or none"
    ):
        labels_of([record(1, ["aorta", "colon"], steps=["aorta"])])


# --- as lines and tables ------------------------------------------------------------------------------------------------


def test_lines_are_of_own_steps_and_tables_of_all(planted):
    records, z, own, z0, images = planted
    said = [[sentence("start", row.metadata["steps"][0])] * 3 for row in records]
    found = steps_held.steps_held(records, z, own, z0, images, said)
    lines = {(line.what, line.measure): line for line in steps_held.lines(found)}
    shown = lambda name, measure: lines[f"chain of 2: {name}", measure].value  # noqa: E731
    assert shown("z_1, step 1", table.SENTENCE) == shown("z_1, step 1", table.LAST_WORD) == 1
    assert (
        shown("z_2, step 2", table.SENTENCE) == 0 and shown("z_2, step 2", table.LAST_WORD) == 0.25
    )  # 15 of 60 stay where they are
    assert shown("z_1, step 1", table.PROBE) == shown("z_2, step 2", table.PROBE) == 1
    assert ("chain of 2: z_3, step 2 (beyond its chain)", table.PROBE) in lines
    assert ("chain of 2: z_1, step 2", table.PROBE) not in lines and (
        "chain of 2: z_0, step 1",
        table.PROBE,
    ) not in lines
    assert {what for what, measure in lines if "frequent" in what} == {
        "chain of 1: most frequent, step 1", "chain of 2: most frequent, step 1", "chain of 2: most frequent, step 2",
    }  # fmt: skip
    sentences, probe, alike_ = figure.more({"steps": found})
    assert sentences[1] == ["chains", "N", "z_1", "z_2", "z_3"]
    assert sentences[2][1] == ["chain of 2", "60", "100.0 (100.0)", "0.0 (25.0)", "0.0 (25.0)+"]
    assert probe[1] == ["chains", "latent", "N", "step 1", "step 2"]
    rows = {(row[0], row[1]): row[2:] for row in probe[2]}
    assert rows["chain of 2", "z_1"][:2] == ["60", "100.0 [94, 100]"] and rows["chain of 1", "most frequent"][2] == ""
    assert alike_[1] == ["chains", "N", "rank", "z_1 z_2", "z_1 z_3", "z_2 z_3"] and alike_[2][1][:2] == [
        "chain of 2",
        "60",
    ]
    assert figure.more({}) == [] == figure.more({"steps": []})
    assert "94, 100" in figure.page("run", "", {"lines": [vars(table.share(table.RUN, "K = 3", table.ACCURACY, 1, 2))],
                                                "sentences": [], "left_out": [], "steps": found})  # fmt: skip
