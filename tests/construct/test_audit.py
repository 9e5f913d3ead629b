"""The human audit: who is drawn, what the page holds, what verdicts are taken and what they add up to."""

import json
import math
import re
from collections import Counter

import pytest
from sheets import Page, record, write

from vital_jax.construct import audit
from vital_jax.statistics import spread

SIZES = {("CT", "describe"): 25, ("CT", "yesno"): 20, ("MRI", "describe"): 7, ("X-Ray", "location"): 1}


def pairs():
    """Records in the strata of `SIZES`, over two splits."""
    numbers = iter(range(1000))
    return [
        record(next(numbers), modality, kind, split="val" if i % 5 == 0 else "train")
        for (modality, kind), size in SIZES.items()
        for i in range(size)
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return write(pairs(), tmp_path_factory.mktemp("audit") / "OUT")


@pytest.fixture(scope="module")
def data(out):
    """What the page tells its script."""
    page = Page(audit.audit_page(out, audit.draw(out, 0.1)))
    return json.loads(page.texts["script"][0]), page.texts["script"][-1]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.28, 1.0])
def test_a_share_of_every_stratum_is_drawn(out, share):
    drawn = audit.draw(out, share)
    counts = Counter((modality, kind) for *_, modality, kind in drawn.rows)
    # Exact arithmetic: 25 * 0.28 is 7 records; in floating point it is a little more.
    assert counts == {key: -(-size * round(100 * share) // 100) for key, size in SIZES.items()}
    assert drawn.count == 53 and len({row[2] for row in drawn.rows}) == len(drawn.rows)


def test_the_draw_depends_on_seed_and_ids_alone(out, tmp_path):
    ids = [row[2] for row in audit.draw(out, 0.2).rows]
    assert ids == [row[2] for row in audit.draw(out / "records", 0.2).rows]
    assert ids != [row[2] for row in audit.draw(out, 0.2, seed=1).rows]
    turned = write([("train", each) for _, each in reversed(pairs())], tmp_path / "turned")
    assert ids == [row[2] for row in audit.draw(turned, 0.2).rows]
    assert [row[2] for row in audit.draw(out, 0.2, limit=5).rows] == spread(ids, 5)
    # In random order: who stops after the first third has still seen more than one stratum.
    assert len({row[3:] for row in audit.draw(out, 1.0).rows[:17]}) > 1
    for wrong in ({"share": 0}, {"share": 1.1}, {"share": math.nan}, {"limit": 0}):
        with pytest.raises(ValueError, match="must be"):
            audit.draw(out, **wrong)


def test_the_page_holds_the_drawn_records_in_order(out, data):
    found, script = data
    drawn = audit.draw(out, 0.1)
    assert [card["id"] for card in found["cards"]] == [row[2] for row in drawn.rows]
    assert found["fingerprint"] == drawn.fingerprint and (found["share"], found["seed"], found["limit"]) == (
        0.1,
        0,
        4000,
    )
    card = next(card for card in found["cards"] if card["type"] == "describe")
    number = card["id"].split("/")[1]
    assert card["question"] == f"What of {number}?" and card["chain"][2] == f"Step 2 of picture {number}."
    assert ["group", f"patient {number}"] in card["metadata"]
    assert all(part["outline"].startswith("data:image/png") for card in found["cards"] for part in card["images"])
    assert len(found["pictures"]) == len(found["cards"])
    # The script takes nothing from its data that is not in there, and its file says what the reader wants to know.
    assert set(re.findall(r"\bdata\.(?!set)(\w+)", script)) <= found.keys()
    assert set(re.findall(r"\bcard\.(\w+)", script)) <= card.keys()
    said = set(re.findall(r"(\w+): data\.\1", script))
    assert said == {"format", "format_version", "fingerprint", "share", "seed", "limit"}


def verdict_file(folder, found, verdicts, changes=()):
    """The file that the page would give."""
    keys = ("format", "format_version", "fingerprint", "share", "seed", "limit")
    file = folder / "verdicts.json"
    file.write_text(json.dumps({key: found[key] for key in keys} | {"verdicts": verdicts} | dict(changes)))
    return file


def test_verdicts_come_back_as_rates(out, data, tmp_path):
    found, _ = data
    by_modality = {}
    for card in found["cards"]:
        by_modality.setdefault(card["modality"], []).append(card["id"])
    assert {name: len(ids) for name, ids in by_modality.items()} == {"CT": 5, "MRI": 1, "X-Ray": 1}
    ct = by_modality["CT"]
    verdicts = {ct[0]: "leak", ct[1]: "wrong", ct[2]: "accept", ct[3]: "accept", by_modality["MRI"][0]: "accept"}
    drawn, read = audit.read_verdicts(verdict_file(tmp_path, found, verdicts), out)
    assert read == verdicts
    result = audit.summary(drawn, read)
    assert (result["shown"], result["judged"], result["count"]) == (7, 5, 53)
    assert list(result["rates"]) == ["all", "CT", "MRI"]  # no X-ray was judged: no rate of it
    assert result["rates"]["all"]["rejected"] == {"leak": 1, "wrong": 1, "unclear": 0}
    assert result["rates"]["CT"]["accepted"] == 2 and result["rates"]["CT"]["judged"] == 4
    for name, count, n in (("all", 1, 5), ("CT", 1, 4), ("MRI", 0, 1)):
        leak = result["rates"][name]["leak"]
        # Wilson's interval written out, z = 1.96.
        z, p = 1.959964, count / n
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        assert leak["share"] == p and leak["low"] == pytest.approx(centre - half, abs=1e-5)
        assert leak["high"] == pytest.approx(centre + half, abs=1e-5)
    assert result["rates"]["all"]["accept"]["share"] == 3 / 5
    assert json.loads(audit.write_summary(tmp_path, result).read_text()) == result
    with pytest.raises(ValueError, match="no verdicts"):
        audit.summary(drawn, {})


def test_verdicts_on_something_else_are_refused(out, data, tmp_path):
    found, _ = data
    first = found["cards"][0]["id"]
    shown = {card["id"] for card in found["cards"]}
    other = next(each.id for _, each in pairs() if each.id not in shown)
    cases = (
        ({}, {"fingerprint": "0" * 64}, r"verdicts on another set \(00000000, this one is"),
        ({other: "accept"}, {}, f"record '{other}' was not among those shown"),
        ({first: "good"}, {}, r"has verdict 'good', none of \['accept', 'leak'"),
        ({first: ["accept"]}, {}, "has verdict"),
        ({}, {"format": "else"}, "not a file of verdicts"),
        ({}, {"format_version": 2}, "not a file of verdicts"),
        ({}, {"share": "much"}, "not a file of verdicts"),
        ({}, {"verdicts": 3}, "not a file of verdicts"),
        ({}, {"seed": math.inf}, "not a file of verdicts"),
        ({}, {"share": 7}, "share must be"),
    )
    for verdicts, changes, message in cases:
        with pytest.raises(ValueError, match=message):
            audit.read_verdicts(verdict_file(tmp_path, found, verdicts, changes), out)
    (tmp_path / "x.json").write_text("<html>")
    with pytest.raises(ValueError, match=r"x\.json: not a file of verdicts"):
        audit.read_verdicts(tmp_path / "x.json", out)
    with pytest.raises(FileNotFoundError):
        audit.read_verdicts(tmp_path / "absent.json", out)


def test_rejected_ids_are_listed_and_earlier_ones_kept(tmp_path):
    strange = "id with \u2028 and \x85 inside"
    file, count = audit.write_rejects(tmp_path, {"b": "leak", "a": "unclear", "c": "accept", strange: "wrong"})
    assert count == 3
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    assert {"id": "b", "code": "audit-leak", "stage": "audit"} in rows
    expected = {"a": "audit-unclear", "b": "audit-leak", strange: "audit-wrong"}
    assert audit.read_rejects(file) == expected
    before = file.read_bytes()
    assert audit.write_rejects(tmp_path, {"a": "unclear"})[0].read_bytes() == before
    audit.write_rejects(tmp_path, {"d": "wrong", "a": "accept"})
    assert audit.read_rejects(file) == expected | {"d": "audit-wrong"}
    file.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"audit_rejects\.jsonl:1: not a line"):
        audit.write_rejects(tmp_path, {"a": "leak"})
