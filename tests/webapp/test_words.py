import dataclasses

import torch
from PIL import Image

from stylegan_inversion import InversionOutput
from stylegan_inversion.webapp.sessions import Progress
from stylegan_inversion.webapp.words import note_html, pretty, status_html, summary, table


def output(**report: object) -> InversionOutput:
    image = Image.new("RGB", (8, 8))
    return InversionOutput([image], [image], torch.zeros(1, 2, 4), [], [], reports=[report])


def test_names_of_directions_are_labels() -> None:
    assert (
        pretty("smile") == "Smile"
        and pretty("ganspace_1") == "GANSpace 1"
        and pretty("sefa_2") == "SeFa 2"
        and pretty("face_yaw") == "Face yaw"
    )


def test_a_line_says_how_far_the_work_is() -> None:
    report = Progress("token", "tuning", 30, 120, loss=0.12345, seconds=6.0)
    words = status_html(report)
    assert ">Tuning the generator · step 30 of 120 · loss 0.1235 · 18 s left at most<" in words
    assert "width: 25.0%" in words and 'role="status"' in words and "token" not in words
    assert ">Starting<" in status_html(Progress("token", "start", 0, 0))  # no steps, no division by zero
    waiting = status_html(Progress("", "waiting", 2, 700))
    assert ">Waiting for a free place · 2 before you<" in waiting and "width: 0.0%" in waiting
    assert "Finding the pivot" in status_html(dataclasses.replace(report, stage="projection"))


def test_a_line_says_what_came_out() -> None:
    done = Progress("token", "done", 7, 20, output=output(seconds=12.3, w_steps=4, tuning_steps=3, l2=0.01234))
    assert ">Done · 4 + 3 steps in 12 s · mean squared error 0.0123<" in status_html(done)
    assert "width: 100.0%" in status_html(done)
    assert summary(output(w_steps=1, tuning_steps=2, seconds=3.0, stopped_by="callback")) == [
        "1 + 2 steps in 3 s",
        "stopped, best state kept",
    ]
    assert summary(output(w_steps=1, tuning_steps=2, seconds=3.0, stopped_by="steps")) == ["1 + 2 steps in 3 s"]
    assert "good enough" in summary(output(w_steps=1, tuning_steps=2, seconds=3.0, stopped_by="threshold"))
    assert summary(output(seconds=0.0312, l2=0.5)) == ["0.03 s", "mean squared error 0.5000"]
    assert summary(output(seed=1, truncation=0.7)) == []


def test_nothing_in_a_line_is_html() -> None:
    assert "<script>" not in note_html("<script>alert(1)</script>") and "&lt;script&gt;" in note_html("<script>")


def test_tables() -> None:
    rows = [{"Method": "e4e", "Seconds": 0.1}, {"Method": "PTI"}]
    assert table(rows).splitlines() == ["| Method | Seconds |", "|---|---|", "| e4e | 0.1 |", "| PTI |  |"]
    assert table([]) == ""
