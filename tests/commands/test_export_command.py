"""`vital export` as it is typed: what it writes and prints, what the card takes from files, the push, and mistakes in one line."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
import trained
from huggingface_hub import HfApi
from PIL import Image
from transformers import AutoTokenizer, GenerationConfig

from vital_jax import cli
from vital_jax.commands import export as command
from vital_jax.evaluate.score import judge
from vital_jax.hub import tiny
from vital_jax.pipeline.records import Record, write_records
from vital_jax.training.checkpoint import Checkpoints

PIXELS = b"\x89PNG"


def vital(*words):
    """The command alone: (exit status, or the error it would show)."""
    parser = argparse.ArgumentParser(prog="vital")
    command.register(parser.add_subparsers())
    arguments = parser.parse_args(["export", *map(str, words)])
    return arguments.run(arguments)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run on a base with a tokenizer, its records and its evidence."""
    work = tmp_path_factory.mktemp("command")
    tiny.write_backbone(work / "base", ["what is it"], width=64, layers=2, vocab=300)
    # As some bases are: the tie said in one place, and nothing about what ends an answer.
    table = json.loads((work / "base" / "config.json").read_text())
    assert table["text_config"].pop("tie_word_embeddings") and table["tie_word_embeddings"]
    (work / "base" / "config.json").write_text(json.dumps(table))
    (work / "base" / "generation_config.json").unlink()
    (work / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    trained.write_run(work / "run", work / "base", records=work / "records")
    rows = [
        judge(one, "Yes." if n else "No.") | {"question_type": "yesno", "ask": "presence"}
        for n, one in enumerate(records())
    ]
    found = {
        "config": {"eval": {"evidence": "test"}},
        "max_steps": 4,
        "answers": rows,
        "blind": rows[:1],
    }
    (work / "run" / "evidence.json").write_text(json.dumps(found))
    write_records(records(), work / "records")
    return work


def records():
    metadata = [{"source": "Task09_Spleen"}, {"source": "Task03_Liver"}, {"source": "ours", "licence": "CC0-1.0"}]
    return [Record(f"r{n}", (PIXELS,), "Is it there?", "Yes.", metadata=table) for n, table in enumerate(metadata)]


@pytest.fixture(scope="module")
def out(work):
    assert vital("--checkpoint", work / "run", "--out", work / "out", "--format", "both") == 0
    return work / "out"


def test_it_writes_the_folder_and_prints_where(work, tmp_path, capsys):
    assert vital("--checkpoint", work / "run", "--out", tmp_path / "out", "--format", "peft") == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "out") and "not a medical device" in shown.err
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("form", ["", "adapter"])
def test_what_transformers_needs_and_the_base_lacks_is_added(work, out, form):
    out = out / form
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (out, work / "base"))
    # 4.57 looks for the tie inside text_config, and draws a head at random where it is not there.
    assert "tie_word_embeddings" not in theirs["text_config"]
    theirs["text_config"]["tie_word_embeddings"] = True
    assert ours == {**theirs, "dtype": "float32"}
    banned = [0, 1, 3, 4, 5, 6, *range(ours["text_config"]["vocab_size"] - 16, ours["text_config"]["vocab_size"])]
    ends = {"eos_token_id": [2], "pad_token_id": 0, "do_sample": False, "max_new_tokens": 10}
    told = GenerationConfig.from_pretrained(out)
    assert json.loads((out / "generation_config.json").read_text()) == ends | {"suppress_tokens": banned}
    assert (told.eos_token_id, told.max_new_tokens, told.suppress_tokens) == ([2], 10, banned)
    assert AutoTokenizer.from_pretrained(out).padding_side == "left"
    template = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert (out / "chat_template.jinja").read_text() == template
    assert (out / "tokenizer.json").read_bytes() == (work / "base" / "tokenizer.json").read_bytes()


