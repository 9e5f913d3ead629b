"""The live teacher against a real HTTP server on loopback: every way in which it misbehaves, a kill half-way, and no secret anywhere."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from construct.distill.classroom import KEY, LEAK, completion, make_task, open_classroom, png, words

from vital_jax.construct.distill import endpoint, run
from vital_jax.construct.distill.endpoint import Address, Settings, _wait, address
from vital_jax.construct.distill.progress import standing
from vital_jax.construct.distill.replies import Prices
from vital_jax.construct.distill.store import Store

pytest.importorskip("openai", reason="the endpoint teacher needs the package openai")

SETTINGS = Settings("m", timeout=2, transport_retries=2, concurrency=4)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VITAL_TEACHER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VITAL_TEACHER_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Runs tasks against a script; returns (store, classroom, outcome)."""
    stores = []

    def ask(script, count=1, settings=SETTINGS, **changes):
        store = Store(tmp_path / "distill.sqlite")
        stores.append(store)
        store.add(make_task(number, **changes) for number in range(count))
        with open_classroom(script) as (room, url):
            monkeypatch.setenv("VITAL_TEACHER_BASE_URL", url)
            return store, room, run.run(store, settings, shown=False)

    yield ask
    for store in stores:
        store.close()


def codes(store):
    return [(row["status"], row["codes"]) for row in store.attempts()]


def test_a_clean_teacher(ask):
    store, room, outcome = ask(lambda *_: words(), 9, replace(SETTINGS, prices=Prices(2, 10)))
    assert outcome.complete and outcome.accepted == 9
    assert set(room.asked.values()) == {1}
    assert {lesson.answer for lesson in store.accepted().values()} == {"Yes, the liver is visible in this CT image."}
    row = standing(store)["teachers"][0]["types"]["all"]
    assert row["cost"] == pytest.approx(9 * (1000 * 2 + 100 * 10) / 1e6) and row["first_format_rate"] == 1
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in room.headers)


def test_nothing_is_asked_twice_and_only_the_rest_is_asked(ask):
    ask(lambda *_: words(), 3)
    _, room, outcome = ask(lambda *_: words(), 5)
    assert set(room.asked) == {3, 4} and outcome.accepted == 2
    _, room, outcome = ask(lambda *_: words(), 5)
    assert not room.asked and outcome.complete
    _, room, outcome = ask(lambda *_: words(), 5, replace(SETTINGS, model="n", again=True, limit=2))
    assert len(room.asked) == 2


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ('{"final_answer": "Yes', "json"),
        ("The liver is visible.", "json"),
        ('{"final_answer": "Yes."}', "schema"),
        (words(f"Yes. {LEAK}"), "leak"),
        (words("Yes.", "The liver.", "Two steps."), "steps"),
        (words("Yes.", "It lies on the patient's left side."), "patient-space"),
        (words("Yes.", "A tumor lies beside it."), "pathology"),
    ],
)
def test_a_refused_reply_is_asked_again_with_its_fault_named(ask, bad, code):
    store, room, outcome = ask(lambda number, turn, body: bad if turn == 1 else words())
    assert outcome.complete and [status for status, _ in codes(store)] == ["rejected", "accepted"]
    assert code in codes(store)[0][1]
    first, second = (body["messages"][1]["content"][0]["text"] for body in room.bodies[0])
    assert "STRICT RULES" not in first and code in second.partition("STRICT RULES")[2]
    assert len(room.bodies[0][1]["messages"]) == 2, "from scratch: the refused reply is not shown"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (completion(words(), "length"), "cut-off"),
        (completion(words(), "content_filter"), "filtered"),
        (completion(None, refusal="I cannot."), "refused"),
        (completion(None), "json"),
    ],
)
def test_a_reply_that_did_not_end_by_itself_is_none(ask, body, code):
    store, _, outcome = ask(lambda number, turn, _: (200, {}, body) if turn == 1 else words())
    assert outcome.complete and code in codes(store)[0][1]


