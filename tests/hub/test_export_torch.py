"""The round trip: what JAX answers with a run, transformers answers with its export, with the same latents; and the loop's own manners.

JAX reads the run (base and adapters apart); transformers reads what `export` wrote of it, merged and as a PEFT adapter. Prompts are four of
unequal lengths with one or two images each, padded on the right here and on the left there.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import trained

from vital_jax.hub import parity, peft
from vital_jax.hub.exported import open_exported
from vital_jax.hub.load import load_backbone
from vital_jax.hub.safetensors import read_header
from vital_jax.latent.loop import variables_of
from vital_jax.models.backbone import Backbone
from vital_jax.models.families import read_config

torch = pytest.importorskip("torch")
other = pytest.importorskip("exported")
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Where transformers copies the code it is told to trust: not the user's own cache. Models this small lose time to threads."""
    import transformers.dynamic_module_utils as dynamic

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("round")
    trained.save_base("gqa4_untied", work / "base")
    tiny.save(tiny.qwen3(), work / "text")
    return work


@pytest.fixture(scope="module")
def run(work):
    return trained.write_run(work / "run", work / "base")


@pytest.fixture(scope="module")
def folder(work, run):
    return trained.export_run(run.folder, work / "out", "both", say=lambda line: None)


@pytest.fixture(scope="module")
def case(run):
    return trained.make_case(run.method.model.config)


@pytest.fixture(scope="module")
def ours(run, case):
    return trained.answers(run.method.model, variables_of(run.params), case, other.TOKENS)


@pytest.fixture(scope="module")
def merged(folder):
    return other.model(folder)


