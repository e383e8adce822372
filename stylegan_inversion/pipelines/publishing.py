"""A folder on this disk -> a repository on the Hub: complete, readable, and checked before anything is sent."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from stylegan_inversion import hub
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder
from stylegan_inversion.pipelines.card import CARD_NAME, write_card
from stylegan_inversion.remote.transfer import upload_folder

_PARTS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "generator": (Generator, GeneratorConfig),
    "e4e_encoder": (Encoder4Editing, PyramidEncoderConfig),
    "psp_encoder": (GradualStyleEncoder, PyramidEncoderConfig),
    "restyle_encoder": (ReStyleEncoder, ReStyleConfig),
}


def check_folder(folder: Path) -> None:
    """Load every part of a pipeline's folder, each variant of it, as a user of it would.

    Raises:
        CheckpointError: If a part is missing, damaged or does not fit.
    """
    hub.read_config(folder)
    for name, (cls, config_cls) in _PARTS.items():
        part = folder / name
        if name != "generator" and not part.is_dir():
            continue
        variants = [file.name.split(".")[1] for file in sorted(part.glob("model.*.safetensors"))]
        for variant in [None, *variants] if (part / hub.WEIGHTS_NAME).is_file() or not variants else variants:
            hub.load_module(cls, config_cls, part, variant=variant)
    if (folder / "directions").is_dir():
        load_directions(folder / "directions")


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    overwrite_card: bool = False,
) -> str:
    """Check a pipeline's folder, give it a card if it has none, and upload it to the Hub in one commit.

    The folder stays as it is. The card is written for `repo_id`; one that somebody wrote or changed is taken as it is.

    Args:
        folder: As `save_pretrained` or a training wrote it.
        repo_id: "organisation/repository"; made if it is not there.
        private: Of a new repository. `None` means the organisation's default.
        token: Access token with the right to write. `None` takes the one that is logged in.
        revision: Branch, made if needed. `None` means the default branch.
        commit_message: Of the commit.
        license: Of the weights, for a new card.
        overwrite_card: Write the card anew, and replace one that is in the repository.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If `repo_id` is not of that form.
        CheckpointError: If a part is missing, damaged or does not fit; then nothing is sent.
        UploadError: If the Hub refuses, or cannot be reached.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder, so there is nothing to upload.")
    check_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.resolve().name
        shutil.copytree(folder, copy, copy_function=_link, ignore=lambda _, names: [n for n in names if n[0] == "."])
        if overwrite_card:
            (copy / CARD_NAME).unlink(missing_ok=True)
        if not (copy / CARD_NAME).exists():
            write_card(copy, name=repo_id, license=license)
        else:
            _rename_in_card(copy / CARD_NAME, folder, repo_id)
        return upload_folder(
            copy,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            overwrite_card=overwrite_card,
        )


def _rename_in_card(card: Path, folder: Path, repo_id: str) -> None:
    """Where the card says how to load the folder, say how to load the repository."""
    text = card.read_text("utf-8", errors="replace")

    def rename(match: re.Match[str]) -> str:
        path = json.loads(match[1])
        return f"from_pretrained({json.dumps(repo_id)})" if Path(path).resolve() == folder.resolve() else match[0]

    renamed = re.sub(r'from_pretrained\(("[^"\n]*")\)', rename, text)
    if renamed != text:
        card.unlink()  # a link to the folder's own
        hub.write_text(renamed, card)


def _link(source: str, target: str) -> str:
    """Links need no room."""
    try:
        Path(target).symlink_to(Path(source).resolve())
        return target
    except OSError:  # Windows, without the right to
        return shutil.copyfile(source, target)
