"""Added tokens and modules inside the loop, out and back: transformers and PEFT compute what JAX does, and so does what is read again."""

import json

import jax
import jax.numpy as jnp
import marked
import numpy as np
import pytest

from vital_jax.hub import parity, peft
from vital_jax.hub.export import export
from vital_jax.hub.exported import open_exported
from vital_jax.hub.safetensors import read_folder, read_header
from vital_jax.hub.tokens import FEEDBACK, tokenizer_files
from vital_jax.latent.loop import variables_of
from vital_jax.models.backbone import Backbone
from vital_jax.models.families import read_config
from vital_jax.models.tokens import TABLES, delta_of, moved_rows
from vital_jax.pipeline.batch import Encoder
from vital_jax.pipeline.prompts import Prompter
from vital_jax.run.open import open_run
from vital_jax.training.partition import flatten

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def known():
    with marked.known:
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def work(request, tmp_path_factory):
    """(folder of the base, method, parameters of the run, folder of its export, prompts with added tokens in them)."""
    work = tmp_path_factory.mktemp("marked")
    base = marked.write_base(work / "base", request.param)
    method, params = marked.write_run(work / "run", base)
    out = export(open_run(work / "run"), work / "out", form="both", say=lambda line: None)
    case = parity.make_case(method.model.config)
    for row in range(int(case["rows"])):
        case[f"ids_{row}"][[0, -1]] = method.model.added[row % 2], method.model.added[0]
    return base, method, params, out, case


@pytest.fixture(scope="module")
def ours(work):
    _, method, params, _, case = work
    return logits(method.model, variables_of(params), case)


def logits(model, variables, case):
    """[rows][S', V], from JAX."""
    batch = parity.make_batch(case, model.config)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.apply)(variables, batch)
    return [np.asarray(found[row, :length]) for row, length in enumerate(batch["lengths"])]


def theirs(model, case, image_token_id):
    """The same from torch."""
    other = pytest.importorskip("exported")
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        found = model(**other.inputs(case, image_token_id)).logits.numpy()
    return [found[row, -len(case[f"ids_{row}"]) :] for row in range(int(case["rows"]))]


