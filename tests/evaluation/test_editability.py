import numpy as np
import pytest
import torch

from stylegan_inversion import Direction
from stylegan_inversion.evaluation.editability import edit_strengths, fold, mean_move, move_at, summarise_edit


def test_strengths_reach_both_ends_and_hold_zero() -> None:
    vector = torch.eye(3)[0]

    def between(low: float, high: float) -> tuple[float, ...]:
        return edit_strengths(Direction("smile", vector, strength_range=(low, high)), 5)

    assert between(-2.0, 4.0) == (-2.0, -1.0, 0.0, 2.0, 4.0)
    assert between(1.0, 4.0) == (0.0, 2.0, 4.0)
    assert between(-4.0, 0.0) == (-4.0, -2.0, 0.0)
    assert edit_strengths(Direction("smile", vector), 7) == (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    for number in (1, 4):
        with pytest.raises(ValueError, match=f"`num_strengths` must be odd and >= 3, got {number}"):
            edit_strengths(Direction("smile", vector), number)


def test_both_sides_count_alike() -> None:
    strengths = (-2.0, -1.0, 0.0, 1.0, 2.0)
    moves = np.array([[-6.0, -2.0, 0.0, 1.0, 4.0]])
    np.testing.assert_allclose(fold(moves, strengths, signed=True), [[0.0, 1.5, 5.0]])
    identity = np.array([[0.6, 0.9, 1.0, 0.8, 0.7]])
    np.testing.assert_allclose(fold(identity, strengths, signed=False), [[1.0, 0.85, 0.65]])
    np.testing.assert_allclose(fold(moves[:, 2:], strengths[2:], signed=True), [[0.0, 1.0, 4.0]])
    np.testing.assert_allclose(fold(moves[:, :3], strengths[:3], signed=True), [[0.0, 2.0, 6.0]])


def test_move_at_a_level_lies_on_the_line_between_the_steps() -> None:
    move, identity = np.array([0.0, 2.0, 4.0]), np.array([1.0, 0.9, 0.5])
    assert move_at(0.95, move, identity) == pytest.approx(1.0)
    assert move_at(0.7, move, identity) == pytest.approx(3.0)
    assert move_at(0.5, move, identity) == pytest.approx(4.0)
    assert move_at(0.4, move, identity) is None and move_at(1.1, move, identity) is None
    # The first crossing counts where identity comes back.
    assert move_at(0.8, np.array([0.0, 1.0, 5.0, 9.0]), np.array([1.0, 0.6, 0.9, 0.5])) == pytest.approx(0.5)


def test_mean_move_is_the_area_under_the_curve() -> None:
    move, identity = np.array([0.0, 2.0, 4.0]), np.array([1.0, 0.9, 0.5])
    # Two trapezia: 0.1 wide with a mean of 1, and 0.4 wide with a mean of 3.
    assert mean_move(0.5, move, identity, points=5001) == pytest.approx((0.1 * 1 + 0.4 * 3) / 0.5, abs=1e-3)
    assert mean_move(0.4, move, identity) is None and mean_move(1.0, move, identity) is None


def edited(gain: float, cost: float, *, start: float = 0.9) -> dict[str, object]:
    """A record whose edit moves `gain` and costs `cost` a unit of strength."""
    strengths = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    return {
        "edits": {
            "smile": {
                "move": (gain * strengths).tolist(),
                "identity": (start - cost * abs(strengths)).tolist(),
                "identity_to_reconstruction": (1 - cost * abs(strengths)).tolist(),
            }
        }
    }


def test_methods_are_compared_at_a_level_that_all_reach() -> None:
    records = {
        "far": [edited(2.0, 0.1), edited(4.0, 0.1)],
        "near": [edited(1.0, 0.05, start=0.95)] * 3,
        "none": [],
    }
    found = summarise_edit(records, "smile", (-2.0, -1.0, 0.0, 1.0, 2.0))
    assert found["level"] == pytest.approx(0.9) and found["level_to_photo"] == pytest.approx(0.85)
    assert list(found["methods"]) == ["far", "near"]
    far, near = found["methods"].values()
    assert far["n"] == 2 and far["curve"]["move"] == pytest.approx([0, 3, 6])
    assert far["move_full"] == {"mean": pytest.approx(6), "standard_error": pytest.approx(2)}
    # At 0.9: strength 1 of the first, strength 2 of the second, which ends there.
    assert far["move_at_level"]["mean"] == pytest.approx(3) and near["move_at_level"]["mean"] == pytest.approx(2)
    assert far["move_at_level"]["standard_error"] == pytest.approx(1 / 2**0.5, rel=0.1)
    assert near["move_at_level"]["standard_error"] == pytest.approx(0, abs=1e-9)
    assert far["move_at_level_to_photo"]["mean"] == pytest.approx(1.5)
    assert near["mean_move"] == pytest.approx(1)

    given = summarise_edit(records, "smile", (-2.0, -1.0, 0.0, 1.0, 2.0), level=0.8)
    assert given["methods"]["far"]["move_at_level"]["mean"] == pytest.approx(6)
    assert given["methods"]["near"]["move_at_level"] is None and given["methods"]["near"]["mean_move"] is None


def test_one_image_has_no_error_and_no_images_no_level() -> None:
    found = summarise_edit({"a": [edited(1.0, 0.1)]}, "smile", (-2.0, -1.0, 0.0, 1.0, 2.0))
    assert found["methods"]["a"]["move_full"]["standard_error"] is None
    assert found["methods"]["a"]["move_at_level"]["standard_error"] is None
    empty = summarise_edit({"a": []}, "smile", (-2.0, 0.0, 2.0))
    assert empty["level"] is None and empty["methods"] == {}
