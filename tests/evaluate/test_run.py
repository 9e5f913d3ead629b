"""A benchmark put to the toy model: what cannot be asked, what a kill costs, two turns, and whose seconds count."""

import io
import itertools
from collections import Counter
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import toyfeed

from vital_jax.evaluate import looking, run
from vital_jax.evaluate.answers import Answers
from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols import get
from vital_jax.latent.engine import Engine
from vital_jax.latent.loop import variables_of

CONTROL = "<|end|>"


class Prompter(toyfeed.Prompter):
    """Has a control token."""

    control_tokens = (CONTROL,)


class Encoder(toyfeed.Encoder):
    """Takes steps from metadata, as the real one; refuses control tokens; notes what it is given."""

    prompter = Prompter()

    def __init__(self):
        self.seen = []

    def measure(self, asked):
        assert asked.images
        if any(CONTROL in text for text in (asked.question, *itertools.chain(*asked.earlier))):
            raise ValueError(f"record {asked.id!r}: the text contains the control token {CONTROL}")
        return super().measure(asked)

    def encode(self, asked, layout, index, roi=None):
        self.seen.append(asked)
        return super().encode(asked, layout, index)


ITEMS = [
    Item(f"q{n}", record.images, record.question, record.answer, benchmark="toy", split="test",
         metadata={"latent_steps": 1 + n % 4} if n % 5 else {})
    for n, record in enumerate(itertools.islice(toyfeed.records("test", 3), 11))
]  # fmt: skip
PAPER = get("paper")


@pytest.fixture(scope="module")
def weights():
    vital = toy.method()
    return vital.model, variables_of(toy.params(vital))


@pytest.fixture
def engine(weights):
    return Engine(weights[0], Encoder(), ((toyfeed.S, toyfeed.P),))


def asking(engine, **options):
    length, warm = 4, options.pop("temperature", 0.0)
    return run.Asking(options.pop("protocol", PAPER), 4, engine.decoding(length, warm), **{"batch": 4, **options})


@pytest.fixture
def ask(engine, weights, tmp_path):
    """`ask(folder, ...)`: answers the items; returns {id: row}."""

    def ask(name, items=ITEMS, stop=None, read=None, out=None, **options):
        how = asking(engine, **options)
        plan = run.check(engine, items, how)
        with Answers(tmp_path / name, how.settings()) as answers:
            if stop is not None:
                append, left = answers.append, iter([True] * stop)

                def cut(rows):
                    if not next(left, False):
                        raise KeyboardInterrupt
                    append(rows)

                answers.append = cut
            run.answer(engine, lambda: weights[1], plan, how, answers, read, out or io.StringIO())
            return dict(answers.rows)

    return ask


def told(rows):
    return {key: (row["prediction"], row["log_prob"], row["tokens"]) for key, row in rows.items()}


# --- asking -----------------------------------------------------------------------------------------


def test_every_item_is_answered_as_the_engine_answers_it(ask, engine, weights):
    rows = ask("a")
    assert list(rows) == [item.id for item in ITEMS]
    requests = [run.Asked(item, PAPER.prompt(item)) for item in ITEMS]
    for places, groups in engine.ask(weights[1], requests, 4, engine.decoding(4), batch=4):
        for place, (reply,) in zip(places, groups, strict=True):
            row = rows[f"q{place}"]
            assert row["prediction"] == reply.text and row["K"] == 4 and row["complete"] == reply.complete
            assert row["tokens"] == len(reply.tokens) and row["log_prob"] == pytest.approx(reply.log_prob, abs=1e-4)
            assert row["latency"] > 0 and "steps" not in row and "first" not in row


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_run_that_was_stopped_gives_the_same_answers_and_asks_none_twice(ask, engine, temperature):
    whole = ask("whole", temperature=temperature)
    engine.encoder.seen.clear()
    with pytest.raises(KeyboardInterrupt):
        ask("cut", temperature=temperature, stop=1)
    asked = Counter(one.id for one in engine.encoder.seen)
    assert set(asked) == {f"q{n}" for n in range(8)}  # two groups, of which the second was lost
    engine.encoder.seen.clear()
    out = io.StringIO()
    again = ask("cut", temperature=temperature, out=out)
    assert {one.id for one in engine.encoder.seen} == {f"q{n}" for n in range(4, 11)}
    assert told(again) == told(whole)
    assert out.getvalue().startswith("4 of 11 are answered already\n")
    engine.encoder.seen.clear()
    assert told(ask("cut", temperature=temperature)) == told(whole) and not engine.encoder.seen


def test_a_finished_evaluation_reads_no_weights(ask, engine, tmp_path):
    ask("a")
    how = asking(engine)
    with Answers(tmp_path / "a", how.settings()) as answers:
        run.answer(
            engine, lambda: pytest.fail("weights"), run.check(engine, ITEMS, how), how, answers, None, io.StringIO()
        )


