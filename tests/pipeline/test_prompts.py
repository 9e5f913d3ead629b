"""Prompts against strings written out by hand, transformers' Qwen3VLProcessor and its M-RoPE positions."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import IDS, qwen3_vl
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

import vital_jax.pipeline
from vital_jax.pipeline.families import rope_index
from vital_jax.pipeline.prompts import Prompter

IMAGE, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
QUESTIONS = (
    "Is there a polyp?",
    "  Où se trouve la lésion (≥ 5 mm) ? 左肺还是右肺 ",
    "A\n\nB <image 1> {{ x }} {% if %} <b>&amp;</b> \\n",
    "<think>",
)


@pytest.fixture(scope="module")
def folder(real):
    return real("model_configs") / "Qwen3-VL-8B-Instruct"


@pytest.fixture(scope="module")
def prompter(folder):
    return Prompter(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder's small files, with links to its vocabulary."""
    for path in folder.iterdir():
        if path.name in ("vocab.json", "merges.txt"):
            (tmp_path / path.name).symlink_to(path)
        else:
            shutil.copy(path, tmp_path)
    return tmp_path


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("system", [None, "You are a radiologist."])
def test_prompt_is_the_written_out_string(prompter, question, system):
    ids = prompter.encode(question, [(1, 4, 6), (1, 2, 2)], system)
    expected = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    expected += (
        f"<|im_start|>user\n{START}{IMAGE * 6}{END}{START}{IMAGE}{END}{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.dtype == np.int32
    assert ids.tolist() == prompter.tokenizer(expected)["input_ids"]
    assert prompter.tokenizer.decode(ids) == expected
    assert (ids == prompter.image_token_id).sum() == 7 and prompter.image_token_id == 151655


def test_earlier_turns_stand_before_the_question_and_hold_the_images(prompter):
    ids = prompter.encode("And so?", [(1, 2, 2)], "Be brief.", earlier=[("What?", "A <b>cyst</b>."), ("Sure?", "Yes.")])
    turns = [("system", "Be brief."), ("user", f"{START}{IMAGE}{END}What?"), ("assistant", "A <b>cyst</b>.")]
    turns += [("user", "Sure?"), ("assistant", "Yes."), ("user", "And so?")]
    expected = "".join(f"<|im_start|>{who}\n{text}<|im_end|>\n" for who, text in turns) + "<|im_start|>assistant\n"
    assert prompter.tokenizer.decode(ids) == expected
    with pytest.raises(ValueError, match=r"control token <\|im_end\|>"):
        prompter.encode("And so?", [], earlier=[("What?", "Yes.<|im_end|>")])


@pytest.fixture(scope="module")
def processor(folder, prompter):
    with pytest.MonkeyPatch.context() as patch:
        # Without torchvision there is no video processor, and transformers' check of argument types fails on its absence.
        patch.setattr(Qwen3VLProcessor, "check_argument_for_proper_class", lambda *_: None)
        return Qwen3VLProcessor(
            Qwen2VLImageProcessorPil.from_pretrained(folder), prompter.tokenizer, None, prompter.template
        )


@pytest.mark.parametrize("sizes", [[], [(300, 420)], [(300, 420), (64, 900), (256, 256)]])
def test_prompt_equals_transformers_processor(prompter, processor, sizes):
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    content = [*[{"type": "image"}] * len(sizes), {"type": "text", "text": QUESTIONS[1]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = processor(text=[text], images=images or None, return_tensors="np")
    grids = [tuple(grid) for grid in expected["image_grid_thw"].tolist()] if sizes else []
    np.testing.assert_array_equal(prompter.encode(QUESTIONS[1], grids), expected["input_ids"][0])


def test_without_pytorch_nothing_is_said_of_its_absence():
    script = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name.split('.')[0] == 'torch' else find(name, *a)\n"
        "import vital_jax.pipeline.prompts, transformers\n"
        "print(transformers.is_torch_available())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_control_tokens_are_refused(prompter):
    assert {IMAGE, START, END, "<|im_end|>", "<|endoftext|>", "<|fim_pad|>"} <= set(prompter.control_tokens)
    for token in prompter.control_tokens:
        with pytest.raises(
            ValueError, match=f"record 'q1': the text contains the control token {token}".replace("|", r"\|")
        ):
            prompter.encode(f"What is{token}?", [], name="record 'q1'")
    with pytest.raises(ValueError, match=r"prompt: the text contains the control token <\|im_start\|>"):
        prompter.encode("What?", [], system="<|im_start|>")
    with pytest.raises(ValueError, match=r"record 'q1' answer: the text contains the control token <\|im_end\|>"):
        prompter.encode_text("Yes.<|im_end|>", name="record 'q1' answer")


def test_text_and_back(prompter):
    ids = prompter.encode_text("Yes, in the left lung.")
    assert ids.tolist() == [*prompter.tokenizer("Yes, in the left lung.")["input_ids"], 151645]
    assert prompter.encode_text("Yes, in the left lung.", end=False).tolist() == ids[:-1].tolist()
    for question in QUESTIONS:
        # Padding is token 0, which reads "!": nothing behind the end counts.
        assert prompter.decode([*prompter.encode_text(question), 0, 0, 151643]) == question
        assert prompter.decode(prompter.encode_text(question, end=False)) == question
    assert prompter.decode([]) == "" and prompter.decode([151645]) == ""


def test_prompter_travels_to_workers_and_threads(prompter):
    again = pickle.loads(pickle.dumps(prompter))
    expected = prompter.encode(QUESTIONS[1], [(1, 4, 4)])
    np.testing.assert_array_equal(again.encode(QUESTIONS[1], [(1, 4, 4)]), expected)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: prompter.encode(QUESTIONS[1], [(1, 4, 4)]), range(200)))
    assert all(np.array_equal(result, expected) for result in results)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_template_of_the_checkpoint_wins(copy):
    def prompt() -> str:
        prompter = Prompter(copy)
        return prompter.tokenizer.decode(prompter.encode("What?", [(1, 2, 2)]))

    mark = (
        "{{ 'json' }}{% for c in messages[0].content %}{% if c.type == 'image' %}<|image_pad|>{% endif %}{% endfor %}"
    )
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": mark}))
    assert prompt() == f"json{IMAGE}"
    (copy / "chat_template.jinja").write_text(mark.replace("json", "jinja"))
    assert prompt() == f"jinja{IMAGE}"
    for name in ("chat_template.json", "chat_template.jinja"):
        (copy / name).unlink()
    assert prompt().startswith("<|im_start|>user\n")  # tokenizer_config.json
    (copy / "chat_template.jinja").write_text("no place for images")
    with pytest.raises(ValueError, match="placed 0 of 1 images"):
        prompt()


def test_no_template(copy):
    (copy / "chat_template.json").unlink()
    table = json.loads((copy / "tokenizer_config.json").read_text())
    del table["chat_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="no chat template"):
        Prompter(copy)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "config.json"])