def agree(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_the_rows_matter(work, ours):
    """What follows could not fail if prompts and scores did not depend on them."""
    _, method, params, _, case = work
    without = logits(
        method.model, variables_of({**params, "tokens": jax.tree.map(jnp.zeros_like, params["tokens"])}), case
    )
    assert min(np.abs(a - b).max() for a, b in zip(ours, without, strict=True)) > 0.1


def test_transformers_loads_the_merged_folder(work, ours):
    other = pytest.importorskip("exported")
    _, method, _, out, case = work
    model = other.model(out)
    agree(theirs(model, case, method.model.config.image_token_id), ours)
    assert model.get_input_embeddings().weight.shape[0] == method.model.config.decoder.vocab


def test_its_tokenizer_knows_the_tokens(work):
    from transformers import AutoTokenizer

    base, method, _, out, _ = work
    for folder in (out, out / "adapter"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer.encode(f"the{marked.A}liver{marked.B}", add_special_tokens=False)
        assert [i for i in ids if i in method.model.added] == list(method.model.added) == [ids[1], ids[-1]]
        assert tokenizer.decode(ids) == f"the{marked.A}liver{marked.B}"
        assert tokenizer.decode(ids, skip_special_tokens=True) == "theliver"
    assert Prompter(out).control_tokens == Prompter(base, (marked.A, marked.B)).control_tokens


def test_peft_loads_the_adapter(work, ours, tmp_path):
    other = pytest.importorskip("exported")
    from peft import PeftModel

    base, method, _, out, case = work
    adapted = PeftModel.from_pretrained(other.model(base), str(out / "adapter")).eval()
    agree(theirs(adapted, case, method.model.config.image_token_id), ours)
    adapted.peft_config["default"].base_model_name_or_path = str(base)  # else PEFT asks a hub for it
    adapted.save_pretrained(tmp_path)
    names = [set(read_header(folder / peft.WEIGHTS)) for folder in (out / "adapter", tmp_path)]
    assert names[0] == names[1]
    merged, unloaded = read_folder(out), adapted.merge_and_unload().state_dict()
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in merged:
            np.testing.assert_allclose(unloaded[name].numpy(), merged[name].rows(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["merged", "peft"])
def test_both_are_read_back(work, ours, form):
    base, method, params, out, case = work
    found = open_exported(out if form == "merged" else out / "adapter", None if form == "merged" else base)
    assert (found.added, found.tokens) == (((), ()) if form == "merged" else (method.model.added, (marked.A, marked.B)))
    model = Backbone(read_config(found.base), found.lora, dtype=jnp.float32, added=found.added)
    tree = found.read_params()
    agree(logits(model, variables_of(tree), case), ours)
    np.testing.assert_array_equal(tree["feedback"]["mixer"]["kernel"], params["feedback"]["mixer"]["kernel"])
    prompter = Encoder.from_folder(found.base, added=found.tokens).prompter
    assert tuple(int(prompter.literal(text)[0]) for text in (marked.A, marked.B)) == method.model.added
    assert set(read_header((out if form == "merged" else out / "adapter") / FEEDBACK)) == {"mixer.kernel"}


def test_the_run_itself_is_read_back(work):
    *_, params, out, _ = work
    run = open_run(out.parent / "run")
    assert tuple(run.tokens.values()) == run.method().model.added
    found = run.read_params()
    for name in ("tokens", "feedback", "lora"):
        jax.tree.map(np.testing.assert_array_equal, found[name], params[name])


def test_rows_that_peft_trained_elsewhere_are_read(work, tmp_path):
    other = pytest.importorskip("exported")
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model

    base, method, *_ = work
    config = method.model.config
    rows = [method.model.added[1], 20, method.model.added[0]]
    both = rows if config.decoder.tied else {"embed_tokens": rows, "lm_head": rows}
    settings = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj", trainable_token_indices=both)
    model = get_peft_model(other.model(base), settings).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.5 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path)
    found = open_exported(tmp_path, base)
    assert found.added == tuple(sorted(rows)) and found.tokens == ()
    tree = flatten(found.read_params())
    for side, module in {"input": model.get_input_embeddings(), "head": model.get_output_embeddings()}.items():
        # Nobody recorded a precision, so the base is bfloat16; its rows and what moves them add up to PEFT's all the same.
        expected = module.token_adapter.get_merged_weights(["default"]).detach()[list(found.added)]
        path = TABLES[delta_of(side, config.decoder)]
        delta = tree[f"tokens/{delta_of(side, config.decoder)}"]
        np.testing.assert_allclose(moved_rows(tree[f"base/{path}"], found.added, delta), expected, rtol=0, atol=1e-6)


def test_rows_of_other_modules_are_refused(work, tmp_path):
    base, _, _, out, _ = work
    config = read_config(base)
    for name in (peft.CONFIG, peft.WEIGHTS):
        (tmp_path / name).write_bytes((out / "adapter" / name).read_bytes())
    text = (tmp_path / peft.CONFIG).read_text()
    (tmp_path / peft.CONFIG).write_text(text.replace("model.language_model.embed_tokens", "model.visual.pos_embed"))
    with pytest.raises(
        ValueError, match=r"trainable_token_indices of 'model\.visual\.pos_embed' are not read; use model"
    ):
        peft.load_adapter(tmp_path, config)
    settings = peft.adapter_config(
        [], open_exported(out / "adapter", base).lora, "base", {"model.language_model.embed_tokens": [3]}
    )
    (tmp_path / peft.CONFIG).write_text(json.dumps(settings | {"target_modules": "x"}))
    with pytest.raises(ValueError, match=r"embed_tokens\.token_adapter.* is \[2, 64\], this base needs \[1, 64\]"):
        peft.load_rows(tmp_path, config)


def test_a_published_tokenizer_takes_them_on_its_spare_rows(real, tmp_path):
    """vocab.json and merges.txt, as Qwen publishes them, with the added tokens in tokenizer_config.json."""
    from transformers import AutoTokenizer

    folder = real("model_configs") / "Qwen3-VL-8B-Instruct"
    prompter = Prompter(folder, (marked.A, marked.B, "<think>"))
    assert prompter.added == {marked.A: 151669, marked.B: 151670, "<think>": 151667}
    files = tokenizer_files(folder, prompter.added)
    assert set(files) == {"tokenizer_config.json"}
    for path in folder.iterdir():
        if path.name not in files:
            (tmp_path / path.name).symlink_to(path)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = f"a{marked.B}b<think>{marked.A}"
    assert again.encode(text) == prompter.tokenizer.encode(text) == prompter.literal(text)
    assert again.encode(text)[-1] == 151669
    assert tokenizer_files(tmp_path, prompter.added) == {} == tokenizer_files(folder, {"<think>": 151667})