def test_draws_depend_on_the_seed(ask):
    first, same, other = (ask(str(n), temperature=1.5, seed=seed) for n, seed in enumerate((0, 0, 1)))
    assert told(first) == told(same) != told(other)
    copies = [replace(ITEMS[0], id=str(n)) for n in range(8)]
    drawn = [row["prediction"] for row in ask("copies", items=copies, temperature=1.5).values()]
    assert drawn[:4] != drawn[4:], "groups do not repeat each other's draws"


def test_steps_per_sample_are_the_items_own(ask):
    rows = ask("a", eval_k="per_sample")
    assert [row["K"] for row in rows.values()] == [item.metadata.get("latent_steps", 4) for item in ITEMS]
    with pytest.raises(ValueError, match="no item states its own latent steps"):
        ask("b", items=ITEMS[:1], eval_k="per_sample")


def test_steps_are_read_in_programs_of_one_size_and_kept_for_own_steps_alone(ask):
    shapes = []

    def read(z):
        shapes.append(z.shape)
        return [[f"{np.linalg.norm(step):.3f}" for step in row] for row in z]

    rows = ask("a", eval_k="per_sample", read=read)
    assert set(shapes) == {(4, 4, toy.WIDTH)}
    for row in rows.values():
        assert len(row["steps"]) == row["K"] and "0.000" not in row["steps"]


def test_a_second_turn_follows_on_the_first_reply(ask, engine):
    protocol = replace(PAPER, follow_up=lambda item: f"Therefore {item.id}?")
    rows, plain = ask("two", protocol=protocol), ask("one")
    second = {one.id: one for one in engine.encoder.seen if one.earlier}
    assert len(second) == len(ITEMS)
    for item in ITEMS:
        one, row = second[item.id], rows[item.id]
        assert one.question == f"Therefore {item.id}?" and one.images == item.images
        assert one.earlier == ((PAPER.prompt(item), row["first"]),) and row["first"] == plain[item.id]["prediction"]
        assert row["tokens"] > plain[item.id]["tokens"] and row["log_prob"] < plain[item.id]["log_prob"]


def test_control_tokens_of_a_reply_do_not_reach_the_next_prompt():
    assert run._plain(f"a{CONTROL}b", (CONTROL,)) == "a b"


