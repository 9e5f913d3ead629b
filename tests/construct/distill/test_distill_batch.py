"""Batches, recorded replies and the command line: the same gate, the same store, nothing asked twice."""

import json
import sqlite3

import pytest
from construct.distill.classroom import KEY, LEAK, completion, make_task, open_classroom, png, words

from vital_jax import cli
from vital_jax.construct.distill import batch
from vital_jax.construct.distill.endpoint import Settings
from vital_jax.construct.distill.progress import estimate
from vital_jax.construct.distill.prompts import load_prompts
from vital_jax.construct.distill.replay import replay
from vital_jax.construct.distill.replies import Prices
from vital_jax.construct.distill.store import Store

SETTINGS, PROMPTS, PRICES = Settings("m"), load_prompts(), Prices(1, 4)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "distill.sqlite") as store:
        store.add(make_task(number) for number in range(8))
        yield store


def write(store, mode="json_schema", **limits):
    return batch.write(store, store.pending(PROMPTS.version, "m"), SETTINGS, PROMPTS, mode, **limits)


def results(paths, say):
    """Lines of results for request files: what `say` gives per task's number, nothing where it gives None."""
    lines = []
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            number = int(row["body"]["messages"][1]["content"][0]["text"].split("image number ")[1].split("?")[0])
            if (text := say(number)) is not None:
                response = {"status_code": 200, "body": completion(text)} if isinstance(text, str) else text
                lines.append(json.dumps({"custom_id": row["custom_id"], "response": response, "error": None}))
    return "\n".join(lines)


def test_files_are_cut_by_bytes_and_by_requests(store):
    whole = write(store)
    (path,) = whole
    lines = path.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert len({row["custom_id"] for row in rows}) == 8 and {row["url"] for row in rows} == {"/v1/chat/completions"}
    assert all(len(row["custom_id"]) <= 64 and row["method"] == "POST" for row in rows)
    assert rows[0]["body"]["response_format"]["type"] == "json_schema" and rows[0]["body"]["model"] == "m"
    assert store.pending(PROMPTS.version, "m") == [] and len(store.waiting()) == 8
    assert batch.drop(store, "00001") == 8 and len(store.pending(PROMPTS.version, "m")) == 8

    longest = max(map(len, lines))
    paths = write(store, max_bytes=3 * longest)
    assert len(paths) > 1 and all(path.stat().st_size <= 3 * longest for path in paths)
    sizes = [path.stat().st_size for path in paths]
    assert all(size + longest > 2 * longest for size in sizes[:-1]), "no file is cut early"
    assert sum(len(path.read_text().splitlines()) for path in paths) == 8
    for found in batch.batches(store, "written"):
        batch.drop(store, found.name)
    assert [len(path.read_text().splitlines()) for path in write(store, max_requests=3)] == [3, 3, 2]
    with pytest.raises(ValueError, match="no open batch '00001'"):
        batch.drop(store, "00001")


def test_a_request_over_the_limit_is_named(store):
    with pytest.raises(ValueError, match=r"task 'set/0/yesno'.*--max-bytes"):
        write(store, max_bytes=100)
    assert len(store.pending(PROMPTS.version, "m")) == 8