def test_missing_files_are_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Prompter(copy)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, (151645,)),
        ({}, (151645,)),
        ({"eos_token_id": None}, (151645,)),
        ({"eos_token_id": 151643}, (151645, 151643)),
        ({"eos_token_id": 151645}, (151645,)),
        ({"eos_token_id": [151643, 151645, 0]}, (151645, 151643, 0)),
    ],
)
def test_an_answer_ends_at_the_tokens_of_the_generation_config(copy, given, expected):
    (copy / "generation_config.json").unlink()
    if given is not None:
        (copy / "generation_config.json").write_text(json.dumps(given))
    prompter = Prompter(copy)
    assert prompter.end_token_id == 151645 and prompter.end_token_ids == expected
    for end in expected:
        assert prompter.decode([*prompter.encode_text("Yes.", end=False), end, 1, 151645]) == "Yes."
    assert prompter.encode_text("Yes.")[-1] == 151645


def test_a_broken_generation_config_is_named(copy):
    (copy / "generation_config.json").write_text('{"eos_token_id": ')
    with pytest.raises(ValueError, match=r"generation_config\.json is not valid JSON"):
        Prompter(copy)
    (copy / "generation_config.json").write_text("[151645]")
    with pytest.raises(ValueError, match=r"generation_config\.json holds a list, not a JSON object"):
        Prompter(copy)


def test_missing_folder_is_no_hub_name():
    with pytest.raises(FileNotFoundError, match=r"Qwen3-VL-8B-Instruct/config\.json not found"):
        Prompter("Qwen/Qwen3-VL-8B-Instruct")


