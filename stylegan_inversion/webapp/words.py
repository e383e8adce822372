"""The words of the page, and the line that says how far the work is."""

import html
from typing import Any

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.webapp.sessions import Progress

TITLE = """# StyleGAN inversion
Bring a face into StyleGAN2's latent space, edit it there, and put it back. **Every result is an AI-edited image.**"""
HOW_TO = """### How it works
1. **Photo.** Upload one, take one or pick an example. If there are several faces, click the one you want.
2. **Invert.** *e4e* and *pSp* answer at once; *PTI* tunes a copy of the generator until it draws this very face.
3. **Edit.** Move the sliders; the face goes back into the photo. Then download what you like."""
FOOTNOTE = """Use photos of people who agreed to it, and say that a result is AI-edited when you share it: every picture
says so in its metadata. Do not deceive, harass or identify anyone with it. Photos and results are kept in memory or in
a private folder, and deleted after 30 minutes without use or at once with the button. The code is under the MIT
licence; models and photos have licences of their own."""
STAGES = {
    "start": "Starting",
    "waiting": "Waiting for a free place",
    "projection": "Finding the pivot",
    "tuning": "Tuning the generator",
    "done": "Done",
}
WHY = {"callback": "stopped, best state kept", "threshold": "good enough", "nan": "diverged, best state kept"}


def pretty(name: str) -> str:
    """A direction's name as a label."""
    words = name.replace("_", " ").capitalize()
    return words.replace("Ganspace", "GANSpace").replace("Sefa", "SeFa")


def status_html(report: Progress) -> str:
    """How far an inversion is, as HTML."""
    words = [STAGES[report.stage]]
    if report.output is not None:
        words += summary(report.output)
    elif report.stage == "waiting":
        words += [f"{report.step} before you"]
    elif report.loss is not None:
        left = report.seconds / max(report.step, 1) * (report.total - report.step)
        words += [f"step {report.step} of {report.total}", f"loss {report.loss:.4f}", f"{left:.0f} s left at most"]
    share = 0.0 if report.stage == "waiting" else report.step / max(report.total, 1)
    percent = 100 if report.output is not None else 100 * share
    return note_html(" · ".join(words), f'<div class="bar"><div style="width: {percent:.1f}%"></div></div>')


def note_html(text: str, bar: str = "") -> str:
    """A line of text, under a bar if there is one."""
    return f'<div class="status" role="status">{bar}<span>{html.escape(text)}</span></div>'


def summary(out: InversionOutput) -> list[str]:
    """What an inversion reports, in words."""
    report = out.reports[0]
    words = []
    if "w_steps" in report:
        words += [f"{report['w_steps']} + {report['tuning_steps']} steps in {report['seconds']:.0f} s"]
        words += [WHY[report["stopped_by"]]] if report.get("stopped_by") in WHY else []
    elif "seconds" in report:
        words += [f"{report['seconds']:.2f} s"]
    if "l2" in report:
        words += [f"mean squared error {report['l2']:.4f}"]
    return words


def table(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown; the keys of the first row are its head."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)