def test_an_unfinished_file_is_written_over(store, monkeypatch):
    monkeypatch.setattr(batch._Part, "finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(store)
    monkeypatch.undo()
    assert len(store.pending(PROMPTS.version, "m")) == 8
    (path,) = write(store)
    assert [file.name for file in path.parent.iterdir()] == ["00001.jsonl"]


def test_results_read_by_hand_pass_the_gate_and_the_rest_is_pending(store, tmp_path):
    paths = write(store)
    failed = {"status_code": 500, "body": {"error": "x"}}
    said = {0: words(), 1: words(LEAK), 2: "prose", 3: failed, 4: None, 5: words(), 6: words(), 7: words()}
    file = tmp_path / "results.jsonl"
    file.write_text("no json\n" + results(paths, said.get) + '\n{"custom_id": "foreign", "response": {}}\n')
    counts = batch.read(store, file, 5, PRICES)
    assert counts == {"bad-line": 1, "accepted": 4, "rejected": 2, "error": 1, "unknown": 1, "unanswered": 1}
    pending = [f"set/{number}/yesno" for number in (1, 2, 3, 4)]
    assert store.pending(PROMPTS.version, "m") == pending
    assert store.unanswered()["set/3/yesno"] == ("http-500",)
    again = batch.read(store, file, 5, PRICES)
    assert again["seen"] == 7 and "accepted" not in again and store.pending(PROMPTS.version, "m") == pending

    (path,) = write(store)
    texts = [json.loads(line)["body"]["messages"][1]["content"][0]["text"] for line in path.read_text().splitlines()]
    assert ["STRICT RULES" in text for text in texts] == [True, True, False, False]
    file.write_text(results([path], lambda _: words()))
    assert batch.read(store, file, 5, PRICES) == {"accepted": 4}
    assert len(store.accepted()) == 8 and not store.waiting()


def test_the_last_try_drops(store, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(results(write(store), lambda number: "prose" if number < 2 else words()))
    assert batch.read(store, file, 1, PRICES) == {"dropped": 2, "accepted": 6}
    assert store.dropped() == {"set/0/yesno": ("json",), "set/1/yesno": ("json",)}


def test_a_file_without_results_is_refused(store, tmp_path):
    (tmp_path / "x").write_text("prose\n")
    with pytest.raises(ValueError, match="holds no results"):
        batch.read(store, tmp_path / "x", 5, PRICES)
    with pytest.raises(FileNotFoundError):
        batch.read(store, tmp_path / "absent", 5, PRICES)


def test_submit_and_collect(store, monkeypatch):
    pytest.importorskip("openai", reason="batches need the package openai")
    write(store, max_requests=5)
    say = lambda number, turn, body: (200, {}, None) if number == 3 else words(LEAK) if number == 4 else words()  # noqa: E731
    with open_classroom(say) as (room, url):
        monkeypatch.setenv("VITAL_TEACHER_BASE_URL", url)
        monkeypatch.setenv("VITAL_TEACHER_API_KEY", KEY)
        assert len(batch.submit(store, False)) == 2 and batch.submit(store, False) == []
        assert [row["completion_window"] for row in room.batches.values()] == ["24h", "24h"]
        assert batch.collect(store, 5, PRICES) == {"running": 2}
        room.finish()
        assert batch.collect(store, 5, PRICES) == {"accepted": 6, "rejected": 1, "unanswered": 1}
        assert batch.collect(store, 5, PRICES) == {}
        assert store.pending(PROMPTS.version, "m") == ["set/3/yesno", "set/4/yesno"]


def test_a_batch_whose_number_was_lost_is_found_again(store, monkeypatch):
    pytest.importorskip("openai", reason="batches need the package openai")
    write(store)
    with open_classroom(lambda *_: words()) as (room, url):
        monkeypatch.setenv("VITAL_TEACHER_BASE_URL", url)
        state = batch._state
        monkeypatch.setattr(batch, "_state", lambda s, n, to, *r: 1 / 0 if to == "submitted" else state(s, n, to, *r))
        with pytest.raises(ZeroDivisionError):
            batch.submit(store, False)
        monkeypatch.setattr(batch, "_state", state)
        assert len(room.batches) == 1
        batch.submit(store, False)
        assert len(room.batches) == 1, "not started twice"
        room.finish()
        assert batch.collect(store, 5, PRICES) == {"accepted": 8}


def test_private_images_are_not_submitted(tmp_path, monkeypatch):
    with Store(tmp_path / "s") as store:
        store.add([make_task(0, public=False)])
        write(store)
        monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "https://teacher.example/v1")
        monkeypatch.setenv("VITAL_TEACHER_API_KEY", KEY)
        with pytest.raises(ValueError, match=r"images of 1 tasks, not known as public, .* teacher\.example"):
            batch.submit(store, False)


# --- recorded replies --------------------------------------------------------------------------------------------------


def test_replay_of_lines(store, tmp_path):
    rows = {n: {"id": f"set/{n}/yesno"} | json.loads(words(LEAK) if n == 1 else words()) for n in range(4)}
    lines = [json.dumps(row) for row in rows.values()]
    file = tmp_path / "recorded.jsonl"
    file.write_text("\n".join([*lines, "no json", "", '{"id": "foreign"}']))
    outcome = replay(store, file, shown=False)
    assert (outcome.accepted, outcome.dropped, outcome.pending) == (3, 1, 4)
    assert store.dropped() == {"set/1/yesno": ("leak",)}
    again = replay(store, file, shown=False)
    assert (again.accepted, again.dropped) == (0, 1) and len(list(store.attempts())) == 4
    file.write_text(json.dumps({"id": "set/1/yesno"} | json.loads(words())))
    assert replay(store, file, shown=False).accepted == 1 and not store.dropped()
    assert len(store.pending("p", "m")) == 4


def test_replay_of_another_store(store, tmp_path):
    file = tmp_path / "recorded.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"set/{n}/yesno"} | json.loads(words())) for n in range(8)))
    replay(store, file, shown=False)
    with Store(tmp_path / "other.sqlite") as other:
        other.add(make_task(number) for number in range(9))
        outcome = replay(other, store.path, shown=False)
        assert (outcome.accepted, outcome.pending) == (8, 1) and other.accepted() == store.accepted()
    with pytest.raises(FileNotFoundError):
        replay(store, tmp_path / "absent")


# --- command line ------------------------------------------------------------------------------------------------------


def vital(capsys, *arguments):
    status = cli.main(["data", "distill", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_estimates_without_and_with_prices_and_from_replies(store, tmp_path, capsys):
    out = tmp_path
    status, said, _ = vital(capsys, "run", out, "--model", "m", "--dry-run")
    assert status == 0 and "8 tasks, about 8 requests" in said and "--price-in" in said
    ids = store.pending(PROMPTS.version, "m")
    found = estimate(store, ids, PROMPTS, "m", PRICES)
    each = found["tokens_in"] / 8
    picture, text = 384 * 320 / 750, len(PROMPTS.system + PROMPTS.user(make_task(0))) / 4
    assert each == pytest.approx(picture + text, rel=0.1) and found["measured"] == 0
    assert found["cost"] == pytest.approx((found["tokens_in"] + 4 * found["tokens_out"]) / 1e6)
    assert "cost about" in vital(capsys, "run", out, "--model", "m", "--dry-run", "--price-in", 1, "--price-out", 4)[1]

    store.add(make_task(number) for number in range(40))
    file = tmp_path / "r.jsonl"
    for wave, say in enumerate((lambda n: "prose" if n < 10 else words() if n < 30 else None, lambda n: None)):
        file.write_text(results(write(store), say) or '{"custom_id": "none"}')
        batch.read(store, file, 5, PRICES)
        if wave == 0:
            found = estimate(store, store.pending(PROMPTS.version, "m"), PROMPTS, "m", PRICES)
    assert found == {
        **{"tasks": 20, "requests": 30, "tokens_in": 30_000, "tokens_out": 3_000},
        **{"cost": pytest.approx(0.042), "measured": 30},
    }


def test_an_estimate_warns_of_images_that_would_leave(tmp_path, capsys, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VITAL_TEACHER_BASE_URL", "VITAL_TEACHER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with Store(tmp_path / "distill.sqlite") as store:
        store.add([make_task(0), make_task(1, source="clinic", licence="", public=False)])
    command = ("run", tmp_path, "--model", "m", "--dry-run")
    status, said, err = vital(capsys, *command)  # no key is needed to be told
    assert status == 0 and "2 tasks" in said
    assert err.startswith("warning: a run will refuse: 1 tasks from clinic have images") and "--allow-upload" in err
    status, _, err = vital(capsys, *command, "--allow-upload")
    assert status == 0 and "images of 1 tasks from clinic, not known as public, are sent to api.openai.com" in err
    monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "http://127.0.0.1:9/v1")
    assert vital(capsys, *command)[2] == ""


def test_run_status_retry(tmp_path, capsys, monkeypatch):
    pytest.importorskip("openai", reason="the endpoint teacher needs the package openai")
    with Store(tmp_path / "distill.sqlite") as store:
        store.add(make_task(number) for number in range(6))
    with open_classroom(lambda number, *_: words(LEAK) if number == 2 else words()) as (_, url):
        monkeypatch.setenv("VITAL_TEACHER_BASE_URL", url)
        monkeypatch.setenv("VITAL_TEACHER_API_KEY", KEY)
        status, said, err = vital(capsys, "run", tmp_path, "--model", "m", "--price-in", 2, "--price-out", 10)
        assert status == 1 and "5 accepted, 1 dropped" in said and "set/2/yesno: dropped [leak]" in err
        assert "cost 0.03" in err and "leak 50.0%" in err and "task/s" in err
        status, said, _ = vital(capsys, "status", tmp_path)
        assert status == 0 and "6 tasks: 5 accepted, 1 dropped, 0 pending" in said and "leak 5" in said
        row = json.loads(vital(capsys, "status", tmp_path, "--json")[1])["teachers"][0]["types"]["all"]
        assert (row["replies"], row["leaks"], row["cost"]) == (10, 5, pytest.approx(0.03))
        status, _, err = vital(capsys, "retry", tmp_path, "--code", "steps")
        assert status == 2 and "no dropped task has the code 'steps'; there are: leak (1)" in err
        assert vital(capsys, "retry", tmp_path)[1].startswith("1 ")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept and KEY not in said + err


def test_batch_by_command(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VITAL_TEACHER_BASE_URL", "http://127.0.0.1:9/v1")
    status, said, _ = vital(capsys, "batch", "write", tmp_path, "--model", "m", "--max-requests", 4, "--form", "text")
    assert status == 0 and "00002.jsonl" in said and "8 tasks" in said
    file = tmp_path / "results.jsonl"
    file.write_text(results(sorted((tmp_path / "batches").glob("*.jsonl")), lambda n: words() if n else "prose"))
    status, said, _ = vital(capsys, "batch", "read", tmp_path, file)
    assert status == 1 and "7 accepted" in said and "1 tasks are pending again" in said
    assert vital(capsys, "batch", "drop", tmp_path, "00001")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "OUT"), "--model"),
        (("run", "absent", "--model", "m"), "no tasks here"),
        (("run", "OUT", "--model", "m", "--prompts", "absent"), "no prompt folder"),
        (("run", "OUT", "--replay", "absent"), "no recorded replies"),
        (("run", "OUT", "--model", "m"), "no key for api.openai.com"),
        (("batch", "collect", "OUT"), "no key for"),
    ],
)
def test_what_a_user_can_mend_is_one_line(store, tmp_path, capsys, monkeypatch, arguments, line):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VITAL_TEACHER_BASE_URL", "VITAL_TEACHER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    status, out, err = vital(capsys, *(str(tmp_path) if word == "OUT" else word for word in arguments))
    assert status == 2 and not out and len(err.splitlines()) == 1 and line in err


def test_an_unwritable_store_is_one_line(store, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "retry", full)
    status, _, err = vital(capsys, "retry", tmp_path)
    assert status == 2 and len(err.splitlines()) == 1 and "distill.sqlite: database or disk is full" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dry-run", "--replay", "x"), "not allowed with argument --dry-run"),
        (("--transport-retries", "-1"), "'-1' is not a whole number, 0 or more"),
        (("--concurrency", "two"), "'two' is not a whole number, 1 or more"),
    ],
)
def test_flags_that_cannot_be_meant(store, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        vital(capsys, "run", tmp_path, "--model", "m", *words)
    assert message in capsys.readouterr().err


def test_masks_that_do_not_fit_are_dropped_from_batches(tmp_path):
    with Store(tmp_path / "s") as store:
        store.add([make_task(0, mask=png(mask=True, size=(9, 9))), make_task(1)])
        (path,) = write(store)
        assert len(path.read_text().splitlines()) == 1 and store.dropped() == {"set/0/yesno": ("unreadable-image",)}