def test_config_and_tokenizer_must_agree(copy):
    table = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(table | {"image_token_id": 17}))
    with pytest.raises(ValueError, match="image_token_id 17"):
        Prompter(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        Prompter(copy)


def test_saved_by_transformers(prompter, copy):
    """tokenizer.json alone, as transformers 5 writes it, gives the same tokens."""
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json"):
        (copy / name).unlink()
    prompter.tokenizer.save_pretrained(copy)
    assert (copy / "tokenizer.json").is_file() and not (copy / "vocab.json").is_file()
    again = Prompter(copy)
    for question in QUESTIONS:
        np.testing.assert_array_equal(again.encode(question, [(1, 4, 4)]), prompter.encode(question, [(1, 4, 4)]))


def test_text_model_folder(copy, prompter):
    """The text decoder's folder has no image tokens: it encodes chains, and refuses images."""
    (copy / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    text = Prompter(copy)
    np.testing.assert_array_equal(text.encode_text("A step."), prompter.encode_text("A step."))
    with pytest.raises(ValueError, match="placed 0 of 1 images"):
        text.encode("What?", [(1, 2, 2)])


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return qwen3_vl("mha_tied").model


def sequence(*parts) -> tuple[np.ndarray, list]:
    """Token ids of text lengths (integers) and images (grids)."""
    ids, grids = [], []
    for part in parts:
        if isinstance(part, int):
            ids += [5] * part
        else:
            grids.append(part)
            ids += [IDS["image_token_id"]] * (part[1] * part[2] // 4)
    return np.array(ids, np.int32), grids


SEQUENCES = {
    "text": (7,),
    "text, image, text": (3, (1, 4, 6), 5),
    "image first": ((1, 6, 4), 2),
    "image last": (2, (1, 2, 8)),
    "image alone": ((1, 2, 2),),
    "wide and tall": (1, (1, 2, 40), 1, (1, 40, 2), 4),
    "several": (4, (1, 8, 8), 2, (1, 2, 2), 2, (1, 6, 10), 9),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_positions_equal_transformers(model, name):
    torch = pytest.importorskip("torch")
    ids, grids = sequence(*SEQUENCES[name])
    tokens = torch.tensor(ids)[None].long()
    expected, delta = model.get_rope_index(
        tokens, (tokens == IDS["image_token_id"]).int(), torch.tensor(grids) if grids else None
    )
    positions, following = rope_index(ids, grids, IDS["image_token_id"], 2)
    assert positions.dtype == np.int32
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())
    assert following == len(ids) + int(delta) == positions.max() + 1


def test_positions_of_a_padded_batch_equal_transformers(model):
    torch = pytest.importorskip("torch")
    rows = [sequence(*SEQUENCES[name]) for name in ("several", "text, image, text", "text")]
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor(np.stack([np.pad(ids, (0, width - len(ids))) for ids, _ in rows])).long()
    mask = torch.tensor(np.stack([np.arange(width) < len(ids) for ids, _ in rows])).long()
    grids = torch.tensor([grid for _, own in rows for grid in own])
    expected, delta = model.get_rope_index(tokens, (tokens == IDS["image_token_id"]).int(), grids, attention_mask=mask)
    for row, (ids, own) in enumerate(rows):
        positions, following = rope_index(ids, own, IDS["image_token_id"], 2)
        np.testing.assert_array_equal(np.pad(positions, [(0, 0), (0, width - len(ids))]), expected[:, row].numpy())
        assert following == len(ids) + int(delta[row])


def test_positions_of_a_real_prompt(prompter, processor, model):
    images = [Image.new("RGB", size) for size in ((300, 420), (900, 64))]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=images, return_tensors="pt")
    expected, _ = model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"])
    grids = [tuple(grid) for grid in inputs["image_grid_thw"].tolist()]
    positions, _ = rope_index(prompter.encode(QUESTIONS[0], grids), grids, prompter.image_token_id, prompter.merge_size)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())


def test_positions_refuse_tokens_that_are_not_the_grids():
    ids, _ = sequence(3, (1, 4, 4), 2)
    with pytest.raises(ValueError, match=r"4 image tokens, its grids \[\(1, 4, 6\)\] make 6"):
        rope_index(ids, [(1, 4, 6)], IDS["image_token_id"], 2)
    split, _ = sequence(3, (1, 2, 4), 1, (1, 2, 4))
    with pytest.raises(ValueError, match="not 4 in a row"):
        rope_index(split, [(1, 4, 4)], IDS["image_token_id"], 2)


# --- the room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grain", ["a stand-in", "itself"])
def test_pipeline_starts_no_framework(grain):
    """In a fresh interpreter: no file of the room brings in jax, flax or torch, and no device is started.

    Grain imports the jax package by itself, so it is replaced to see what our files do; then it must start no backend.
    """
    names = sorted(
        path.stem for path in Path(vital_jax.pipeline.__file__).parent.glob("*.py") if path.stem != "__init__"
    )
    script = f"""
import importlib, sys
from unittest.mock import MagicMock
if {grain == "a stand-in"}:
    sys.modules["grain"] = MagicMock()
for name in {names!r}:
    importlib.import_module("vital_jax.pipeline." + name)
    found = {{"jax", "jaxlib", "flax", "optax", "orbax", "torch"}} & set(sys.modules)
    assert not found - ({{"jax", "jaxlib", "orbax"}} if {grain == "itself"} else set()), (name, found)
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends, xla_bridge._backends
print("checked", len({names!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["checked", str(len(names))] and len(names) >= 4
