"""Calibration against numbers worked out by hand, and against answerers of whom it is known how well they know themselves."""

import numpy as np
import pytest

from vital_jax.evaluate import calibration as c

CONFIDENCE, CORRECT = np.array([0.9, 0.2, 0.8, 0.1]), np.array([0, 0, 1, 0])


def test_four_answers_by_hand():
    # Bins {0.1, 0.2}: |0 - 0.15|; {0.8, 0.9}: |0.5 - 0.85|; their mean.
    assert c.ece(CONFIDENCE, CORRECT, 2) == pytest.approx(0.25)
    assert c.ece(CONFIDENCE, CORRECT, 1) == pytest.approx(0.25)
    assert [tuple(b) for b in c.reliability(CONFIDENCE, CORRECT, 2)] == [
        pytest.approx((2, 0.15, 0)),
        pytest.approx((2, 0.85, 0.5)),
    ]
    assert c.brier(CONFIDENCE, CORRECT) == pytest.approx((0.81 + 0.04 + 0.04 + 0.01) / 4)
    assert c.risk_coverage(CONFIDENCE, CORRECT).tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert c.aurc(CONFIDENCE, CORRECT) == pytest.approx((1 + 1 / 2 + 2 / 3 + 3 / 4) / 4)
    assert c.best_aurc(CORRECT) == pytest.approx((0 + 1 / 2 + 2 / 3 + 3 / 4) / 4)


def test_bins_hold_equal_numbers_and_more_of_them_see_more():
    sizes = [b.n for b in c.reliability(np.linspace(0, 1, 23), np.ones(23), 10)]
    assert sum(sizes) == 23 and max(sizes) - min(sizes) <= 1
    # Half the answers too sure and half too unsure: one bin sees nothing.
    confidence, correct = np.repeat([0.3, 0.7], 50), np.repeat([1, 0], 50)
    assert c.ece(confidence, correct, 1) == pytest.approx(0) and c.ece(confidence, correct, 2) == pytest.approx(0.7)
    assert [c.bins_for(n) for n in (1, 9, 25, 50, 5000)] == [1, 1, 5, 10, 10]


def test_equally_sure_answers_have_no_order():
    correct = np.array([1, 1, 0, 0])
    assert c.risk_coverage(np.full(4, 0.5), correct).tolist() == [0.5] * 4
    assert c.aurc(np.full(4, 0.5), correct) == c.aurc(np.full(4, 0.5), correct[::-1]) == 0.5


def test_the_floor_is_what_a_calibrated_answerer_has():
    r = np.random.default_rng(0)
    confidence = r.uniform(0.2, 1, 400)
    mean, high = c.floor(confidence, 10, draws=300)
    errors = [c.ece(confidence, r.random(400) < confidence, 10) for _ in range(300)]
    assert 0 < mean < high and mean == pytest.approx(np.mean(errors), rel=0.1)
    assert np.mean(np.array(errors) <= high) == pytest.approx(0.95, abs=0.04)
    # Sure of everything and right of half: far above.
    assert c.ece(np.full(400, 0.99), np.arange(400) % 2, 10) > 4 * high


def test_intervals_hold_their_value_and_draw_images():
    r = np.random.default_rng(1)
    confidence = r.uniform(0, 1, 200)
    correct = (r.random(200) < confidence).astype(float)
    found = c.calibration(confidence, correct, [i // 2 for i in range(200)])
    for name in ("ece", "brier", "aurc"):
        assert 0 <= found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["bins"] == 10 and found["error"] == pytest.approx(1 - correct.mean())
    assert found["aurc_best"] < found["aurc"]["value"] < found["error"]
    # Ten copies of each question say no more than one does.
    ten = lambda x: np.repeat(x[:40], 10)  # noqa: E731
    narrow = c.bootstrap(c.brier, ten(confidence), ten(correct), range(400))
    honest = c.bootstrap(c.brier, ten(confidence), ten(correct), [i // 10 for i in range(400)])
    assert honest[1] - honest[0] > 2 * (narrow[1] - narrow[0])
    assert c.bootstrap(c.brier, confidence, correct, ["one"] * 200) is None


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        c.brier([1.2], [1])
    with pytest.raises(ValueError, match="0 confidences"):
        c.calibration([], [], [])
    with pytest.raises(ValueError, match="2 answers do not fill 3 bins"):
        c.reliability(np.array([0.1, 0.2]), np.array([0, 1]), 3)
