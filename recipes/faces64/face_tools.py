"""Step 1 of faces64: the face networks, from the models of two npm packages by Vladimir Mandic (MIT).

    python recipes/faces64/face_tools.py                    # fetches the packages with `npm pack`

Writes `config.json` and `model.safetensors` (float16) of four networks under
stylegan_inversion/builtin/faces64/face/, and the licences of the packages beside them. Networks that are there are
kept; `--force` makes them again.
"""

import argparse
import json
import logging
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stylegan_inversion.models.face import (
    ExpressionNet,
    FaceFeaturesConfig,
    FaceLandmarks68,
    FaceRecognitionConfig,
    FaceRecognitionNet,
)
from stylegan_inversion.models.face_detector import FaceDetector, FaceDetectorConfig
from stylegan_inversion.storage import WEIGHTS_NAME, builtin_path, fill_module, save_module

logger = logging.getLogger("face_tools")
FACE_API, HUMAN = "@vladmandic/face-api@1.7.15", "@vladmandic/human@3.3.6"
CACHE = Path(__file__).parent / ".cache"
BATCH_NORM_EPS = 0.0010000000474974513


def fetch_package(package: str) -> Path:
    """Fetch and unpack an npm package into the cache, once."""
    folder = CACHE / package.split("/")[1]
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        name = subprocess.run(["npm", "pack", package], cwd=CACHE, check=True, capture_output=True, text=True).stdout
        with tarfile.open(CACHE / name.strip().splitlines()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def read_weights(manifest: Path, weights_file: str) -> dict[str, Tensor]:
    """Read one model: a list of arrays, each as it is, in float16, or as integers with a scale and a minimum."""
    groups = json.loads(manifest.read_text())
    data = (manifest.parent / weights_file).read_bytes()
    offset, weights = 0, {}
    for entry in (groups["weightsManifest"] if isinstance(groups, dict) else groups)[0]["weights"]:
        quantization = entry.get("quantization") or {}
        dtype = np.dtype(quantization.get("dtype", entry["dtype"]))
        count = int(np.prod(entry["shape"]))
        array = np.frombuffer(data, dtype, count, offset).astype(np.float32)
        if "scale" in quantization:
            array = array * np.float32(quantization["scale"]) + np.float32(quantization["min"])
        weights[entry["name"]] = torch.from_numpy(array.reshape(entry["shape"]))
        offset += count * dtype.itemsize
    if offset != len(data):
        raise SystemExit(f"{manifest}: it describes {offset} bytes, the file has {len(data)}.")
    return weights


def conv(filters: Tensor) -> Tensor:
    """Go from (height, width, in, out) to (out, in, height, width)."""
    return filters.permute(3, 2, 0, 1)


def depthwise(filters: Tensor) -> Tensor:
    """Go from (height, width, channels, 1) to (channels, 1, height, width)."""
    return filters.permute(2, 3, 0, 1)


def plain(weights: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Rename a convolution, separable if it has a depthwise filter."""
    if f"{theirs}/filters" in weights:
        return {f"{ours}.weight": conv(weights[f"{theirs}/filters"]), f"{ours}.bias": weights[f"{theirs}/bias"]}
    return {
        f"{ours}.depthwise.weight": depthwise(weights[f"{theirs}/depthwise_filter"]),
        f"{ours}.pointwise.weight": conv(weights[f"{theirs}/pointwise_filter"]),
        f"{ours}.pointwise.bias": weights[f"{theirs}/bias"],
    }


def linear(weights: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Rename a linear layer."""
    return {f"{ours}.weight": weights[f"{theirs}/weights"].T, f"{ours}.bias": weights[f"{theirs}/bias"]}


def dense_features(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Landmarks or expression."""
    state_dict = linear(weights, "fc", "fc")
    for block in range(4):
        for layer in range(4):
            state_dict |= plain(weights, f"dense{block}/conv{layer}", f"features.blocks.{block}.conv{layer}")
    return state_dict


def recognition(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Identity, age and gender; the scale of a depthwise convolution's batch norm goes into its filter."""

    def with_shift(theirs: str, filters: Tensor, ours: str) -> dict[str, Tensor]:
        return {f"{ours}.weight": filters, f"{ours}.bias": weights[f"{theirs}_bn/batchnorm_1/sub"]}

    state_dict = with_shift("conv1", conv(weights["conv1/convolution/merged_input"]), "conv_in")
    for index in range(13):
        theirs, ours = f"conv_dw_{index + 1}", f"blocks.{index}"
        scale = weights[f"{theirs}_bn/batchnorm_1/mul"][:, None, None, None]
        state_dict |= with_shift(theirs, depthwise(weights[f"{theirs}/depthwise_kernel"]) * scale, f"{ours}.depthwise")
        theirs = f"conv_pw_{index + 1}"
        filters = conv(weights[f"{theirs}/convolution/merged_input"])
        state_dict |= with_shift(theirs, filters, f"{ours}.pointwise")
    for theirs, ours in (("feats", "fc"), ("age_pred", "age"), ("gender_pred", "gender")):
        state_dict |= {f"{ours}.weight": weights[f"{theirs}/kernel"].T, f"{ours}.bias": weights[f"{theirs}/bias"]}
    return state_dict


def detector(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """SSD; the batch norms go into the convolutions, and of the three class scores only "face" is kept."""

    def pointwise(theirs: str, ours: str) -> dict[str, Tensor]:
        return {
            f"{ours}.weight": conv(weights[f"{theirs}_pointwise/weights"]),
            f"{ours}.bias": weights[f"{theirs}_pointwise/convolution_bn_offset"],
        }

    state_dict = pointwise("MobilenetV1/Conv2d_0", "conv_in")
    for index in range(13):
        theirs, ours = f"MobilenetV1/Conv2d_{index + 1}", f"blocks.{index}"
        norm = {k: weights[f"{theirs}_depthwise/BatchNorm/{k}"] for k in ("gamma", "beta", "moving_mean")}
        scale = norm["gamma"] * (weights[f"{theirs}_depthwise/BatchNorm/moving_variance"] + BATCH_NORM_EPS).rsqrt()
        filters = depthwise(weights[f"{theirs}_depthwise/depthwise_weights"])
        state_dict[f"{ours}.depthwise.weight"] = filters * scale[:, None, None, None]
        state_dict[f"{ours}.depthwise.bias"] = norm["beta"] - norm["moving_mean"] * scale
        state_dict |= pointwise(theirs, f"{ours}.pointwise")
    for index in range(4):
        state_dict |= pointwise(f"Prediction/Conv2d_{2 * index}", f"extras.{index}.bottleneck")
        state_dict |= pointwise(f"Prediction/Conv2d_{2 * index + 1}", f"extras.{index}.conv")
    for index in range(6):
        theirs, ours = f"Prediction/BoxPredictor_{index}", f"heads.{index}"
        state_dict[f"{ours}.box.weight"] = conv(weights[f"{theirs}/BoxEncodingPredictor/weights"])
        state_dict[f"{ours}.box.bias"] = weights[f"{theirs}/BoxEncodingPredictor/biases"]
        state_dict[f"{ours}.score.weight"] = conv(weights[f"{theirs}/ClassPredictor/weights"])[1::3]
        state_dict[f"{ours}.score.bias"] = weights[f"{theirs}/ClassPredictor/biases"][1::3]
    return state_dict


# name of our folder: (package, name of their model, our network, how the weights are renamed)
NETWORKS: dict[str, tuple[str, str, Callable[[], nn.Module], Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "detector": (FACE_API, "ssd_mobilenetv1", lambda: FaceDetector(FaceDetectorConfig()), detector),
    "landmarks": (FACE_API, "face_landmark_68", lambda: FaceLandmarks68(FaceFeaturesConfig()), dense_features),
    "expression": (FACE_API, "face_expression", lambda: ExpressionNet(FaceFeaturesConfig()), dense_features),
    "recognition": (HUMAN, "faceres", lambda: FaceRecognitionNet(FaceRecognitionConfig()), recognition),
}
FILES = {
    FACE_API: ("model/{}_model-weights_manifest.json", "{}_model.bin"),
    HUMAN: ("models/{}.json", "{}.bin"),
}


def build(name: str) -> nn.Module:
    """Build one network with its package's weights, in float32."""
    package, theirs, make, rename = NETWORKS[name]
    manifest, weights = (file.format(theirs) for file in FILES[package])
    module = make()
    fill_module(module, rename(read_weights(fetch_package(package) / manifest, weights)), source=f"{package} {theirs}")
    return module


def main() -> None:
    """Convert all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=builtin_path("faces64/face"))
    parser.add_argument("--force", action="store_true", help="make networks again that are there")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    todo = [n for n in NETWORKS if arguments.force or not (arguments.output / n / WEIGHTS_NAME).is_file()]
    if not todo:
        logger.info("Nothing to do: %s holds all networks. --force makes them again.", arguments.output)
        return
    for name in todo:
        save_module(build(name), arguments.output / name, dtype=torch.float16)
        logger.info("%s: %d KB", name, (arguments.output / name / WEIGHTS_NAME).stat().st_size // 1000)
    texts = [(fetch_package(package) / "LICENSE").read_text().strip() for package in FILES]
    (arguments.output / "LICENSE").write_text(
        "\n\n".join(f"{package}\n\n{text}" for package, text in zip(FILES, texts)) + "\n"
    )


if __name__ == "__main__":
    main()
