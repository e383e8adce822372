import numpy as np
import pytest
import torch

from stylegan_inversion import Direction
from stylegan_inversion.evaluation.editability import edit_strengths, fold, mean_move, move_at, summarise_edit

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((-3.0, 6.0), (-3.0, -2.0, -1.0, 0.0, 2.0, 4.0, 6.0)),
        ((1.0, 6.0), (0.0, 2.0, 4.0, 6.0)),
        ((-6.0, 0.0), (-6.0, -4.0, -2.0, 0.0)),
        (None, (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)),
    ],
)
def test_strengths_reach_both_ends_and_hold_zero(limits: tuple[float, float] | None, expected: object) -> None:
    assert edit_strengths(Direction("smile", torch.eye(3)[0], strength_range=limits)) == expected


def test_both_sides_count_alike() -> None:
    moves = np.array([[-6.0, -2.0, 0.0, 1.0, 4.0]])
    np.testing.assert_allclose(fold(moves, STRENGTHS, signed=True), [[0.0, 1.5, 5.0]])
    identity = np.array([[0.6, 0.9, 1.0, 0.8, 0.7]])
    np.testing.assert_allclose(fold(identity, STRENGTHS, signed=False), [[1.0, 0.85, 0.65]])
    np.testing.assert_allclose(fold(moves[:, 2:], STRENGTHS[2:], signed=True), [[0.0, 1.0, 4.0]])
    np.testing.assert_allclose(fold(moves[:, :3], STRENGTHS[:3], signed=True), [[0.0, 2.0, 6.0]])


def test_moves_at_a_level_lie_on_the_line_between_the_steps() -> None:
    move, identity = np.array([0.0, 2.0, 4.0]), np.array([1.0, 0.9, 0.5])
    found = [move_at(level, move, identity) for level in (0.95, 0.7, 0.5, 0.4, 1.1)]
    assert found == [pytest.approx(1.0), pytest.approx(3.0), pytest.approx(4.0), None, None]
    # The first crossing counts where identity comes back.
    assert move_at(0.8, np.array([0.0, 1.0, 5.0, 9.0]), np.array([1.0, 0.6, 0.9, 0.5])) == pytest.approx(0.5)
    # The area under the curve: two trapezia, 0.1 wide with a mean of 1, and 0.4 wide with a mean of 3.
    assert mean_move(0.5, move, identity, points=5001) == pytest.approx((0.1 * 1 + 0.4 * 3) / 0.5, abs=1e-3)
    assert mean_move(0.4, move, identity) is None and mean_move(1.0, move, identity) is None


def edited(gain: float, cost: float, *, start: float = 0.9) -> dict[str, object]:
    """A row whose edit moves `gain` and costs `cost` a unit of strength."""
    strengths = np.array(STRENGTHS)
    edit = {"move": gain * strengths, "identity": start - cost * abs(strengths)}
    edit["identity_to_reconstruction"] = 1 - cost * abs(strengths)
    return {"edits": {"smile": {key: values.tolist() for key, values in edit.items()}}}


def test_methods_are_compared_at_a_level_that_all_reach() -> None:
    rows = {"far": [edited(2.0, 0.1), edited(4.0, 0.1)], "near": [edited(1.0, 0.05, start=0.95)] * 3, "none": []}
    found = summarise_edit(rows, "smile", STRENGTHS)
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


def test_one_image_has_no_error_and_no_images_no_level() -> None:
    found = summarise_edit({"a": [edited(1.0, 0.1)]}, "smile", STRENGTHS)["methods"]["a"]
    assert found["move_full"]["standard_error"] is None and found["move_at_level"]["standard_error"] is None
    empty = summarise_edit({"a": []}, "smile", STRENGTHS)
    assert empty["level"] is None and empty["methods"] == {}
