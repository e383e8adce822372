"""A picture says what made it, and is made again from that and the photo, to the last bit."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from stylegan_inversion import E4EPipeline, InversionOutput, PTIPipeline, Receipt, read_receipt, redraw, save_picture
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.pipelines.base_name import BaseName
from stylegan_inversion.pipelines.play import mix_outputs
from stylegan_inversion.pipelines.receipts import mark
from stylegan_inversion.preprocessing.align import align_face, crop_again
from stylegan_inversion.preprocessing.image import load_image
from tests.conftest import landmarks_at
from tests.fake_hub import COMMIT, FakeHub
from tests.pipelines.conftest import small_pipeline

CALLS: dict[str, dict[str, Any]] = {
    "pti": {"num_w_steps": 2, "num_tuning_steps": 2, "seed": 5, "face": 1},
    "e4e": {},
    "psp": {"align": False},
    "restyle": {},
}


def made(pipeline: Any, photo: Image.Image, name: str = "pti", **edits: float) -> InversionOutput:
    return pipeline.edit(pipeline(photo, **CALLS[name]), **(edits or {"age": -1.0, "smile": 2.0}))


def test_passes_that_are_named(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    pipeline = small_pipeline("restyle", pti.generator, detector=pti.detector)
    save_picture(out := pipeline(photo, num_iterations=2), tmp_path / "x.png")
    assert read_receipt(tmp_path / "x.png").call["num_iterations"] == 2
    assert redraw(tmp_path / "x.png", photo, model=pipeline).same
    assert not out.w_plus.equal(pipeline(photo).w_plus)  # the number matters


@pytest.mark.parametrize(
    ("name", "picture", "suffix", "detail"),
    [
        ("pti", "photo", "png", "move"),
        ("e4e", "face", "jpg", "move"),
        ("psp", "drawn", "webp", "move"),
        ("restyle", "photo", "jpg", "none"),
    ],
)
def test_a_picture_is_made_again(
    name: str, picture: Any, suffix: str, detail: Any, pti: PTIPipeline, photo: Image.Image, tmp_path: Path
) -> None:
    pipeline = pti if name == "pti" else small_pipeline(name, pti.generator, detector=pti.detector)
    photo.save(tmp_path / "secret name.png")
    file = tmp_path / f"x.{suffix}"
    save_picture(made(pipeline, tmp_path / "secret name.png", name), file, picture=picture, detail=detail)  # type: ignore[arg-type]
    done = redraw(file, tmp_path / "secret name.png", model=pipeline)
    assert done.same and done.words == "It is the same picture, pixel for pixel."
    if suffix != "jpg":
        assert load_image(file).tobytes() == done.image.tobytes()
    receipt = read_receipt(file)
    assert b"compositeWithTrainedAlgorithmicMedia" in file.read_bytes()
    assert b"secret" not in file.read_bytes() and str(tmp_path) not in receipt.to_json()
    assert receipt.edits == {"age": -1.0, "smile": 2.0} and receipt.method == name
    (tmp_path / "x.json").write_text(receipt.to_json())
    again = redraw(tmp_path / "x.json", photo, model=pipeline)
    assert again.same and again.words == "It is the picture of the receipt."
    other = dataclasses.replace(receipt, pixels="0" * 64)
    assert redraw(other.to_json().encode(), photo, model=pipeline).words.startswith("Its pixels have not the receipt's")


def test_a_crop_of_a_large_face_is_cut_out_again() -> None:
    """Where the official crop first shrinks the photo, its quad is not the one that was asked for."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((4003, 3001))
    crop = align_face(photo, [landmarks_at(2000.3, 1400.7, 420.0).landmarks], size=256)
    assert crop.quad is not None and crop.asked is not None and abs(crop.quad - crop.asked).max() > 0.1
    again = crop_again(photo, np.array(json.loads(json.dumps(crop.asked.tolist()))), 256)
    assert again.image.tobytes() == crop.image.tobytes() and (again.quad == crop.quad).all()


