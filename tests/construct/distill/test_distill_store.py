"""The store: idempotent, bound to content, one process at a time, and whole whatever happens."""

import sqlite3
import subprocess
import sys

import pytest
from construct.distill.classroom import make_task, png

from vital_jax.construct.distill.progress import standing
from vital_jax.construct.distill.store import Attempt, Store
from vital_jax.construct.gate import Violation
from vital_jax.construct.teacher import Lesson
from vital_jax.statistics import wilson

LESSON = Lesson(("A step.",), "Yes.", ())
BROKEN = (Violation("leak", "mask", "step 1", "mask"), Violation("steps", "1 to 1 steps", "reply", "2 steps"))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        yield store


def attempt(task, status="accepted", model="m", prompt="p", **more):
    more = {"lesson": LESSON} | more if status == "accepted" else {"violations": BROKEN} | more
    return Attempt(task.id, prompt, model, "hash", status, **more)


def test_tasks_come_back_as_they_went_in(store):
    tasks = [make_task(0), make_task(1, mask=b"", options=("yes", "no"), names=("spleen",), steps=(2, 3), public=False)]
    assert store.add(tasks) == 2
    assert [store.task(task.id) for task in tasks] == tasks
    assert len(store) == 2


def test_adding_again_changes_nothing_and_images_are_kept_once(store):
    tasks = [make_task(number) for number in range(4)]  # two tasks an image, one mask for all
    assert store.add(tasks) == 4 and store.add(tasks) == 0
    assert sqlite3.connect(store.path).execute("SELECT count(*) FROM images").fetchone() == (3,)
    assert store.pending("p", "m") == [task.id for task in tasks]


def test_an_accepted_answer_settles_a_task_whoever_gave_it(store):
    one, two = make_task(0), make_task(1)
    store.add([one, two])
    store.record(attempt(one))
    assert store.accepted() == {one.id: LESSON} == store.accepted([one.id, two.id])
    assert store.accepted([two.id]) == {}
    assert store.pending("p", "m") == store.pending("p", "other") == store.pending("other", "m") == [two.id]
    assert store.pending("p", "other", again=True) == [one.id, two.id]
    assert store.pending("p", "m", again=True) == [two.id]


def test_changed_content_is_asked_again_and_earlier_content_is_not(store):
    task = make_task(0)
    store.add([task])
    store.record(attempt(task))
    store.add([make_task(0, licence="MIT", public=False)])  # says nothing else about the picture
    assert not store.pending("p", "m") and not store.task(task.id).public
    for change in ({"question": "Is it?"}, {"image": png(9)}, {"mask": b""}, {"steps": (1, 2)}):
        store.add([make_task(0, **change)])
        assert store.pending("p", "m") == [task.id] and not store.accepted(), change
    store.add([task])
    assert not store.pending("p", "m") and store.accepted()


def test_dropped_tasks_wait_for_retry_or_another_teacher(store):
    task = make_task(0)
    store.add([task])
    store.record(attempt(task, "rejected"))
    assert store.pending("p", "m") == [task.id] and store.history(task.id, "p", "m") == [BROKEN]
    assert store.dropped() == {} and store.unanswered() == {task.id: ()}
    store.record(attempt(task, "dropped", violations=BROKEN[1:]))
    assert store.pending("p", "m") == [] and store.pending("p", "stronger") == [task.id]
    assert store.dropped([task.id]) == {task.id: ("leak", "steps")} and store.unanswered() == {}
    assert store.retry("json") == 0 and store.retry("steps") == 1
    assert store.pending("p", "m") == [task.id] and store.history(task.id, "p", "m") == [] and store.dropped() == {}
    store.record(attempt(task))
    assert store.retry() == 0 and store.dropped() == {} and store.accepted()


def test_errors_leave_a_task_pending_and_are_named(store):
    task = make_task(0)
    store.add([task])
    store.record(attempt(task, "error", violations=(Violation("timeout", "no reply", "reply", ""),)))
    assert store.unanswered() == {task.id: ("timeout",)} and store.pending("p", "m") == [task.id]
    assert store.history(task.id, "p", "m") == [], "an error uses up no try"