def test_four_retries_then_dropped_with_all_codes(ask):
    script = lambda number, turn, body: words(LEAK) if turn % 2 else "prose"  # noqa: E731
    store, room, outcome = ask(script)
    assert room.asked[0] == 5 and outcome.dropped == 1 and not outcome.complete
    assert store.dropped() == {"set/0/yesno": ("leak", "json")}
    _, room, outcome = ask(script)
    assert not room.asked and outcome.complete, "dropped ones wait for retry"
    assert store.retry() == 1
    _, room, outcome = ask(lambda *_: words())
    assert room.asked[0] == 1 and outcome.complete
    assert [row["attempt"] for row in store.attempts()] == [1, 2, 3, 4, 5, 6]


def test_a_429_uses_up_no_try(ask):
    slow = 429, {"Retry-After": "0.05"}, {"error": {"message": "slow down", "code": "rate_limit"}}
    store, room, outcome = ask(lambda number, turn, body: slow if number == 0 and turn < 3 else words(), 4)
    assert outcome.complete and room.asked == {0: 3, 1: 1, 2: 1, 3: 1}
    assert codes(store) == [("accepted", "[]")] * 4


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves; it lists when who woke."""
    clock = SimpleNamespace(now=100.0, woken=[])

    async def sleep(seconds):
        clock.now += max(seconds, 0)

    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(endpoint, "asyncio", SimpleNamespace(sleep=sleep))
    return clock


def test_the_budget_per_minute_spaces_requests(clock):
    teacher = endpoint.Endpoint(replace(SETTINGS, per_minute=30), Address("http://127.0.0.1:9/v1", KEY))
    for _ in range(4):
        asyncio.run(teacher._turn())
        clock.woken.append(clock.now)
    assert clock.woken == [100, 102, 104, 106]


def test_a_pause_holds_up_everybody(clock):
    teacher = endpoint.Endpoint(SETTINGS, Address("http://127.0.0.1:9/v1", KEY))
    asyncio.run(teacher._turn())
    assert clock.now == 100
    teacher._until = 130.0
    asyncio.run(teacher._turn())
    assert clock.now == 130


@pytest.mark.parametrize(
    "bad",
    [
        (500, {}, {"error": {"message": "oops"}}),
        (503, {"Retry-After": "0"}, "<html>busy</html>"),
        (200, {}, '{"choices": [{"mess'),
        (200, {"Content-Type": "text/html"}, "<html>a proxy's page</html>"),
        (200, {}, {"error": "none"}),
    ],
)
def test_what_is_no_reply_is_tried_again_without_using_up_a_try(ask, bad):
    store, room, outcome = ask(lambda number, turn, body: bad if turn == 1 else words())
    assert outcome.complete and room.asked[0] == 2 and codes(store) == [("accepted", "[]")]


def test_a_timeout_is_tried_again_then_left_pending_with_its_code(ask):
    # Long enough for a slow machine to answer the other two.
    settings = replace(SETTINGS, timeout=3.0, transport_retries=1)
    store, room, outcome = ask(lambda number, turn, body: 8.0 if number == 0 else words(), 3, settings)
    assert outcome.unanswered == 1 and outcome.accepted == 2 and room.asked[0] == 2 and not outcome.complete
    assert store.unanswered() == {"set/0/yesno": ("timeout",)}
    _, room, outcome = ask(lambda *_: words(), 3)
    assert room.asked == {0: 1} and outcome.complete, "a second run repairs only what failed"


def test_a_server_that_trickles_is_a_timeout_too(ask):
    settings = replace(SETTINGS, timeout=0.5, transport_retries=0)
    store, _, _ = ask(lambda *_: (200, {}, [completion(words())]), 1, settings)
    assert store.unanswered() == {"set/0/yesno": ("timeout",)}


def test_a_refused_form_of_output_is_loosened_once_for_the_run(ask):
    def script(number, turn, body):
        if body.get("response_format", {}).get("type") == "json_schema":
            return 400, {}, {"error": {"message": "response_format json_schema is not supported"}}
        return words()

    _, room, outcome = ask(script, 6, replace(SETTINGS, concurrency=1))
    assert outcome.complete and room.asked[0] == 2 and sum(room.asked.values()) == 7
    assert {body["response_format"]["type"] for body in room.bodies[5]} == {"json_object"}


def test_plain_text_is_the_last_form(ask):
    def script(number, turn, body):
        return (422, {}, {"detail": "unknown field"}) if "response_format" in body else f"```json\n{words()}\n```"

    store, room, outcome = ask(script, 3, replace(SETTINGS, concurrency=1))
    assert outcome.complete and sum(room.asked.values()) == 5 and len(store.accepted()) == 3


def test_a_request_refused_in_every_form_leaves_the_form_as_it_is(ask):
    script = lambda number, turn, body: (400, {}, {"error": {"message": "image?"}}) if number == 0 else words()  # noqa: E731
    store, room, outcome = ask(script, 2, replace(SETTINGS, concurrency=1))
    assert outcome.accepted == 1 and store.unanswered() == {"set/0/yesno": ("http-400",)}
    assert room.bodies[1][0]["response_format"]["type"] == "json_schema"


def test_a_filter_that_answers_400_uses_up_a_try(ask):
    bad = 400, {}, {"error": {"message": "blocked", "code": "content_filter"}}
    store, room, _ = ask(lambda number, turn, body: bad, 1, replace(SETTINGS, tries=2))
    assert store.dropped() == {"set/0/yesno": ("filtered",)} and room.asked[0] == 2


@pytest.mark.parametrize(
    ("status", "code", "why"), [(401, "", "key"), (404, "", "model"), (429, "insufficient_quota", "credit")]
)
def test_what_would_refuse_everything_ends_the_run_in_one_line(ask, status, code, why):
    body = {"error": {"message": f"bad key {KEY[:12]}***", "code": code}}
    _, room, outcome = ask(lambda *_: (status, {}, body), 20, replace(SETTINGS, concurrency=2))
    assert why in outcome.why and str(status) in outcome.why and KEY[:8] not in outcome.why
    assert sum(room.asked.values()) <= 2 and outcome.pending == 20


def test_a_dead_endpoint_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "http://127.0.0.1:9/v1")
    with Store(tmp_path / "s") as store:
        store.add(make_task(number) for number in range(40))
        outcome = run.run(store, replace(SETTINGS, transport_retries=0), shown=False)
        assert "no reply to 16 tasks" in outcome.why and "connection" in outcome.why
        assert outcome.unanswered < 24 and outcome.pending


def test_requests_under_way_at_once(ask):
    _, room, _ = ask(lambda *_: (time.sleep(0.05), words())[1], 10, replace(SETTINGS, concurrency=3))
    assert 1 < room.most <= 3


def test_an_unreadable_mask_drops_its_task_alone(ask):
    store, room, outcome = ask(lambda *_: words(), 2, mask=png(mask=True, size=(30, 30)))
    assert outcome.dropped == 2 and not room.asked
    assert set(store.dropped().values()) == {("unreadable-image",)}


def test_a_full_disk_is_an_error_and_the_rest_is_whole(ask, monkeypatch):
    record = Store.record

    def full(self, attempt):
        if len(self.accepted()) == 3:
            raise sqlite3.OperationalError("database or disk is full")
        record(self, attempt)

    monkeypatch.setattr(Store, "record", full)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        ask(lambda *_: words(), 8)
    monkeypatch.setattr(Store, "record", record)
    _, room, outcome = ask(lambda *_: words(), 8)
    assert outcome.complete and sum(room.asked.values()) == 5


# --- killed, interrupted --------------------------------------------------------------------------------------------


def script(number, turn, body):
    """Clean at the second request at the latest; every kind of trouble at the first."""
    if turn > 1:
        return words()
    error = {"error": {"message": f"your key is {KEY}"}}
    trouble = [
        (429, {"Retry-After": "0.05"}, error),
        '{"final_answer": "Yes',
        f"The liver, I think. {KEY}",
        words(LEAK),
        (500, {}, error),
        words(),
        (200, {}, completion(words(), "length")),
    ]
    return trouble[number % len(trouble)]


def start(out, *more):
    code = "from vital_jax.cli import main; import sys; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "data",
        "distill",
        "run",
        str(out),
        "--model",
        "m",
        "--concurrency",
        "4",
        *more,
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **pipes)


def until(ready, process):
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the student did not get so far"
        time.sleep(0.01)


def test_killed_half_way_and_started_again(tmp_path, monkeypatch):
    with Store(tmp_path / "distill.sqlite") as store:
        tasks = [make_task(number) for number in range(42)]
        store.add(tasks)
    said = ""
    with open_classroom(script) as (room, url):
        monkeypatch.setenv("VITAL_TEACHER_BASE_URL", url)
        room.delay = 0.03
        process = start(tmp_path)
        until(lambda: sum(room.clean.values()) >= 14, process)
        process.send_signal(signal.SIGKILL)
        said += "".join(process.communicate())
        time.sleep(0.1)
        with Store(tmp_path / "distill.sqlite") as store:
            before = set(store.accepted())
        assert 10 <= len(before) < len(tasks)
        asked = dict(room.asked)
        process = start(tmp_path)
        said += "".join(process.communicate(timeout=120))
        assert process.returncode == 0, said
    with Store(tmp_path / "distill.sqlite") as store:
        assert set(store.accepted()) == {task.id for task in tasks}
        row = standing(store)["teachers"][0]["types"]["all"]
    for task in tasks:
        number = int(task.id.split("/")[1])
        if task.id in before:
            assert room.asked[number] == asked[number], f"{task.id} was accepted and asked again"
    twice = [number for number, count in room.clean.items() if count > 1]
    assert len(twice) <= 4, "only what was under way at the kill"
    assert row["leaks"] and row["accepted"] == len(tasks)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept and KEY not in said
    assert url.encode() not in kept


def test_an_interrupt_waits_for_what_is_under_way_and_says_how_to_go_on(tmp_path, monkeypatch):
    with Store(tmp_path / "distill.sqlite") as store:
        store.add(make_task(number) for number in range(30))
    with open_classroom(lambda *_: words()) as (room, url):
        monkeypatch.setenv("VITAL_TEACHER_BASE_URL", url)
        room.delay = 0.2
        process = start(tmp_path)
        until(lambda: sum(room.asked.values()) >= 6, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "go on" in err and "Traceback" not in err, err
        with Store(tmp_path / "distill.sqlite") as store:
            assert len(store.accepted()) == sum(room.asked.values()), "every reply under way was kept"
        room.delay = 30.0
        process = start(tmp_path)
        asked = sum(room.asked.values())
        until(lambda: sum(room.asked.values()) >= asked + 4, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130 and "Traceback" not in err, err


# --- addresses, uploads -----------------------------------------------------------------------------------------------


def test_images_not_known_as_public_stay_here(tmp_path, monkeypatch):
    monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "https://teacher.example/v1")
    where = address()
    with Store(tmp_path / "s") as store:
        store.add([make_task(0), make_task(1, public=False, source="clinic", licence="")])
        ids = ["set/0/yesno", "set/1/yesno"]
        with pytest.raises(ValueError, match=r"1 tasks from clinic .* teacher\.example; give --allow-upload"):
            run.run(store, SETTINGS, shown=False)
        assert not run.check_upload(store, ids[:1], where, False)
        assert "clinic" in run.check_upload(store, ids, where, True)
        local = Address("http://localhost:8000/v1", "")
        assert not run.check_upload(store, ids, local, False)
        assert "unencrypted" in run.check_upload(store, ids[:1], Address("http://10.0.0.5/v1", "k"), False)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://[::1]:1/v1", True),
        ("http://localhost/v1", True),
        ("http://127.0.0.1.example.org/v1", False),
        ("http://localhost@example.org/v1", False),
        ("https://10.0.0.1/v1", False),
    ],
)
def test_loopback(url, loopback):
    assert Address(url, "").loopback is loopback


def test_keys_stay_with_their_address(monkeypatch):
    monkeypatch.delenv("VITAL_TEACHER_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert address().key == KEY and address().host == "api.openai.com"
    monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "https://other.example/v1")
    with pytest.raises(ValueError, match=r"no key for other\.example: set VITAL_TEACHER_API_KEY"):
        address()
    monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "http://127.0.0.1:8000/v1")
    assert address().key == ""
    monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "ftp://x")
    with pytest.raises(ValueError, match="VITAL_TEACHER_BASE_URL is not an address"):
        address()
    assert KEY not in repr(Address("https://h/v1", KEY))


def test_retry_after_in_all_its_forms():
    assert _wait({"retry-after": "3"}) == 3 and _wait({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert _wait({"retry-after": "1e9"}) == endpoint.LONGEST_WAIT and _wait({"retry-after": "-5"}) == 0
    assert _wait({}) is None and _wait({"retry-after": "soon"}) is None and _wait({"retry-after": "nan"}) is None
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < _wait({"retry-after": date}) <= 31