def test_the_built_in_model_is_found_by_its_name(photo: Image.Image, tmp_path: Path) -> None:
    pipe = E4EPipeline.from_pretrained("faces64")
    out = pipe(photo.resize((200, 200)), align=False)
    save_picture(pipe.edit(out, smile=2.0), tmp_path / "x.png")
    assert read_receipt(tmp_path / "x.png").model == BaseName("faces64")
    assert redraw(tmp_path / "x.png", photo.resize((200, 200))).same
    with Image.open(tmp_path / "x.png") as image:
        changed, kept = image.convert("RGB"), PngImagePlugin.PngInfo()
        kept.add_itxt("XML:com.adobe.xmp", image.info["xmp"].decode())
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(tmp_path / "y.png", pnginfo=kept)
    done = redraw(tmp_path / "y.png", photo.resize((200, 200)), model=pipe)
    assert not done.same and "1 of 40000 pixels differ, by " in done.words and " threads on a cpu; " in done.words
    changed.resize((100, 100)).save(tmp_path / "z.png", pnginfo=kept)
    words = redraw(tmp_path / "z.png", photo.resize((200, 200)), model=pipe).words
    assert words.endswith("since it was drawn: its picture has 100 x 100 pixels, the redrawn one 200 x 200 pixels.")


def test_a_saved_inversion_keeps_its_receipt(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    pipe = PTIPipeline.from_pretrained(pti.save_pretrained(tmp_path / "model"), detector=pti.detector)
    out = InversionOutput.load(made(pipe, photo).save(tmp_path / "out"))
    save_picture(out, tmp_path / "x.png")
    assert read_receipt(tmp_path / "x.png").model is None  # a folder, which nobody else has
    assert redraw(tmp_path / "x.png", photo, model=pipe).same
    assert redraw(tmp_path / "x.png", photo, model=tmp_path / "model").same
    with pytest.raises(ModelNotFoundError, match="The receipt does not name its model"):
        redraw(tmp_path / "x.png", photo)
    rounded = InversionOutput.load(made(pipe, photo).save(tmp_path / "out", rank=1))
    assert Receipt.of(rounded, "photo", rounded.images[0]).method is None
    odd = dataclasses.replace(out, crops=[dataclasses.replace(out.crops[0], asked=None)])  # as of an older version
    assert Receipt.of(odd, "photo", out.images[0]).method is None
    hostile = ["PTIPipeline", {"image": "/etc/passwd"}, {}]
    odd = dataclasses.replace(out, reports=[{**out.reports[0], "made": hostile}], edits={"a b": 1.0})
    receipt = Receipt.of(odd, "photo", out.images[0])
    assert (receipt.method, receipt.call, receipt.edits) == (None, {}, {})


def test_what_no_call_makes_again_says_so(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    steps: dict[str, Any] = {"num_w_steps": 1, "num_tuning_steps": 1}
    several = pti([photo, photo.rotate(1)], together=True, **steps)
    first = pti(photo, num_w_steps=1, num_tuning_steps=0)
    stopped = pti(photo, **steps, callback=lambda step, info: True)
    for out in (several[0], pti(photo, pivot=first, num_tuning_steps=1), stopped, mix_outputs(first, several[1])):
        save_picture(out, tmp_path / "x.png")
        with pytest.raises(ValueError, match="The receipt says that no single call makes this picture again"):
            redraw(tmp_path / "x.png", photo, model=pti)


@pytest.fixture
def receipt(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> Receipt:
    save_picture(made(pti, photo), tmp_path / "x.png")
    return read_receipt(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name_or_path": "/etc", "revision": None, "subfolder": None}}, "its model is nothing"),
        ({"model": {"name_or_path": r"\\host\share", "revision": "0" * 40, "subfolder": None}}, "its model is nothing"),
        ({"model": {"name_or_path": "a/b", "revision": "main", "subfolder": None}}, "its model is nothing"),
        ({"model": {"name_or_path": "a/b", "revision": "0" * 40, "subfolder": 1}}, "its model is nothing"),
        ({"call": {"image": "/etc/passwd"}}, "its call is nothing"),
        ({"call": {"seed": [1]}}, "its call is nothing"),
        ({"call": {"num_w_steps": "5"}}, "its call is nothing"),
        ({"call": {"face": 1}}, "its call is nothing"),
        ({"method": "e4e", "call": {"pivot": "w"}}, "its call is nothing"),
        ({"settings": {"pti": {"perceptual": ["x"]}}}, "its settings is nothing"),
        ({"settings": {"pti": []}}, "damaged, or of another version"),
        ({"device": "meta"}, "its device is nothing"),
        ({"edits": {"smile": float("nan")}}, "its edits is nothing"),
        ({"edits": {"smile": 10**400}}, "damaged, or of another version"),
        ({"quad": [[0, 0]] * 3}, "`quad` must be 4 corners"),
        ({"picture": "x" * 20_000}, "it is larger than 20000 bytes"),
        ({"picture": "x"}, "its picture is nothing that this package writes"),
        ({"detail": []}, "its detail is nothing"),
        ({"photo": "x"}, "its pixels, photo and generator is nothing"),
        ({"version": "\n"}, "its version, torch and dtype is nothing"),
        ({"threads": "x"}, "its threads is nothing"),
        ({"method": "x"}, "damaged, or of another version: 'x'"),
        ({"method": []}, "damaged, or of another version"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
    ],
)
def test_a_strangers_receipt(changes: dict[str, Any], message: str, receipt: Receipt) -> None:
    text = json.dumps({**json.loads(receipt.to_json()), **changes})
    with pytest.raises(ValueError, match="The receipt is damaged, or of another version"):
        Receipt.from_json(text)
    with pytest.raises(ValueError, match=message):
        read_receipt(text.encode())


def test_refusals(receipt: Receipt, pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    file, other = tmp_path / "x.png", made(pti, photo)
    with pytest.raises(ValueError, match="This is another photo than the receipt's"):
        redraw(file, photo.rotate(180), model=pti)
    tuned = dataclasses.replace(pti.tuning, learning_rate=0.5)
    different = PTIPipeline(**{**pti.components, "tuning": tuned})
    with pytest.raises(ValueError, match="The receipt is of other settings than the pipeline's"):
        redraw(file, photo, model=different)
    encoder = small_pipeline("e4e", pti.generator)
    with pytest.raises(ValueError, match="The receipt is of pti, and the pipeline is a E4EPipeline"):
        redraw(file, photo, model=encoder)
    long, directions = dataclasses.replace(receipt, edits={"hat": 1.0}, call={"num_w_steps": 10**9}), pti.directions
    with pytest.raises(ValueError, match=r"ask for 1000000000 steps, more than 1000.*`max_steps=1000000000`"):
        redraw(long.to_json().encode(), photo, model=pti)
    with pytest.raises(ValueError, match="There is no direction 'hat'"):  # before the work
        redraw(long.to_json().encode(), photo, model=pti, max_steps=10**9)
    assert pti.directions is directions
    slow = PTIPipeline(**{**pti.components, "tuning": dataclasses.replace(pti.tuning, num_steps=5000)})
    silent = dataclasses.replace(Receipt.of(made(slow, photo), "photo", other.images[0], detail="move"), call={})
    with pytest.raises(ValueError, match=r"ask for 5000 steps, more than 1000\."):  # the model's own number
        redraw(silent.to_json().encode(), photo, model=slow)
    different.generator.w_avg += 1
    with pytest.raises(CheckpointError, match="The receipt is of another model"):
        redraw(file, photo, model=different)
    photo.save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="The picture has no receipt"):
        redraw(tmp_path / "plain.png", photo, model=pti)
    with pytest.raises(ValueError, match="is no file: give a picture, or its receipt as JSON"):
        redraw(tmp_path, photo, model=pti)
    with pytest.raises(ValueError, match="is no file: give a picture"):
        redraw(receipt.to_json(), photo, model=pti)  # of text, the bytes are taken
    with pytest.raises(ValueError, match=r"`path` must end in \.png, \.jpg or \.webp, got 'x\.gif'"):
        save_picture(other, tmp_path / "x.gif")
    with pytest.raises(ValueError, match="`picture` must be one of photo, face, drawn, got 'crop'"):
        save_picture(other, tmp_path / "x.png", picture="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`out` must be one photo, got 2: take one of them, such as `out\[0\]`"):
        save_picture(pti([photo, photo], align=False, num_w_steps=1, num_tuning_steps=0), tmp_path / "x.png")
    packet = (mark("edited") or b"").replace(b"</rdf:Desc", b"<inversion:receipt>{&lt;</inversion:receipt></rdf:Desc")
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", xmp=packet)
    with pytest.raises(ValueError, match="The receipt is damaged"):
        read_receipt(buffer.getvalue())


def test_a_strangers_model_is_not_fetched_unasked(
    receipt: Receipt, pti: PTIPipeline, photo: Image.Image, tmp_path: Path, fake_hub: FakeHub
) -> None:
    fake_hub.add("stranger/model", pti.save_pretrained(tmp_path / "model"))
    text = dataclasses.replace(receipt, model=BaseName("stranger/model", COMMIT)).to_json().encode()
    with pytest.raises(ModelNotFoundError, match="If you trust who made the picture, let it be fetched"):
        redraw(text, photo)
    assert not fake_hub.log
    assert redraw(text, photo, allow_download=True).same and fake_hub.log
