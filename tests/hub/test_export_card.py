"""The model card's call, as it is typed: transformers answers with an exported folder what `vital_jax.load` answers with the run.

Slow, since each version of transformers needs an environment: what it needs beside this one is installed once, under `.cache/`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trained

import vital_jax
from vital_jax.demo.phantoms import phantoms
from vital_jax.pipeline.images import decode

pytestmark = pytest.mark.slow
carded = pytest.importorskip("carded")
BACKBONE = Path(vital_jax.__file__).parent / "demo" / "weights" / "backbone"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "versions"
VISION = "torchvision==0.28.0"  # goes with torch 2.13
VERSIONS = {
    "installed": [VISION],
    "4.57.6": [VISION, "transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2"],
}
STEPS = range(5)
SIZES = [
    (96, 64),
    (64, 64),
    (300, 200),
    (200, 333),
    (128, 128),
    (50, 70),
    (512, 512),
    (129, 140),
    (90, 260),
    (256, 100),
]


def environment(version: str) -> dict[str, str]:
    """An environment in which Python finds these packages before its own."""
    folder = CACHE / version
    if not folder.is_dir():
        part = folder.with_name(f"{version}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", part, *VERSIONS[version]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(part, ignore_errors=True)
            pytest.skip(f"{', '.join(VERSIONS[version])} cannot be installed here: {done.stderr.strip()[-200:]}")
        part.rename(folder)
    return {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A base as many are: its head's tie said in one place, and no generation_config.json; and a run on it, exported."""
    work = tmp_path_factory.mktemp("card")
    shutil.copytree(BACKBONE, work / "base")
    (work / "base" / "generation_config.json").unlink()
    table = json.loads((work / "base" / "config.json").read_text())
    del table["text_config"]["tie_word_embeddings"]
    (work / "base" / "config.json").write_text(json.dumps(table))
    run = trained.write_run(work / "run", work / "base", system="Be brief.")
    trained.export_run(run.folder, work / "out", "both", say=lambda line: None)
    return work


@pytest.fixture(scope="module")
def asked(work):
    """Batches of (question, file, more files): ten images one by one, five together, and pairs of images."""
    files = []
    for number, (sample, size) in enumerate(zip(phantoms(40, 5), SIZES, strict=False)):
        files.append(str(work / f"{number}.png"))
        decode(sample.image, "a phantom")[0].resize(size).save(files[-1])
    questions = ["Is the kidney brighter or darker than the surroundings?", "Left or right?", "What is shown here?"]
    ones = [[questions[number % 3], file] for number, file in enumerate(files)]
    pairs = [[questions[number], files[number], files[-1 - number]] for number in range(3)]
    return [*([one] for one in ones), ones[:5], pairs, [ones[6], pairs[0]]]


@pytest.fixture(scope="module")
def ours(work, asked):
    """What the run answers: {K: [[answer, ...] of each batch]}."""
    model = vital_jax.load(work / "run")
    found = {}
    for K in STEPS:
        flat = model.answer(
            [files for batch in asked for _, *files in batch], [one[0] for batch in asked for one in batch], K
        )
        texts = iter(answer.text for answer in flat)
        found[str(K)] = [[next(texts) for _ in batch] for batch in asked]
    return found


def test_there_is_something_to_compare(ours):
    """Answers that change with the number of latents, the image and the question."""
    texts = {K: [text for batch in found for text in batch] for K, found in ours.items()}
    assert len({json.dumps(found) for found in texts.values()}) == len(STEPS)
    assert all(len(set(found)) > 5 and any(found) for found in texts.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cards_call_answers_as_the_run_does(work, asked, ours, tmp_path, version):
    pytest.importorskip("peft")
    base = str(work / "base")
    folders = {"merged": (str(work / "out"), base), "peft": (str(work / "out" / "adapter"), base)}
    (tmp_path / "job.json").write_text(json.dumps({"folders": folders, "asked": asked, "steps": list(STEPS)}))
    command = [sys.executable, carded.__file__, tmp_path / "job.json", tmp_path / "out.json"]
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(version) | modules)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "newly initialized" not in done.stderr
    for name, found in json.loads((tmp_path / "out.json").read_text()).items():
        assert found == ours, name