@pytest.fixture(scope="module")
def adapted(work, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(other.model(work / "base"), str(folder / "adapter")).eval()


@pytest.fixture(scope="module")
def given(case):
    return other.inputs(case, tiny.IDS["image_token_id"])


def agree(ours, theirs):
    np.testing.assert_array_equal(theirs["tokens"], ours["tokens"])
    np.testing.assert_allclose(theirs["logits"][:, 0], ours["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(theirs["latents"], ours["latents"], rtol=0, atol=TOLERANCE)
    chosen = torch.log_softmax(torch.from_numpy(theirs["logits"]), -1).numpy()
    chosen = np.take_along_axis(chosen, theirs["tokens"][..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, ours["log_probs"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("steps", other.STEPS)
def test_both_forms_answer_as_jax_does(folder, ours, merged, adapted, given, steps):
    agree(ours[steps], other.answers(merged, folder, given, steps))
    agree(ours[steps], other.answers(adapted, folder / "adapter", given, steps))


def test_the_latents_matter_and_differ(ours):
    """The comparison above could not tell K apart if latents changed nothing."""
    assert len({ours[K]["tokens"].tobytes() for K in other.STEPS}) == len(other.STEPS)
    z = ours[4]["latents"]
    assert np.abs(z[:, 1:] - z[:, :-1]).max(-1).min() > 0.1


def test_the_adapter_unloads_to_the_merged_weights(work, folder, merged):
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(other.model(work / "base"), str(folder / "adapter"))
    unloaded, own = wrapped.merge_and_unload().state_dict(), merged.state_dict()
    assert unloaded.keys() == own.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(unloaded[name], tensor, rtol=0, atol=2e-6, msg=name)


def test_the_regex_reaches_the_language_model_alone(adapted):
    found = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert len(found) == 5 * 7 and all(".language_model.layers." in name for name in found)


def test_the_state_before_the_norm_is_fed_back_where_the_run_did(work):
    before = trained.write_run(work / "before", work / "base", latent_state="pre_norm")
    folder = trained.export_run(before.folder, work / "pre", say=lambda line: None)
    case = trained.make_case(before.method.model.config, seed=1)
    found = trained.answers(before.method.model, variables_of(before.params), case, 3, (3,))[3]
    theirs = other.answers(other.model(folder), folder, other.inputs(case, tiny.IDS["image_token_id"]), 3)
    np.testing.assert_array_equal(theirs["tokens"][:, :3], found["tokens"])
    np.testing.assert_allclose(theirs["latents"], found["latents"], rtol=0, atol=TOLERANCE)


def by_peft(work, targets=r".*language_model.*\.(q_proj|v_proj)", **options):
    """An adapter that PEFT made and something trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(**dict(r=3, lora_alpha=5, target_modules=targets) | options)
    model = get_peft_model(other.model(work / "base"), settings).eval()
    model.peft_config["default"].base_model_name_or_path = str(work / "base")  # else PEFT asks a hub for it
    return model


def train(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape)


def as_peft_answers(model, variables, ours, case, given):
    batch = parity.make_batch(case, ours.config)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(ours.apply)(variables, batch)
    with torch.no_grad():
        expected = model(**given).logits.numpy()
    for row, length in enumerate(batch["lengths"]):
        np.testing.assert_allclose(logits[row, :length], expected[row, -length:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("start", [True, "pissa", "olora"])
def test_an_adapter_trained_with_peft_loads_here(work, run, case, given, tmp_path, start):
    """One whose start changed the base loads as PEFT converts it, and not before; the base is the one on disk."""
    model = by_peft(work, init_lora_weights=start, use_rslora=True)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's guide has it, before the adapter is first saved
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    train(model)
    convert = {} if start is True else dict(path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    if convert:
        model.save_pretrained(tmp_path / "plain")
        with pytest.raises(ValueError, match=f"init_lora_weights='{start}' changed the base before training"):
            open_exported(tmp_path / "plain", work / "base")
    model.save_pretrained(tmp_path / "elsewhere", **convert)
    assert json.loads((tmp_path / "elsewhere" / peft.CONFIG).read_text())["init_lora_weights"] is True
    found = open_exported(tmp_path / "elsewhere", work / "base")
    assert found.latent_steps == 0
    ours = Backbone(read_config(work / "base"), found.lora, dtype=jnp.float32)
    variables = {"params": run.params["base"], "lora": found.read_params()["lora"]}
    as_peft_answers(model, variables, ours, case, given)


def test_an_adapter_of_the_vision_tower_is_refused_with_a_command_that_merges_it(
    work, case, given, tmp_path, monkeypatch
):
    model = by_peft(work, r".*(language_model.*q_proj|visual\.blocks\.\d+\.attn\.qkv)")
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"where alone adapters are read: .*visual.*merge it with PEFT") as error:
        open_exported(tmp_path / "adapter", work / "base")
    command = str(error.value).partition('python -c "')[2].rpartition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(command.replace("BASE", str(work / "base")), {})
    ours, params = load_backbone(tmp_path / "MERGED", param_dtype=jnp.float32, dtype=jnp.float32)
    as_peft_answers(model, {"params": params}, ours, case, given)


# --- the loop's manners -----------------------------------------------------------------------------


def ask(model, folder, given, **options):
    told = dict(max_new_tokens=4, pad_token_id=0, do_sample=False) | options
    return model.generate(**given, custom_generate=str(folder), trust_remote_code=True, **told)


def test_a_row_alone_is_answered_as_in_a_batch(case, folder, merged, given):
    together = other.answers(merged, folder, given, 2)
    for row in range(4):
        alone = other.answers(merged, folder, other.inputs(case, tiny.IDS["image_token_id"], [row]), 2)
        np.testing.assert_array_equal(alone["tokens"][0], together["tokens"][row])
        np.testing.assert_allclose(alone["latents"][0], together["latents"][row], rtol=0, atol=TOLERANCE)


def test_prompts_without_images_need_nothing_more(folder, merged):
    ids = torch.arange(1, 8).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    both = other.answers(merged, folder, {"input_ids": ids, "attention_mask": mask}, 3)
    alone = other.answers(merged, folder, {"input_ids": ids[1:, 3:], "attention_mask": mask[1:, 3:]}, 3)
    np.testing.assert_allclose(alone["latents"][0], both["latents"][1], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(alone["tokens"][0], both["tokens"][1])


@pytest.mark.parametrize(
    "options", [{}, dict(do_sample=True, temperature=0.7, top_p=0.9), dict(repetition_penalty=1.5)]
)
def test_without_latents_it_is_the_ordinary_generate(folder, merged, given, options):
    told = dict(do_sample=False, max_new_tokens=6, pad_token_id=0) | options
    torch.manual_seed(3)
    plain = merged.generate(**given, **told)
    torch.manual_seed(3)
    assert torch.equal(ask(merged, folder, given, latent_steps=0, **told), plain)


def test_drawing_is_by_torchs_seed_and_several_answers_share_a_prompt(folder, merged, given):
    told = dict(do_sample=True, num_return_sequences=3, latent_steps=2, return_latents=True)
    torch.manual_seed(0)
    found = ask(merged, folder, given, **told)
    torch.manual_seed(0)
    assert torch.equal(ask(merged, folder, given, **told).sequences, found.sequences)
    greedy = ask(merged, folder, given, latent_steps=2, return_latents=True)
    # The thoughts before the draws are the prompt's: every answer's own are those of the greedy one.
    torch.testing.assert_close(found.latents, greedy.latents.repeat_interleave(3, 0), rtol=0, atol=TOLERANCE)
    assert len({tuple(row) for row in found.sequences[:3, -4:].tolist()}) > 1


def test_an_answer_ends_where_it_ends(folder, merged, given):
    free = ask(merged, folder, given, latent_steps=1)
    end = int(free[1, -3])
    found = ask(merged, folder, given, latent_steps=1, eos_token_id=end)
    start = given["input_ids"].shape[1]
    for row, whole in zip(found[:, start:].tolist(), free[:, start:].tolist(), strict=True):
        stop = whole.index(end) + 1 if end in whole else len(whole)
        assert row == (whole[:stop] + [0] * 4)[: len(row)]


def test_steps_come_from_the_training_where_none_are_asked(folder, merged, given):
    found = ask(merged, folder, given, return_latents=True)
    assert found.latents.shape == (4, 4, 64) and found.sequences.shape[1] == given["input_ids"].shape[1] + 4
    assert isinstance(ask(merged, folder, given), torch.Tensor)
    with pytest.warns(UserWarning, match="latent_steps=5: this model was trained with up to 4"):
        assert ask(merged, folder, given, latent_steps=5, return_latents=True).latents.shape[1] == 5


def test_loading_with_trust_replaces_generate(folder, given):
    model = other.model(folder, trust_remote_code=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.generate(**given, max_new_tokens=2, do_sample=False, return_latents=True, pad_token_id=0)
    assert found.latents.shape[1] == 4
    # 4.57 replaces it without being asked; those who ask again by name get the same.
    again = ask(model, folder, given, max_new_tokens=2, return_latents=True)
    assert torch.equal(again.sequences, found.sequences)


def test_a_streamer_sees_the_prompt_and_every_token(folder, merged, case):
    seen = []
    streamer = type("S", (), {"put": lambda self, x: seen.append(x), "end": lambda self: seen.append("end")})()
    one = other.inputs(case, tiny.IDS["image_token_id"], [1])
    found = ask(merged, folder, one, latent_steps=1, streamer=streamer)
    assert seen[-1] == "end" and torch.equal(torch.cat([seen[0][0], *seen[1:-1]]), found[0])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_beams=2), "greedy search and sampling, not with beam_search"),
        (dict(prompt_lookup_num_tokens=2), "not with assisted_generation"),
        (dict(cache_implementation="static"), "dynamic cache, not with cache_implementation='static'"),
        (dict(latent_steps=-1), "latent_steps=-1: give a whole number"),
        (dict(latent_steps=2.0), "latent_steps=2.0"),
        (dict(output_hidden_states=True, return_dict_in_generate=True), "output_hidden_states is not supported"),
        (dict(synced_gpus=True), "neither an assistant model nor synced_gpus"),
    ],
)
def test_what_the_loop_cannot_do_is_refused(folder, merged, given, options, message):
    with pytest.raises(ValueError, match=message):
        ask(merged, folder, given, **options)


def test_prompts_padded_on_the_right_are_refused(folder, merged):
    ids, mask = torch.arange(1, 8).repeat(2, 1), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        ask(merged, folder, {"input_ids": ids, "attention_mask": mask})


def test_a_folder_of_pefts_own_is_what_ours_looks_like(work, folder, adapted):
    adapted.peft_config["default"].base_model_name_or_path = str(work / "base")  # else PEFT asks a hub for it
    adapted.save_pretrained(work / "again")
    ours, theirs = ((place / peft.CONFIG).read_text() for place in (folder / "adapter", work / "again"))
    kept = {name: value for name, value in json.loads(theirs).items() if name in json.loads(ours)}
    assert {**json.loads(ours), "base_model_name_or_path": kept["base_model_name_or_path"]} == kept
    names = [set(read_header(place / peft.WEIGHTS)) for place in (folder / "adapter", work / "again")]
    assert names[0] == names[1]
