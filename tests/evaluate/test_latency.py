"""Stages and transformers write what the one program writes; tables say what planted times say. No time is asserted."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vital_jax.evaluate import latency, latency_page, latency_torch
from vital_jax.evaluate.latency import Cell, Timed
from vital_jax.hub import parity
from vital_jax.hub.load import load_backbone
from vital_jax.latent.engine import Engine

END = 7


@dataclass(frozen=True)
class Asked:
    """One of the prompts of the parity check, by its number."""

    id: int


class Encoder:
    """Two prompts of unequal lengths, with two images and with one, as rows of one shape."""

    class prompter:
        end_token_ids = (END,)

    def __init__(self, config):
        self.rows = parity.make_batch(parity.make_case(config), config)

    def measure(self, request):
        return self.rows["tokens"].shape[1], self.rows["patches"].shape[1]

    def encode(self, request, layout, index):
        row = {name: x[request.id] for name, x in self.rows.items()}
        return row | {"latent_steps": np.int32(layout.latents.budget), "index": np.int32(index)}


class Inside(latency.Reference):
    """transformers in this process, and without its compiler, which takes minutes."""

    def __init__(self, folder):
        import tempfile

        self.dtype, self._scratch = "float32", tempfile.TemporaryDirectory()
        self.side = latency_torch.Reference(str(folder), "float32", "cpu", 1)
        self.asked = []

    def _ask(self, do, **request):
        self.asked.append((do, request))
        return getattr(self.side, do)(**request)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(folder, engine, variables) of a redrawn Qwen3-VL, float32."""
    folder = tiny.save(tiny.qwen3_vl("gqa4_untied"), tmp_path_factory.mktemp("latency") / "model")
    model, params = load_backbone(folder, param_dtype=jnp.float32, dtype=jnp.float32)
    encoder = Encoder(model.config)
    return folder, Engine(model, encoder, (encoder.measure(None),)), {"params": params}


