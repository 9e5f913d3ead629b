"""Replacements of known vectors: what stands in the slots, whose it is, and which questions are counted."""

import numpy as np
import pytest

from vital_jax.evaluate.replacements import ABOUT, OTHER, REPLAYED, SAME, means, partners, replacements

STEPS = [1, 2, 3, 3, 2, 1, 4, 3]
IMAGES = ["a", "a", "b", "c", "d", "d", "e", "b"]
ASKED = list(zip("ABCDEFGH", ["spleen"] * 3 + ["kidney"] * 5, strict=True))  # no two in the same words
OWN = np.arange(4) < np.array(STEPS)[:, None]
U = np.random.default_rng(0).normal(size=(8, 4, 6)).astype(np.float32) * OWN[..., None]


@pytest.fixture(scope="module")
def made():
    return replacements(U, OWN, IMAGES, ASKED, seed=3)


def test_every_replacement_is_there_and_counts_what_it_changes(made):
    assert list(made) == list(ABOUT)
    counted = {name: np.flatnonzero(one.counted).tolist() for name, one in made.items()}
    everything, two, three = list(range(8)), [1, 2, 3, 4, 6, 7], [2, 3, 6, 7]
    assert counted[REPLAYED] == counted["zeros"] == counted["noise of the same length"] == everything
    assert counted["z_0 in every slot"] == counted["shuffled order"] == two
    assert counted["first latent repeated"] == three
    # The row of four steps has no partner.
    assert counted[OTHER] == [0, 1, 2, 3, 4, 5, 7]
    assert counted[SAME] == [3, 7]  # the only two of one length about one thing in two images
    np.testing.assert_array_equal(made[REPLAYED].vectors, U)


def test_noise_is_as_long_as_what_it_replaces_and_unrelated(made):
    noise = made["noise of the same length"].vectors
    np.testing.assert_allclose(np.linalg.norm(noise[OWN], axis=-1), np.linalg.norm(U[OWN], axis=-1), rtol=1e-5)
    many = np.random.default_rng(1).normal(size=(200, 1, 64))
    drawn = replacements(many, np.ones((200, 1), bool), range(200), [(i, i) for i in range(200)])[
        "noise of the same length"
    ].vectors
    cosine = (drawn * many).sum(-1) / np.linalg.norm(drawn, axis=-1) / np.linalg.norm(many, axis=-1)
    assert abs(cosine.mean()) < 0.05


def test_what_stands_in_the_slots(made):
    first, still = made["first latent repeated"].vectors, made["z_0 in every slot"].vectors
    for i in range(8):
        np.testing.assert_array_equal(still[i, : STEPS[i]], np.tile(U[i, 0], (STEPS[i], 1)))
        np.testing.assert_array_equal(first[i, 0], U[i, 0])
        np.testing.assert_array_equal(first[i, 1 : STEPS[i]], np.tile(U[i, 1], (STEPS[i] - 1, 1)))
    mixed = made["shuffled order"].vectors
    for i in range(8):
        rows = lambda x, n=STEPS[i]: sorted(map(tuple, x[:n].tolist()))  # noqa: E731
        assert rows(mixed[i]) == rows(U[i])
    mean = made["mean latent"].vectors
    np.testing.assert_allclose(mean[5, 1], U[[1, 2, 3, 4, 6, 7], 1].mean(0), rtol=1e-5)
    np.testing.assert_allclose(means(U, OWN)[3], U[6, 3], rtol=1e-6)


def test_the_same_question_is_one_in_the_same_words_whatever_its_answer():
    u, own = U[:5, :1] + np.arange(5)[:, None, None].astype(np.float32), np.ones((5, 1), bool)
    # Rows 0, 1 and 4 ask in the same words, 4 about the image of 0; 0 and 2 have the same answer; 3 is alone in everything.
    asked = [("A", "liver"), ("A", "heart"), ("B", "liver"), ("C", "lung"), ("A", "liver")]
    for seed in range(5):
        same = replacements(u, own, "abcda", asked, seed)[SAME]
        np.testing.assert_array_equal(same.vectors[0], u[1])
        np.testing.assert_array_equal(same.vectors[4], u[1])
        assert (same.vectors[1] == u[[0, 4]]).all((1, 2)).sum() == 1
        # None asks as row 2 does: then one about the same, as before.
        assert (same.vectors[2] == u[[0, 4]]).all((1, 2)).sum() == 1
        assert same.counted.tolist() == [True, True, True, False, True]


def test_partners_take_as_many_steps_and_show_another_image(made):
    chosen = partners(STEPS, IMAGES, seed=3)
    for i, other in enumerate(chosen):
        if other >= 0:
            assert STEPS[i] == STEPS[other] and IMAGES[i] != IMAGES[other]
            np.testing.assert_array_equal(made[OTHER].vectors[i], U[other])
    assert chosen[6] == -1
    np.testing.assert_array_equal(made[OTHER].vectors[6], U[6])
    assert partners([1, 1], ["a", "a"]).tolist() == [-1, -1]
    assert {tuple(partners([1] * 6, range(6), seed=s)) for s in range(5)} != {tuple(partners([1] * 6, range(6)))}


def test_one_step_for_all_has_neither_order_nor_repetition():
    own = np.ones((3, 1), bool)
    made = replacements(U[:3, :1], own, "abc", list(zip(range(3), range(3), strict=True)))
    assert set(ABOUT) - set(made) == {"first latent repeated", "z_0 in every slot", "shuffled order", SAME}
    with pytest.raises(ValueError, match="nothing to replace in 3 rows of 0 slots"):
        replacements(U[:3, :0], own[:, :0], "abc", ASKED[:3])