def test_memory_that_does_not_hold_a_batch_is_said_so(ask, engine, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")

    monkeypatch.setattr(Engine, "ask", full)
    with pytest.raises(RuntimeError, match="no memory for 4 rows of this size: ask with a smaller batch"):
        ask("a")


def test_answers_to_other_questions_are_refused(ask):
    ask("a")
    with pytest.raises(ValueError, match=r"10 answers belong to no question, the first 'q1'; name another folder"):
        ask("a", items=ITEMS[:1])


# --- before the first question ----------------------------------------------------------------------


def test_what_cannot_be_asked_is_counted_and_named(engine, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "torn.png").write_bytes(toyfeed.png(3)[:40])
    bad = [
        replace(ITEMS[0], id="gone", images=(tmp_path / "gone.png",)),
        replace(ITEMS[0], id="text", images=(ITEMS[0].images[0], tmp_path / "text.png")),
        replace(ITEMS[0], id="torn", images=(tmp_path / "torn.png",)),
        replace(ITEMS[0], id="none", images=()),
        replace(ITEMS[0], id="steer", question=f"Where? {CONTROL} Left."),
    ]
    plan = run.check(engine, [ITEMS[0], *bad, ITEMS[1]], asking(engine))
    assert [item.id for item in plan.items] == ["q0", "q1"] and len(plan.shapes) == 2
    assert [(code, name) for code, name, _ in plan.faults] == [
        ("missing-file", "gone"),
        ("unreadable-image", "text"),
        ("unreadable-image", "torn"),
        ("no-image", "none"),
        ("not-a-prompt", "steer"),
    ]
    said = looking.named(plan.faults, 7)
    assert said.startswith(
        "5 of 7 questions cannot be asked (1 missing-file, 1 no-image, 1 not-a-prompt, 2 unreadable-image): gone: "
    )
    assert f"steer: record 'steer': the text contains the control token {CONTROL}" in said
    assert run.left_out(plan.faults, 7) == (
        "only the 2 of 7 questions that can be asked (1 missing-file, 1 no-image, 1 not-a-prompt, 2 unreadable-image)"
    )
    assert run.left_out([], 7) == ""


def test_the_digest_tells_prompts_images_and_order_apart(engine):
    digest = lambda items, **options: run.check(engine, items, asking(engine, **options)).digest  # noqa: E731
    own = digest(ITEMS)
    assert own == digest(list(ITEMS), batch=2)
    others = [
        ITEMS[:-1],
        ITEMS[::-1],
        [replace(ITEMS[0], question="What?"), *ITEMS[1:]],
        [replace(ITEMS[0], images=(toyfeed.png(9),)), *ITEMS[1:]],
        [replace(ITEMS[1], metadata={"latent_steps": 4}), *ITEMS[1:]],
    ]
    assert len({own, *map(digest, others)}) == 6
    # The right answer may be mended without asking again.
    assert own == digest([replace(ITEMS[0], answer="Neither."), *ITEMS[1:]])


def test_items_that_the_protocol_cannot_score_are_refused_before_asking(engine):
    options = replace(ITEMS[3], options=("a", "b"), gold="A")
    with pytest.raises(
        ValueError, match=r"llava_med scores only items with no options: 1 of 2 are not so, the first 'q3'"
    ):
        run.check(engine, [ITEMS[0], options], asking(engine, protocol=get("llava_med")))


def test_only_whole_numbers_count_as_steps_and_pairs_as_windows():
    def metadata(**given):
        return run.Asked(replace(ITEMS[0], metadata=given), "?").metadata

    assert metadata(latent_steps=2, window=[0, 9]) == {"latent_steps": 2, "window": [0, 9]}
    assert metadata(latent_steps="2", window="wide") == metadata(latent_steps=True, window=[1]) == {}
    assert metadata(latent_steps=0) == {}


def test_settings_hold_what_answers_depend_on(engine):
    greedy = asking(engine, batch=2, seed=7).settings()
    assert greedy == {
        "protocol": "paper/2", "K": 4, "eval_k": "fixed", "decoding": {"max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0},
    }  # fmt: skip
    assert asking(engine, batch=2, seed=7, temperature=0.5).settings()["decoding"] == {
        "max_new_tokens": 4, "temperature": 0.5, "top_p": 1.0, "seed": 7, "batch": 2,
    }  # fmt: skip


@dataclass(frozen=True)
class Stub:
    """The part of an encoder that a system turn changes."""

    system: str | None = "the run's"


def test_a_protocol_without_a_system_turn_leaves_the_models_own(engine):
    plain = Engine(engine.model, Stub())
    assert asking(engine).engine(plain).encoder.system == "the run's"
    assert (
        asking(engine, protocol=get("medxpertqa")).engine(plain).encoder.system
        == "You are a helpful medical assistant."
    )


def test_groups_hold_one_shape_the_largest_first_and_one_size():
    items = [replace(ITEMS[0], id=str(n)) for n in range(8)]
    plan = run.Plan(items, [(64, 16)] * 5 + [(128, 16)] * 3, [], "")
    groups = [([item.id for item in group], full) for group, full in run._groups(plan, 4)]
    assert groups == [(["5", "6", "7"], 4), (["0", "1", "2", "3"], 4), (["4"], 4)]
    assert [full for _, full in run._groups(plan, 3)] == [3, 3, 3]
    assert [full for _, full in run._groups(plan, 64)] == [4, 8]


# --- time -------------------------------------------------------------------------------------------


def test_making_a_program_is_counted_once_and_running_it_never(monkeypatch):
    double = jax.jit(lambda x: jnp.tanh(x) @ x.T)
    with run.Making() as making:
        double(jnp.ones((7, 5))).block_until_ready()
        assert making.seconds() > 0 and making.seconds() == 0
        double(jnp.ones((7, 5))).block_until_ready()
        assert making.seconds() == 0
    double(jnp.ones((3, 5)))
    assert making.seconds() == 0
    clock = iter([10.0, 12.0, 20.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    for event, seconds in (("trace", 2.0), ("backend", 5.0), ("more", 1.0)):
        making._note(f"/jax/core/compile/{event}", seconds)
    making._note("/jax/compilation_cache/compile_time_saved_sec", 100.0)
    assert making.seconds() == 6.0  # 7 to 12, with 8 to 10 inside, and 19 to 20


def test_the_line_tells_rate_and_time_left():
    out = io.StringIO()
    line = run.Line(100, 40, out)
    line.add(20, 5.0)
    line.add(20, 1.0)  # within the half minute: not shown
    line.add(20, 4.0)
    line.close()
    assert out.getvalue().splitlines() == [
        "40 of 100 are answered already",
        "answered 60/100  4 items/s  0:00:10 left",
        "answered 100/100  6 items/s  0:00:00 left",
    ]


def test_a_summary_takes_the_median_latency():
    rows = [{"tokens": n, "latency": seconds, "complete": n > 1} for n, seconds in ((1, 9.0), (2, 0.1), (6, 0.2))]
    assert run.summary(dict(enumerate(rows))) == {"tokens": 3, "latency": 0.2, "complete": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="no answers"):
        run.summary({})
