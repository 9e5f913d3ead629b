"""The folder of an evaluation: what a kill leaves, who may write, and settings that differ."""

import json
import signal
import subprocess
import sys

import pytest

from vital_jax.evaluate.answers import Answers

SETTINGS = {"model": {"step": 3, "config": "ab"}, "K": 4, "decoding": {"temperature": 0.0}}


def row(number):
    return {"id": f"q{number}", "prediction": "Ja, größer.", "K": 4}


def test_answers_are_there_for_the_next_process(tmp_path):
    out = tmp_path / "a" / "out"
    with Answers(out, SETTINGS) as answers:
        assert answers.rows == {}
        answers.append([row(0), row(1)])
        # On the disk before the next batch is asked, not when the file is closed.
        assert len((out / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert json.loads((out / "settings.json").read_text()) == SETTINGS
    with Answers(out, SETTINGS) as answers:
        assert answers.rows == {"q0": row(0), "q1": row(1)}
        answers.append([row(2)])
        assert list(answers.rows) == ["q0", "q1", "q2"]


@pytest.mark.parametrize("torn", [b'{"id": "q2", "predic', b'{"id": "q2"', b"\xc3", b"\0\0\0\0\n", b'{"id": "q2"}\n'])
def test_half_a_line_at_the_end_is_cut_off(tmp_path, torn):
    with Answers(tmp_path, SETTINGS) as answers:
        answers.append([row(0), row(1)])
    whole = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(whole + torn)
    with Answers(tmp_path, SETTINGS) as answers:
        assert list(answers.rows) == ["q0", "q1"]
        assert (tmp_path / "answers.jsonl").read_bytes() == whole
        answers.append([row(2)])
    with Answers(tmp_path, SETTINGS) as answers:
        assert list(answers.rows) == ["q0", "q1", "q2"]


def test_what_somebody_edited_is_named(tmp_path):
    with Answers(tmp_path, SETTINGS) as answers:
        answers.append([row(0)])
    file = tmp_path / "answers.jsonl"
    line = file.read_text(encoding="utf-8")
    file.write_text(f"[1]\n{line}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers.jsonl:1: no answer .*; mend the line, or name another folder"):
        Answers(tmp_path, SETTINGS)
    file.write_text(line * 2, encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers.jsonl:2: 'q0' is answered in an earlier line too"):
        Answers(tmp_path, SETTINGS)
    file.write_text(line, encoding="utf-8")
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json: not the settings of an evaluation"):
        Answers(tmp_path, SETTINGS)


def test_other_settings_are_named_with_both_values(tmp_path):
    Answers(tmp_path, SETTINGS).__exit__()
    other = {"model": {"step": 5, "config": "ab"}, "K": 4, "decoding": {"temperature": 0.7, "seed": 1}}
    with pytest.raises(ValueError) as error:
        Answers(tmp_path, other)
    said = str(error.value)
    assert "model.step was 3, this run has 5; decoding.temperature was 0.0, this run has 0.7" in said
    assert "decoding.seed was '(absent)', this run has 1" in said and "config" not in said and "K was" not in said
    # A refused process holds nothing, and changes nothing.
    with Answers(tmp_path, SETTINGS):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes.txt and no settings.json; name another folder"):
        Answers(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(FileExistsError, match=r"notes.txt: is a file; name a folder"):
        Answers(tmp_path / "notes.txt", SETTINGS)


HOLDER = """
import json, sys, time
from vital_jax.evaluate.answers import Answers
answers = Answers(sys.argv[1], json.loads(sys.argv[2]))
answers.append([{"id": "q0", "prediction": "x"}])
print("held", flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time_and_none_after_a_kill(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path), json.dumps(SETTINGS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=r"another process is answering into it; wait for it, stop it, or name"):
            Answers(tmp_path, SETTINGS)
        other.send_signal(signal.SIGKILL)
        other.wait()
    with Answers(tmp_path, SETTINGS) as answers:
        assert list(answers.rows) == ["q0"]
