"""A pipeline as ONNX files and a description in JSON, for a browser or another program without Python."""

import io
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from stylegan_inversion import __version__, storage
from stylegan_inversion.errors import importing
from stylegan_inversion.preprocessing.builtin_landmarks import MIRROR, BuiltinLandmarkDetector
from stylegan_inversion.preprocessing.sources import PhotoSource

if TYPE_CHECKING:
    from stylegan_inversion.pipelines.encoder import EncoderPipeline

MODEL_NAME = "model.json"
_SMALL = 64  # tensors of fewer numbers stay in float32


class _Synthesis(nn.Module):
    """The generator with its two inputs: edits in W move the first, edits in S the second."""

    def __init__(self, synthesis: nn.Module) -> None:
        super().__init__()
        self.synthesis = synthesis

    def forward(self, w_plus: Tensor, styles: Tensor) -> Tensor:
        return self.synthesis(w_plus, styles=styles)


class _Mirrored(nn.Module):
    """The landmarks of a crop and of its mirror image."""

    def __init__(self, landmarks: nn.Module) -> None:
        super().__init__()
        self.landmarks = landmarks

    def forward(self, x: Tensor) -> Tensor:
        return self.landmarks(torch.cat([x, x.flip(3)]))


def export_onnx(pipeline: "EncoderPipeline", folder: str | os.PathLike[str]) -> Path:
    """Write the networks as ONNX files and all else that an edit needs as JSON; the extra `export` does it.

    All take one picture, RGB, in [-1, 1]:

    - `detector.onnx`: (1, 3, 512, 512) -> `boxes` (1, A, 4) in its pixels, and the logits of their `scores` (1, A)
    - `landmarks.onnx`: (1, 3, 112, 112) -> `landmarks` (2, 68, 2), shares of the crop: its own and its mirror image's
    - `encoder.onnx`: (1, 3, S, S) -> `w_plus` (1, num_ws, w_dim)
    - `synthesis.onnx`: `w_plus`, and what is added to the `styles` (1, num_styles), zeros if no edit is in S -> `image`
      (1, 3, R, R), with the constant noise
    - `model.json`: sizes, the crop, and the directions with `step`, what strength 1 adds

    Weights that float16 holds exactly, such as faces64's, are stored in it and computed with in float32.

    Args:
        pipeline: Of faces, in float32, on the CPU.
        folder: Made if needed.

    Raises:
        ValueError: If the model takes no photos of faces, or is not in float32 on the CPU.
        MissingDependencyError: If the extra `export` is not installed.
        CheckpointError: If a file cannot be written.
    """
    if not pipeline.domain.has_faces or not isinstance(pipeline.source, PhotoSource):
        raise ValueError("This model takes no photos of faces, and only models that do can be exported.")
    if pipeline.dtype != torch.float32 or pipeline.device.type != "cpu":
        raise ValueError(
            f"A pipeline is exported in float32 from the CPU, got {pipeline.dtype} on {pipeline.device}: "
            "load it without `dtype` and `device`."
        )
    with importing("onnx", "export", otherwise="Nothing else needs it."):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  torch.onnx needs it
    folder, generator = Path(folder), pipeline.generator
    folder.mkdir(parents=True, exist_ok=True)
    faces, sizes = BuiltinLandmarkDetector(), generator.config
    detector, landmarks = faces.detector.config, faces.landmarks.config
    w_plus, styles = torch.zeros(1, sizes.num_ws, sizes.w_dim), torch.zeros(1, sum(sizes.style_sizes))
    x = {side: torch.zeros(1, 3, side, side) for side in (detector.resolution, landmarks.resolution, pipeline.side)}
    networks: dict[str, tuple[nn.Module, dict[str, Tensor], list[str]]] = {
        "detector": (faces.detector, {"x": x[detector.resolution]}, ["boxes", "scores"]),
        "landmarks": (_Mirrored(faces.landmarks), {"x": x[landmarks.resolution]}, ["landmarks"]),
        "encoder": (pipeline.encoder, {"x": x[pipeline.side]}, ["w_plus"]),
        "synthesis": (_Synthesis(generator.synthesis), {"w_plus": w_plus, "styles": styles}, ["image"]),
    }
    for name, (network, inputs, outputs) in networks.items():
        data = _to_onnx(network.eval(), inputs, outputs)
        storage.write_file(folder / f"{name}.onnx", lambda path, data=data: path.write_bytes(data))  # type: ignore[misc]
    description = {
        "version": __version__,
        "resolution": sizes.resolution,
        "num_ws": sizes.num_ws,
        "w_dim": sizes.w_dim,
        "num_styles": styles.shape[1],
        "crop_scale": pipeline.crop_scale,
        "encoder_side": pipeline.side,
        "detector": {
            "side": detector.resolution,
            "score_threshold": detector.score_threshold,
            "iou_threshold": detector.iou_threshold,
        },
        "landmarks": {"side": landmarks.resolution, "mirror": MIRROR.tolist()},
        "directions": [
            {
                "name": each.name,
                "description": each.description,
                "space": each.space,
                "layers": each.layers or (0, sizes.num_ws),
                "strength_range": each.strength_range,
                "photo_limit": each.photo_limit,
                "step": _digits(each.step.tolist()),
            }
            for each in pipeline.directions.values()
        ],
    }
    storage.write_text(json.dumps(description), folder / MODEL_NAME)
    return folder


def _digits(numbers: Any) -> Any:
    """Keep the nine digits that a float32 has."""
    return [_digits(each) for each in numbers] if isinstance(numbers, list) else float(f"{numbers:.9g}")


def _to_onnx(network: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> bytes:
    """Write a network for one picture."""
    import onnx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PyTorch's, about its own code
        # not optimized: the weights stay as they are, and the runtime folds what is constant when it loads them
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamo=True,
            optimize=False,
            verbose=False,
            external_data=False,
        )
    model = cast(Any, program).model_proto
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= _SMALL:
            exact = onnx.numpy_helper.to_array(tensor)
            half = exact.astype(np.float16)
            if np.array_equal(half.astype(np.float32), exact):
                name = tensor.name
                tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.float16"))
                casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    for node in nodes:
        del node.metadata_props[:]  # where in the code it was: a file in itself
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue()
