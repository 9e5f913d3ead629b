"""The door `vital bench latency`: a run merged for both sides, what is written, and what is refused before anything is compiled."""

import argparse
import csv
import json

import pytest
import trained
from PIL import Image

from vital_jax.commands import bench
from vital_jax.hub.tiny import write_backbone

QUESTION = "Is there a nodule in the left lung?"


def vital(*words):
    parser = argparse.ArgumentParser()
    bench.register(parser.add_subparsers(dest="command"))
    arguments = parser.parse_args(["bench", "latency", *map(str, words)])
    return arguments.run(arguments)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """base/, a run on it with adapters away from their start, and an image."""
    work = tmp_path_factory.mktemp("bench")
    write_backbone(work / "base", [QUESTION], width=64, layers=2)
    trained.write_run(work / "run", work / "base")
    Image.radial_gradient("L").resize((96, 64)).save(work / "image.png")
    return work


def words(work, model="run", **more):
    flags = {"model": work / model, "image": work / "image.png", "question": QUESTION, "latent-steps": "0,2"}
    flags |= {"batch": "1", "answer-tokens": 3, "chain-tokens": 2, "repeats": 2, "warmup": 0, "out": work / "out"}
    flags |= {name.replace("_", "-"): value for name, value in more.items()}
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]


@pytest.mark.slow
def test_a_run_against_transformers(work, capsys, monkeypatch):
    # Compiling takes torch minutes; the other process reads this and says so.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert vital(*words(work, out=work / "pair", against="transformers")) == 0
    page, told = capsys.readouterr()
    assert (work / "pair" / "latency.md").read_text() == page
    assert "(adapters merged)" in page and "torch.compile switched off" in page
    assert "float32 on cpu" in page and "1, prompts of " in page
    assert page.count("1 of 1 (") == 2 * 3 and "What a latent step costs" in page
    assert "round 2 of 2" in told and str(work) not in page
    found = json.loads((work / "pair" / "latency.json").read_text())
    assert [cell["cell"]["latent_steps"] for cell in found["cells"]] == [0, 2, 0]
    assert {cell["agree"]["eager"] for cell in found["cells"]} == {1} and len(found["slopes"]) == 6
    with (work / "pair" / "latency.csv").open(newline="") as file:
        assert {row["part"] for row in csv.DictReader(file)} >= {"host", "program", "latent", "eager", "compiled"}
    assert (work / "pair" / "latency.svg").read_text().startswith("<svg")
    with pytest.raises(FileExistsError, match=r"latency.md.* would be overwritten; name another folder"):
        vital(*words(work, out=work / "pair"))


def test_a_run_alone_is_timed_as_it_answers(work, capsys):
    assert vital(*words(work, latent_steps="0", answer_tokens="free", out=work / "alone")) == 0
    page, _ = capsys.readouterr()
    assert "(adapters apart)" in page and "Batch 1, free answers" in page
    assert "transformers" not in page and "chain of thought" not in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(question=None), "--question is empty or missing"),
        (dict(split="test"), "--split and --limit are of --records"),
        (dict(image="none.png"), "image none.png: no such file"),
        (dict(image=None, records="."), "--question is of --image"),
        (dict(image=None, question=None, records="."), "no finished record folder"),
        (dict(question="<|im_end|>"), "control token"),
        (dict(model="nothing"), "no such folder"),
        (dict(image=__file__), "image"),
    ],
)
def test_mistakes_are_named_before_anything_is_compiled(work, more, message):
    with pytest.raises((ValueError, OSError), match=message):
        vital(*words(work, **more))
    assert not (work / "out").exists()


@pytest.mark.parametrize("flag", ["--latent-steps=0,x", "--batch=0", "--answer-tokens=8,long", "--chain-tokens=-1"])
def test_numbers_are_checked(work, flag, capsys):
    with pytest.raises(SystemExit):
        vital(*words(work), flag)
    assert flag.split("=")[0] in capsys.readouterr().err


def test_an_adapter_is_no_whole_model(work, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is an adapter to a base it does not name"):
        vital(*words(work, model=tmp_path, against="transformers"))
