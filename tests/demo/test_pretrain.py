"""The recipe of the small models at a size of seconds, and the weights it made: how large, how honest, how distinct."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

from vital_jax.construct.roi import record_rows
from vital_jax.demo.boards import NAMES, draw_board
from vital_jax.demo.flow import flow_records
from vital_jax.demo.pretrain import __main__ as recipe
from vital_jax.demo.pretrain.siglip import pairs, train_siglip
from vital_jax.demo.pretrain.text import train_text
from vital_jax.demo.pretrain.tower import cell_captions, train_tower
from vital_jax.hub import tiny
from vital_jax.hub.encoders import load_encoder
from vital_jax.hub.load import load_backbone, load_siglip, load_text_decoder
from vital_jax.pipeline.features import distinctness

WEIGHTS = Path(recipe.__file__).parents[1] / "weights"
SENTENCES = [
    "The liver lies in the upper left quarter.",
    "The kidney flows to the aorta.",
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a small tokenizer that knows the words of boards."""
    folder = tmp_path_factory.mktemp("words") / "backbone"
    texts = [text for r in flow_records(20, 1, looks=6) for text in (r.question, r.answer, *r.chain)]
    tiny.write_backbone(folder, texts, width=64, layers=2, vocab=512)
    return folder


def test_a_text_decoder_learns_its_sentences(words, tmp_path):
    tiny.write_text_decoder(tmp_path, words, width=32, layers=1)
    before = jax.tree.leaves(load_text_decoder(tmp_path)[1])
    report = train_text(tmp_path, SENTENCES * 4, steps=40, batch=8)
    after = jax.tree.leaves(load_text_decoder(tmp_path)[1])
    assert report["accuracy"] > 0.9
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after, strict=True))


@pytest.mark.slow
def test_a_tower_learns_pairs(words, tmp_path):
    tiny.write_siglip(tmp_path, width=32, layers=1, image=28)
    boards = [draw_board(3, index) for index in range(4)]
    made = list(pairs(boards, 28, 0))
    assert len(made) == 6 * len(boards)
    assert all(pair.pixels.shape == (28, 28, 3) and pair.cells.shape == (4,) and pair.cells.any() for pair in made)
    before = load_siglip(tmp_path)[1]
    report = train_siglip(tmp_path, words, boards, steps=60, batch=16)
    # Sixteen texts: a tower that sees nothing finds its own one time in sixteen.
    assert report["hit"] > 0.3
    after = load_siglip(tmp_path)[1]
    assert max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)) > 1e-3


@pytest.mark.parametrize(
    "arguments, words_of_error",
    [(["run", "out", "siglipp"], ("siglipp", "siglip_low")), (["run", "{weights}", "siglip"], ("exists", "OUT"))],
)
def test_mistakes_are_named(arguments, words_of_error, capsys):
    with pytest.raises(SystemExit) as stop:
        recipe.main([word.format(weights=WEIGHTS) for word in arguments])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words_of_error)


def test_shipped_weights_are_small_complete_and_read(words):
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    for folder, load in (
        ("backbone", load_backbone),
        ("text_decoder", load_text_decoder),
        ("siglip", load_siglip),
        ("siglip_low", load_siglip),
    ):
        _, params = load(WEIGHTS / folder)
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(params))
        with safe_open(WEIGHTS / folder / "model.safetensors", "numpy") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 == {"BF16"}
    tokens = json.loads((WEIGHTS / "backbone/tokenizer.json").read_text())
    assert tokens == json.loads((WEIGHTS / "text_decoder/tokenizer.json").read_text())


def test_shipped_tower_tells_regions_apart(words):
    """Targets that are all alike would make the visual loss easy and empty."""
    encoder = load_encoder(WEIGHTS / "siglip", "block")
    records = list(flow_records(24, 77, per_board=1))
    rows = record_rows(records, encoder.apply, batch_size=8, grid=encoder.grid, size=encoder.size)
    features = np.stack([row.feature for row in rows])
    cosine, energy = distinctness(features)
    assert cosine < 0.9 and energy < 0.9


def test_cell_captions_name_what_a_cell_shows():
    names = list(NAMES)
    for index in range(12):
        board, seen = draw_board(4, index), 0
        for place, (structure, badge, light, *where) in zip(
            np.ndindex(4, 4), cell_captions(board).reshape(16, 5), strict=True
        ):
            assert tuple(where) == place
            if place not in board.cells.values():
                assert structure == badge == light == 0
                continue
            name = names[structure - 1]
            assert board.cells[name] == place and board.path(name, 1)[1] == names[badge - 1]
            assert light == (2 if board.bright[name] else 1)
            seen += 1
        assert seen == 9


@pytest.mark.slow
def test_a_backbones_tower_learns_cells(words, tmp_path):
    shutil.copytree(words, tmp_path, dirs_exist_ok=True)
    before = load_backbone(tmp_path, param_dtype=np.float32)[1]
    report = train_tower(tmp_path, boards=16, steps=120, seed=4, batch=16)
    after = load_backbone(tmp_path, param_dtype=np.float32)[1]
    # Sixteen boards by heart; a structure is guessed one time in twelve.
    assert report["structure"] > 0.5 and report["badge"] > 0.5
    changed = {
        part: [
            not np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(t[part]) for t in (before, after)), strict=True)
        ]
        for part in ("language_model", "visual")
    }
    assert not any(changed["language_model"]) and all(changed["visual"])
