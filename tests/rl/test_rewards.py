"""Built-in rewards by hand, rewards in a file of the user's with every mistake that can be made in it, and their order beside decoding."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from vital_jax.pipeline.records import Record
from vital_jax.rl.builtin import BUILT_IN, Reply
from vital_jax.rl.rewards import Reward, RewardError, load
from vital_jax.rl.scorer import Scorer

RECORD = Record(
    "set/7",
    (b"image",),
    "Which side?",
    "Two cysts",
    options=("Two cysts", "One mass"),
    gold="A",
    boxes=((0.0, 0.0, 0.5, 0.5),),
)


def reply(text="", tokens=(1, 2, 3), limit=10, ended=True):
    return Reply(text, tuple(tokens), limit, ended)


def worth(name, given, record=RECORD, **options):
    (reward,) = load([(name, 1.0, options)])
    return reward(record, given if isinstance(given, Reply) else reply(given))


THINK = {"markers": ("<think>", "</think>", "<answer>", "</answer>")}


@pytest.mark.parametrize(
    ("name", "given", "value", "options"),
    [
        ("exact", "two  CYSTS", 1, {}),
        ("exact", "Two cysts.", 0, {}),
        ("normalised", "<think>one mass</think> The answer is **2 cysts**.", 1, {}),
        ("normalised", "one mass", 0, {}),
        ("choice", "The answer is (A).", 1, {}),
        ("choice", "two cysts, I think", 1, {}),
        ("choice", "B", 0, {}),
        ("choice", "A or B", 0, {}),
        ("token_f1", "the two large cysts", 0.8, {}),  # precision 2/3, recall 1
        ("token_f1", "a mass", 0, {}),
        ("boxes", "at [0, 0, .5, 0.5]", 1, {}),
        ("boxes", "(0, 0, 1.0, 0.5)", 0.5, {}),
        ("boxes", "[0, 0, 500, 500] and [600, 600, 700, 700]", 0.5, {"scale": 1000}),
        ("boxes", "[0, 0, 500, 500] [0, 250, 500, 500]", 1, {"scale": 1000, "by": "union"}),
        ("boxes", "[0, 0, .5, .5] [0, 0, .5, .5]", 1, {}),  # said twice
        ("boxes", "none", 0, {}),
        ("boxes", f"[0, 0, {'9' * 400}, 1e5, -3, {'9' * 200}]", 0, {}),
        ("boxes", f"[-5, -{'9' * 400}, {'9' * 400}, {'9' * 200}]", 0.25, {}),
        ("boxes", "<think>[0, 0, .5, .5]</think> I cannot tell", 0, {}),
        ("format", "<think>x</think>\n<answer>y</answer>\n", 1, THINK),
        ("format", "So <think>x</think><answer>y</answer>", 0, THINK),
        ("format", "So <think>x</think><answer>y</answer>", 1, {**THINK, "around": False}),
        ("format", "<think>x</think><answer>y</answer><answer>", 0, THINK),
        ("format", "<answer>y</answer><think>x</think>", 0, THINK),
        ("format", "", 0, THINK),
        ("length", reply(tokens=range(4)), -0.4, {}),
        ("overlong", reply(tokens=range(6)), 0, {"buffer": 4}),
        ("overlong", reply(tokens=range(7)), -0.25, {"buffer": 4}),
        ("overlong", reply(tokens=range(10)), -1, {"buffer": 4}),
        ("repetition", reply(tokens=(1, 2, 3, 4)), 0, {"n": 2}),
        ("repetition", reply(tokens=(5,) * 5), -0.75, {"n": 2}),  # the example of TRL's docstring
        ("repetition", reply(tokens=(5, 5)), 0, {}),
    ],
)
def test_built_in(name, given, value, options):
    assert worth(name, given, **options) == pytest.approx(value, abs=1e-6)


def test_every_built_in_says_what_it_is():
    assert all(function.__doc__ for function, _ in BUILT_IN.values())


def test_a_record_that_a_reward_is_not_for_is_named():
    bare = replace(RECORD, options=(), gold="", boxes=())
    for name, what in (("choice", "no options"), ("boxes", "no boxes")):
        with pytest.raises(RewardError, match=rf"record 'set/7': reward '{name}' raised ValueError: .*{what}"):
            worth(name, "A", bare)
    with pytest.raises(RewardError, match=r"buffer=11 is longer than the longest reply, 10 tokens"):
        worth("overlong", "", buffer=11)


GOOD = '''"""Mine."""
import json
from math import sqrt


def close(record, reply, *, tolerance=1.0):
    return abs(len(reply.text) - len(record.answer)) <= tolerance


def wrong(record, reply):
    return json.loads(reply.text)["score"]


def nothing(record, reply):
    pass


def odd(record, reply):
    return {"nan": float("nan"), "text": "1", "list": [1]}[reply.text]


def narrow(record):
    return 1
'''


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path / "mine.py"


def test_a_function_of_the_users(rewards):
    strict, loose = load([("mine.py:close", 2), (f"{rewards}:close", 0.5, {"tolerance": 9})])
    assert (strict.name, strict.weight, loose.name, loose.weight) == ("close", 2.0, "close_2", 0.5)
    assert [strict(RECORD, reply("two cyst")), strict(RECORD, reply("cysts")), loose(RECORD, reply("cysts"))] == [
        1,
        0,
        1,
    ]
    assert not list(rewards.parent.glob("__pycache__"))


def test_a_file_that_was_changed_is_read_anew(rewards):
    (before,) = load([("mine.py:nothing", 1)])
    rewards.write_text(GOOD.replace("    pass", "    return 3"))
    (after,) = load([("mine.py:nothing", 1)])
    assert after(RECORD, reply()) == 3
    with pytest.raises(RewardError):
        before(RECORD, reply())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("wrong", "[]", r"reward 'wrong' raised TypeError: .* \(mine\.py:11\)"),
        ("wrong", "no", r"reward 'wrong' raised JSONDecodeError: .* \(mine\.py:11\)"),
        ("nothing", "", r"reward 'nothing' returned None; a reward is a finite number \(mine\.py:14\)"),
        ("odd", "nan", r"reward 'odd' returned nan; .* \(mine\.py:18\)"),
        ("odd", "text", r"reward 'odd' returned '1'; "),
        ("odd", "list", r"reward 'odd' returned \[1\]; "),
    ],
)
def test_a_mistake_in_it_names_record_function_and_line(rewards, name, text, message):
    (reward,) = load([(f"mine.py:{name}", 1)])
    with pytest.raises(RewardError, match=rf"^record 'set/7': {message}"):
        reward(RECORD, reply(text))


@pytest.mark.parametrize("value", [True, 1, 0.5, np.float32(0.5), np.int64(1), np.bool_(True)])
def test_numbers_are_numbers_whoever_makes_them(value):
    assert Reward("r", 1, lambda record, reply: value)(RECORD, reply()) == float(value)


@pytest.mark.parametrize("value", [float("inf"), -np.inf, np.float32("nan"), 1j, np.ones(1), "1", None])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(RewardError, match="a reward is a finite number"):
        Reward("r", 1, lambda record, reply: value)(RECORD, reply())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("exat", 1),
            r"reward 'exat' is not known; did you mean 'exact'\? There are exact, .* judge, file\.py:function",
        ),
        (
            ("mine.py:cloze", 1),
            r"mine\.py: function 'cloze' is not known; did you mean 'close'\? There are close, wrong",
        ),
        (("mine.py", 1), r"mine\.py: function '' is not known; there are close, wrong, nothing, odd, narrow$"),
        (("none.py:f", 1), r"none\.py: no such file of rewards \(looked for from "),
        (
            ("mine.py:narrow", 1),
            r"reward 'mine\.py:narrow': too many positional arguments; a reward takes \(record, reply\)",
        ),
        (("mine.py:close", 1, {"tol": 1}), r"unexpected keyword argument 'tol'; .*its options are tolerance"),
        (("exact", 1, {"case": 1}), r"unexpected keyword argument 'case'; .*it takes no options"),
        (("format", 1), r"reward 'format': missing a required (keyword-only )?argument: 'markers'"),
        (("format", 1, {"markers": "<think>"}), r"reward 'format': markers='<think>': use a list of texts"),
        (("overlong", 1, {"buffer": 0}), r"reward 'overlong': buffer=0: use a whole number of tokens, at least 1"),
        (("boxes", 1, {"by": "union_"}), r"by='union_': did you mean 'union'\?"),
        (("exact", float("nan")), r"reward 'exact': weight=nan: use a finite number"),
        (("exact", "1"), r"reward 'exact': weight='1'"),
        (("exact",), r"reward \('exact',\) is not \(function, weight\)"),
        ("exact", r"reward 'exact' is not \(function, weight\)"),
        (("judge", 1), r"reward 'judge' needs a folder"),
    ],
)
def test_a_row_that_will_not_do(rewards, row, message):
    with pytest.raises(ValueError, match=message):
        load([row])


def test_no_rewards():
    with pytest.raises(ValueError, match="no rewards: give at least one"):
        load([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(record, reply):\n    return (1\n", r"mine\.py:2: cannot be read, SyntaxError: '\(' was never closed"),
        ("x = 1\nimport nothing_of_this_name\n", r"mine\.py:2: cannot be read, ModuleNotFoundError"),
        ("x = 1\n", r"mine\.py: defines no function"),
    ],
)
def test_a_file_that_cannot_be_read(rewards, text, message):
    rewards.write_text(text)
    with pytest.raises(ValueError, match=message):
        load([("mine.py:f", 1)])


def test_chunks_come_back_in_their_order():
    """The first chunk is scored last, and a chunk is added while another is scored."""
    gate = threading.Event()

    def slow(record, reply):
        assert reply.text != "0" or gate.wait(10)
        return float(reply.text)

    rewards = (Reward("slow", 1, slow), Reward("twice", 1, lambda record, reply: 2 * float(reply.text)))
    with Scorer(rewards, threads=2) as scorer:
        scorer.add(2, [RECORD] * 2, [reply("4"), reply("5")])
        scorer.add(0, [RECORD], [reply("0")])
        scorer.add(1, [RECORD] * 3, [reply(x) for x in "123"])
        gate.set()
        found = scorer.result()
        assert {name: x.tolist() for name, x in found.items()} == {
            "slow": [0, 1, 2, 3, 4, 5],
            "twice": [0, 2, 4, 6, 8, 10],
        }
        # The next step starts anew.
        assert {name: x.shape for name, x in scorer.result().items()} == {"slow": (0,), "twice": (0,)}
        scorer.add(0, [RECORD], [reply("7")])
        assert scorer.result()["slow"].tolist() == [7]


def test_the_first_mistake_in_order_is_told_whichever_came_first():
    early = threading.Event()

    def reward(record, reply):
        if reply.text == "second":
            early.set()
        else:
            assert early.wait(10)
        raise KeyError(reply.text)

    with Scorer((Reward("r", 1, reward),), threads=2) as scorer:
        scorer.add(1, [RECORD], [reply("second")])
        scorer.add(0, [RECORD], [reply("first")])
        with pytest.raises(RewardError, match="KeyError: 'first'"):
            scorer.result()


def test_a_mistake_drops_what_has_not_begun():
    asked = []

    def reward(record, reply):
        asked.append(reply.text)
        time.sleep(0.005)
        return 1 / (asked != ["first"])

    with Scorer((Reward("r", 1, reward),), threads=1) as scorer:
        scorer.add(0, [RECORD] * 500, [reply("first")] * 500)
        with pytest.raises(RewardError, match="ZeroDivisionError"):
            scorer.result()
    assert len(asked) < 500


def test_chunks_must_fit():
    with Scorer((Reward("r", 1, lambda *_: 0),)) as scorer:
        scorer.add(0, [RECORD], [reply()])
        with pytest.raises(ValueError, match="chunk 0: given before"):
            scorer.add(0, [RECORD], [reply()])
        with pytest.raises(ValueError, match="2 records for 1 replies"):
            scorer.add(1, [RECORD] * 2, [reply()])