def test_attempts_are_numbered_by_task_prompt_and_model(store):
    task = make_task(0)
    store.add([task])
    for model in ("m", "m", "n"):
        store.record(attempt(task, "rejected", model=model))
    assert [(row["model"], row["attempt"]) for row in store.attempts()] == [("m", 1), ("m", 2), ("n", 1)]


def test_an_unreadable_image_is_named(store):
    with pytest.raises(ValueError, match="set/0/yesno"):
        store.add([make_task(0, image=b"no picture")])
    assert len(store) == 0


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tasks here"):
        Store(tmp_path / "absent.sqlite", create=False)
    (tmp_path / "text").write_text("a text of more than a hundred letters " * 40)
    with pytest.raises(ValueError, match="not a store of tasks"):
        Store(tmp_path / "text")
    Store(tmp_path / "s").close()
    sqlite3.connect(tmp_path / "s").execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="store version 99"):
        Store(tmp_path / "s")


def test_one_process_at_a_time_and_a_dead_one_does_not_count(store):
    code = "import sys, time; from vital_jax.construct.distill.store import Store; s = Store(sys.argv[1])\n"
    code += "with s.exclusive(): print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, store.path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match="another process"), store.exclusive():
            pass
    finally:
        other.kill()
        other.communicate()
    with store.exclusive():
        store.add([make_task(0)])


def test_a_failed_transaction_leaves_nothing_behind(store):
    store.add([make_task(0)])
    with pytest.raises(RuntimeError), store.transaction() as db:
        db.execute("DELETE FROM tasks")
        raise RuntimeError
    assert len(store) == 1
    store.add([make_task(1)])
    assert len(store) == 2


def test_a_full_disk_loses_nothing_that_was_kept(store):
    task = make_task(0)
    store.add([task])
    store._db.execute("PRAGMA max_page_count = 1")  # never below what is used: the next page is one too many
    with pytest.raises(sqlite3.Error, match="full"):
        store.record(attempt(task, raw="x" * 1_000_000))
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.record(attempt(task))
    assert store.accepted() == {task.id: LESSON}


def test_standing_counts_by_type_and_teacher(store):
    tasks = [make_task(n, question_type="describe" if n == 3 else "yesno", steps=(1, 3)) for n in range(4)]
    store.add(tasks)
    store.record(attempt(tasks[0], tokens_in=100, tokens_out=10, cost=0.5))
    store.record(attempt(tasks[1], "rejected", violations=BROKEN[:1], tokens_in=100, tokens_out=10))
    store.record(attempt(tasks[1], tokens_in=200, tokens_out=20, cost=1.0))
    store.record(attempt(tasks[2], "dropped", violations=BROKEN[1:]))
    store.record(attempt(tasks[3], "error", violations=(Violation("timeout", "no reply", "reply", ""),)))
    found = standing(store)
    assert found["tasks"]["all"] == {"tasks": 4, "accepted": 2, "dropped": 1, "pending": 1, "waiting": 0}
    assert found["tasks"]["describe"] == {"tasks": 1, "pending": 1}
    (teacher,) = found["teachers"]
    row = teacher["types"]["all"]
    assert (row["replies"], row["accepted"], row["leaks"], row["errors"]) == (4, 2, 1, 1)
    assert row["accept_rate"] == 0.5 and row["leak_rate"] == 0.25 and row["leak_interval"] == wilson(1, 4)
    assert row["first_format_rate"] == pytest.approx(2 / 3), "a leak is no fault of form, a wrong number of steps is"
    assert row["first_accept_rate"] == pytest.approx(1 / 3)
    assert (row["tokens_in"], row["tokens_out"], row["cost"]) == (400, 40, 1.5)
    assert found["codes"] == {"leak": 1, "steps": 1, "timeout": 1} and found["errors"] == {"timeout": 1}