def test_what_was_written_answers_as_the_run_does(work, out, capsys):
    """The run, the merged folder and the adapter on its base, through the door a user takes."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(work / "image.png")
    ask = ["answer", "--image", work / "image.png", "--question", "what is it", "--json", "--model"]
    said = []
    for model in ([work / "run"], [out], [out / "adapter", "--base", work / "base"]):
        assert cli.main([str(word) for word in (*ask, *model)]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["latent_steps"] == 4 and len(said[0]["tokens"]) > 2
    for other in said[1:]:
        assert other["tokens"] == said[0]["tokens"]
        assert other["log_prob"] == pytest.approx(said[0]["log_prob"], abs=1e-3)
    assert cli.main([str(word) for word in (*ask, out / "adapter", "--base", out)]) == 2
    assert "was trained on another base" in capsys.readouterr().err


def test_the_card_counts_data_by_licence_and_answers_with_their_n(out):
    text = (out / "README.md").read_text()
    assert "license: apache-2.0" in text and "apache-2.0, as the base's card states" in text
    assert "| MSD | 2 | CC-BY-SA-4.0 | file |" in text and "| ours | 1 | CC0-1.0 | its records |" in text
    assert (
        "| exact answers, % | 3 | 66.7 | 20.8 to 93.9 | exact match" in text
        and "split test, greedy, K = 4 for all" in text
    )
    assert "| the same with images exchanged, % | 1 | 0.0 |" in text


def test_evidence_of_another_step_is_left_out(work, capsys, monkeypatch):
    with Checkpoints(work / "run" / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    assert len(command._evidence(work / "run", meta)) == 2
    assert command._evidence(work / "run", {**meta, "step": 1}) == []
    assert "is of step 2, the checkpoint of step 1: the card leaves it out" in capsys.readouterr().err


def test_evidence_at_steps_that_nobody_knows_in_use_is_left_out(work, tmp_path, capsys):
    with Checkpoints(work / "run" / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    found = json.loads((work / "run" / "evidence.json").read_text()) | {"eval_k": "per_sample"}
    (tmp_path / "evidence.json").write_text(json.dumps(found))
    assert command._evidence(tmp_path, meta) == []
    assert (
        "each record's own number of latent steps, which nobody knows in use: the card leaves it out"
        in capsys.readouterr().err
    )


def test_the_card_asks_as_the_run_is_evaluated_and_says_where_training_did_not(out):
    text = (out / "README.md").read_text()
    assert "| latent steps K | 4 for every question |" in text and "def ask(*asked, latent_steps=4)" in text
    assert (
        "Every question is asked with K = 4. In training each took as many steps as its explanation has, 1 to 4" in text
    )
    assert "try fewer" not in text


def test_scores_of_a_benchmark_come_with_protocol_and_rule(work, tmp_path):
    head = "protocol,benchmark,split,measure,group,n,value,low,high,interval,rule\n"
    row = "paper/1,vqa_rad,test,{},{},451,0.5,0.45,0.55,wilson,all items\n"
    groups = ("all", "majority answer", "modality=CT")
    (tmp_path / "table.csv").write_text(head + "".join(row.format("accuracy", group) for group in groups))
    found, floor = command._scores(tmp_path)
    assert floor.name == "vqa_rad test: accuracy, % (majority answer)"
    assert dataclasses.astuple(found) == (
        "vqa_rad test: accuracy, %",
        451,
        "50.0",
        "45.0 to 55.0",
        "paper/1: all items",
    )
    (tmp_path / "table.csv").write_text("a,group\n1,all\n")
    with pytest.raises(ValueError, match="not a table of `vital evaluate score`"):
        command._scores(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no table\.csv"):
        command._scores(work)


# --- the push ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub that notes what it is told."""
    told = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, name, **options: told.append((name, options)) or f"hub/{name}"
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: told.append(options))
    return told


def test_a_push_is_shown_and_sends_nothing(out, hub, capsys):
    (out / ".env").write_text("TOKEN=secret")
    assert vital("--out", out, "--push", "me/model") == 0
    shown = capsys.readouterr().err
    assert not hub and "nothing was sent; say --yes" in shown and "private repository me/model" in shown
    assert "licence stated: apache-2.0" in shown and "Health AI Developer Foundations" in shown
    assert "adapter/adapter_config.json" in shown and ".env" not in shown


def test_a_push_goes_to_a_private_repository_when_told(out, hub, capsys):
    (out / ".env").write_text("TOKEN=secret")
    assert vital("--out", out, "--push", "me/model", "--yes") == 0
    assert capsys.readouterr().out.strip() == "hub/me/model"
    (name, made), sent = hub
    assert (name, made["private"], sent["repo_id"], sent["folder_path"]) == ("me/model", True, "me/model", out)
    assert "model.safetensors" in sent["allow_patterns"] and ".env" not in sent["allow_patterns"]


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--push", "me/model"], "is no exported folder"),
        (["--push", "me"], "repository 'me': give it as OWNER/NAME"),
        ([], "--checkpoint RUN is missing"),
        (["--yes"], "--yes is for --push"),
        (["--checkpoint", "nowhere"], "nowhere: no such folder"),
        (["--checkpoint", "RUN", "--scores", "nowhere"], r"--scores nowhere: no table\.csv"),
        (["--checkpoint", "RUN/checkpoints"], "checkpoints holds neither checkpoints"),
        (["--checkpoint", "RUN", "--base", "nowhere"], r"base \(--base\): no folder nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(work, tmp_path, words, message):
    words = [word.replace("RUN", str(work / "run")) for word in words]
    with pytest.raises((OSError, ValueError), match=message) as error:
        vital("--out", tmp_path / "out", *words)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_name_of_another_form_is_refused(out):
    with pytest.raises(ValueError, match="repository 'me': give it as OWNER/NAME"):
        vital("--out", out, "--push", "me")