@pytest.fixture(scope="module")
def reference(small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.compile", lambda step, **options: step)
        yield Inside(small[0])


def answers(small, steps, decoding, how):
    _, engine, variables = small
    batches = [rows for _, rows in engine.batches([Asked(0), Asked(1)], steps, batch=2)]
    return how(engine, variables, batches, steps, decoding)


@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_stages_and_transformers_write_what_the_one_program_writes(small, reference, steps):
    decoding = Cell(2, steps, 3).decoding(9, (END,))
    seconds, ours, log_probs = answers(small, steps, decoding, latency.program)
    assert ours.shape == (2, 3) and seconds > 0 and (ours >= 0).all()
    parts, staged = answers(small, steps, decoding, latency.stages)
    assert (staged == ours).all() and list(parts) == list(latency.STAGES)
    reference.read([rows for _, rows in small[1].batches([Asked(0), Asked(1)], 0, batch=2)])
    for form in latency.FORMS:
        found = reference.answer(form, steps, decoding, check=True)
        assert found["tokens"] == ours.tolist(), form
        np.testing.assert_allclose(found["log_probs"], log_probs, atol=2e-5)
        assert np.shape(found["margins"]) == (2, 3) and np.min(found["margins"]) >= 0
        assert list(found["seconds"]) == list(latency.STAGES)
        # A cache that is used again starts empty; what checks is made only where it is asked for.
        again = reference.answer(form, steps, decoding)
        assert again["tokens"] == ours.tolist() and not again["margins"]


def test_k_0_is_what_generate_of_transformers_writes(small, reference):
    torch = pytest.importorskip("torch")

    decoding = Cell(2, 0, 3).decoding(9, (END,))
    ours = answers(small, 0, decoding, latency.program)[1]
    for row in (0, 1):
        own = latency.for_torch({name: x[row : row + 1] for name, x in small[1].encoder.rows.items()})
        own = {name: torch.from_numpy(x) for name, x in own.items()}
        assert own["mask"].all() and own["ids"].shape[1] == small[1].encoder.rows["lengths"][row]
        types = (own["ids"] == tiny.IDS["image_token_id"]).int()
        inputs = dict(input_ids=own["ids"], pixel_values=own["patches"], image_grid_thw=own["grids"])
        found = reference.side.model.generate(
            **inputs, mm_token_type_ids=types, do_sample=False, min_new_tokens=3, max_new_tokens=3, eos_token_id=None
        )
        assert found[0, own["ids"].shape[1] :].tolist() == ours[row].tolist()


def test_free_answers_end_alike_and_are_counted(small, reference):
    fixed = answers(small, 2, Cell(2, 2, 3).decoding(9, (END,)), latency.program)[1]
    # A token that one of the two writes, so that one ends early and the other goes on.
    end = next(int(t) for t in fixed[0, :2] if t not in fixed[1])
    engine = Engine(small[1].model, small[1].encoder, small[1].buckets)
    engine.__dict__["ends"] = (end,)
    asked = [Asked(0), Asked(1)]
    (timed,) = latency.measure(engine, small[2], asked, [Cell(2, 2, None)], 1, 0, longest=3, reference=reference)
    first = fixed[0].tolist().index(end) + 1
    assert first < 3 and timed.tokens == (first + 3) / 2 and timed.rows == 2
    assert timed.agree == {"stages": 2, "eager": 2, "compiled": 2} and 0 < max(timed.apart.values()) < 1e-4
    do, request = reference.asked[-1]
    assert do == "answer" and request["ends"] == [end] and request["length"] == 3


@pytest.mark.slow
def test_every_side_is_timed_once_a_round_in_turn(small, reference):
    cells = latency.grid([2], [0, 2], [3], chain=4)
    assert [cell.name for cell in cells] == ["direct, K = 0", "K = 2", "chain of thought, 4 tokens"]
    said, before = [], len(reference.asked)
    timed = latency.measure(small[1], small[2], [Asked(0), Asked(1)], cells, 2, 1, reference=reference, say=said.append)
    assert [one.cell for one in timed] == cells and not any(one.failed for one in timed)
    parts = {"host", "program", *latency.STAGES}
    parts |= {f"{form}{stage}" for form in latency.FORMS for stage in ("", *(f"/{s}" for s in latency.STAGES))}
    for one in timed:
        assert set(one.times) == parts and {len(times) for times in one.times.values()} == {2}
        assert one.rows == 2 and one.tokens == (7 if one.cell.chain else 3)
        assert one.agree == {"stages": 2, "eager": 2, "compiled": 2}
        assert one.times["eager"] == pytest.approx(
            [sum(one.times[f"eager/{stage}"][i] for stage in latency.STAGES) for i in (0, 1)]
        )
    asked = [request["form"] for do, request in reference.asked[before:] if do == "answer"]
    # Once to compare and three rounds, of both forms, for three cells.
    assert asked.count("eager") == asked.count("compiled") == 3 * 4
    assert sum("round" in line for line in said) == 3
    # Four sides, so the first one to run is another in each of four rounds.
    clock = object.__new__(latency._Clock)
    order = []
    clock.sides = {name: lambda name=name: order.append(name) or {} for name in "abcd"}
    for number in range(3):
        clock.round(number, counts=False)
    assert "".join(order) == "abcdbcdacdab"


def test_other_tokens_stop_the_comparison_unless_a_near_tie_explains_them(small, reference, monkeypatch):
    right = Inside.answer
    margin = 0.5

    def wrong(self, form, steps, decoding, check=False):
        found = right(self, form, steps, decoding, check)
        found["tokens"][1][2] += 1
        return found | {"margins": [[margin] * decoding.length] * 2}

    monkeypatch.setattr(Inside, "answer", wrong)
    measure = lambda: latency.measure(  # noqa: E731
        small[1], small[2], [Asked(0), Asked(1)], [Cell(2, 0, 3)], 1, 0, reference=reference
    )
    with pytest.raises(RuntimeError, match=r"direct, K = 0, answers of 3 tokens: row 1 .* from token 3 on"):
        measure()
    margin = 1e-5
    (timed,) = measure()
    assert timed.agree == {"stages": 2, "eager": 1, "compiled": 1} and 0 < timed.apart["eager"] < 1e-4


def test_a_form_that_cannot_run_is_named_and_the_rest_goes_on(small, reference, monkeypatch):
    right = Inside.answer

    def fails(self, form, *args, **kwargs):
        if form == "compiled":
            raise RuntimeError("transformers: no C++ compiler")
        return right(self, form, *args, **kwargs)

    monkeypatch.setattr(Inside, "answer", fails)
    timed = latency.measure(small[1], small[2], [Asked(0)], [Cell(2, 0, 3)], 1, 0, reference=reference)
    assert timed[0].failed == {"compiled": "transformers: no C++ compiler"} and "eager" in timed[0].times
    page = latency_page.to_markdown(timed, {}, "t")
    assert "| could not run |" in page and "torch.compile, static cache could not run: transformers: no C++" in page


def test_the_grid_is_every_combination_and_chains_where_answers_are_fixed():
    cells = latency.grid([1, 8], [0, 4], [8, None], chain=100)
    assert len(cells) == 2 * (2 * 2 + 1) and [cell for cell in cells if cell.chain] == [
        Cell(1, 0, 8, 100),
        Cell(8, 0, 8, 100),
    ]
    assert cells[-1].decoding(12, (END,)).length == 12 and cells[-1].decoding(12, (END,)).ends == (END,)
    assert cells[2].decoding(12, (END,)).length == 108 and cells[2].decoding(12, (END,)).ends == (latency.NEVER,)
    assert not [cell for cell in latency.grid([1], [0], [8]) if cell.chain]


def test_rows_for_torch_lose_their_padding_and_nothing_else(small):
    rows = small[1].encoder.rows
    case, found = parity.make_case(small[1].model.config), latency.for_torch(rows)
    assert found["grids"].tolist() == np.concatenate([case["grids_0"], case["grids_1"]]).tolist()
    assert (found["patches"] == np.concatenate([case["patches_0"], case["patches_1"]])).all()
    for row in (0, 1):
        ids = case[f"ids_{row}"]
        assert (found["ids"][row][found["mask"][row] == 1] == ids).all()
        assert found["mask"][row].sum() == len(ids) and found["mask"][row, -1] == 1


@pytest.mark.slow
def test_the_other_process_tells_what_is_wrong(tmp_path):
    with pytest.raises(RuntimeError, match=rf"transformers: .*{re.escape(str(tmp_path / 'none'))}"):
        latency.Reference(tmp_path / "none", "float32", "cpu")


# --- arithmetic on planted times ------------------------------------------------------------------------------------


def planted(steps, milliseconds, **more):
    """A cell of four rounds whose one program takes so long; stages are 1, 2, K and 3 ms."""
    times = {"host": [0.5], "image": [1], "prefill": [2], "latent": [steps], "decode": [3], "program": [milliseconds]}
    times |= {"eager": [2 * milliseconds + steps], "compiled": [milliseconds / 2]}
    cell = Cell(2, steps, more.pop("answer", 8), more.pop("chain", 0))
    shake = (0.9, 1.0, 1.0, 1.3)
    times = {part: [1e-3 * ms * factor for factor in shake for ms in own] for part, own in times.items()}
    return Timed(
        cell, 2, 8.0, times, {"stages": 2, "eager": 2, "compiled": 2}, {"eager": 1e-6, "compiled": 0.02}, **more
    )


def test_slope_is_that_of_least_squares():
    assert latency.slope([0, 1, 2], [5.0, 7.0, 9.0]) == (2.0, 0.0, 3)
    # By hand: means 1.5 and 3; sum of products 5, of squares 5; rests 0.5 -0.5 -0.5 0.5, their squares 1.
    value, error, n = latency.slope([0, 1, 2, 3], [2.0, 2.0, 3.0, 5.0])
    assert (value, n) == (1.0, 4) and error == pytest.approx((1 / 2 / 5) ** 0.5)
    with pytest.raises(ValueError, match="two values of K"):
        latency.slope([1, 1, 1], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="three points"):
        latency.slope([0, 1], [1.0, 2.0])


def test_ratios_are_of_one_round_each():
    # The median of ratios, which is not the ratio of medians.
    assert latency.ratio([1.0, 2.0, 9.0], [1.0, 1.0, 3.0]) == (1.5, 2.0, 2.5, 3)
    with pytest.raises(ValueError, match="3 rounds of ours and 2 of theirs"):
        latency.ratio([1.0, 2.0, 9.0], [1.0, 1.0])


def test_slopes_leave_out_chains_and_free_answers():
    timed = [planted(0, 10), planted(2, 14), planted(0, 90, chain=50), planted(1, 70, answer=None), planted(4, 18)]
    found = latency.slopes(timed)
    assert set(found) == {(2, 8, part) for part in ("program", "latent", "eager", "compiled")}
    assert found[2, 8, "latent"].value == pytest.approx(1.05e-3)
    # 2 ms a step at 10 ms, times the mean of the planted shaking, 1.05.
    assert found[2, 8, "program"].value == pytest.approx(2.1e-3)
    assert found[2, 8, "eager"].value == pytest.approx(1.05e-3 * (2 * 2 + 1))
    assert found[2, 8, "program"].n == 12 and found[2, 8, "program"].error > 0
    assert latency.slopes([planted(2, 14)]) == {}


def cells(page, start):
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_say_what_was_planted():
    timed = [planted(0, 10), planted(2, 12), planted(0, 60, chain=50), planted(2, 30, answer=None)]
    page = latency_page.to_markdown(timed, {"model": "planted"}, "Latency of <it>")
    fixed, free = page.split("## Batch 2, free answers")
    ours, theirs = fixed.split("|  | ours |")
    assert cells(ours, "K = 2") == [
        "K = 2", "8", "0.5", "1", "2", "2", "3", "8", "12 (11.7 to 12.9)", "0.67", "1.20 (1.20 to 1.20)", "80"
    ]  # fmt: skip
    assert cells(theirs, "direct, K = 0") == [
        "direct, K = 0", "10", "20", "0.50 (0.50 to 0.50)", "2 of 2 (1e-06)", "5", "2.00 (2.00 to 2.00)", "2 of 2 (0.02)"
    ]  # fmt: skip
    assert "take 5.00 (5.00 to 5.00) times as long as K = 2." in ours + theirs
    # A free group without K = 0 has nothing to be a multiple of.
    assert cells(free.split("|  | ours |")[0], "K = 2")[10] == ""
    assert (
        "| 2 | 8 | ours, latent stage alone | 1.05 ±" in page
        and "- model: planted" in page
        and page.endswith("not a medical device.\n")
    )
    assert re.search(r"\| 2 \| 8 \| ours, one program \| 1\.05 ± 0\.\d+ \| 8 \|", page)


def test_csv_json_and_figure_hold_the_same():
    timed = [planted(0, 10), planted(2, 12), planted(0, 600, chain=50)]
    rows = list(csv.DictReader(io.StringIO(latency_page.to_csv(timed))))
    (row,) = (r for r in rows if (r["latent_steps"], r["part"]) == ("2", "eager"))
    assert float(row["median"]) == pytest.approx(0.026) and float(row["ours_to_it"]) == pytest.approx(12 / 26)
    assert row["n"] == "4" and len(rows) == 3 * 8
    found = json.loads(latency_page.to_json(timed, {"model": "planted"}))
    assert found["cells"][2]["cell"]["chain"] == 50 and len(found["cells"][0]["times"]["program"]) == 4
    assert {row["side"] for row in found["slopes"]} == {"program", "latent", "eager", "compiled"}
    root = ET.fromstring(latency_page.to_svg(timed, "a < b & c"))
    assert root[0].text == "a < b & c"
    wide = [float(e.get("width")) for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == "18"]
    image, prefill, latent, decode = wide[4:8]  # of K = 2
    assert prefill == pytest.approx(2 * image, abs=0.2) and latent == pytest.approx(prefill, abs=0.2)
    assert decode == pytest.approx(3 * image, abs=0.2) and sum(wide[8:]) <= 560.1
    labels = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "600 (cut)" in labels and "12" in labels
    # The axis: stages of 1, 2, 2 and 3 ms end at 8 on the scale of its ticks.
    ticks = {float(e.text): float(e.get("x")) for e in root.iter("{http://www.w3.org/2000/svg}text") if e.get("font-size") == "10"
             and e.get("text-anchor") == "middle"}  # fmt: skip
    a, b = sorted(ticks)[:2]
    assert a == 0 and 8 * (ticks[b] - ticks[a]) / (b - a) == pytest.approx(sum(wide[4:8]), abs=0.5)
