import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_inversion.models.resnet import ResNet, ResNetConfig

TINY = ResNetConfig((2, 3, 4, 5), (2, 1, 2, 1))


def tiny() -> ResNet:
    """With statistics and scales that are not the initial ones, which would hide a swap."""
    rng = torch.Generator().manual_seed(0)
    network = ResNet(TINY).eval().double()
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            draw = torch.rand(tensor.shape, generator=rng, dtype=tensor.dtype)
            tensor.copy_(draw + 0.5 if key.endswith(("running_var", "weight")) and tensor.ndim == 1 else draw - 0.5)
    return network


def by_names(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """ResNet with bottlenecks as the paper has it, from the tensors' official names."""

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=padding)
        parts = (weights[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, var, scale, shift = (part[:, None, None] for part in parts)
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = F.max_pool2d(conv_bn(x, "conv1", "bn1", 2, 3).relu(), 3, 2, 1)
    for stage, units in enumerate(TINY.units, start=1):
        for unit in range(units):
            name, stride = f"layer{stage}.{unit}", 2 if stage > 1 and unit == 0 else 1
            h = conv_bn(x, f"{name}.conv1", f"{name}.bn1").relu()
            h = conv_bn(h, f"{name}.conv2", f"{name}.bn2", stride, 1).relu()
            h = conv_bn(h, f"{name}.conv3", f"{name}.bn3")
            if unit == 0:
                x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (h + x).relu()
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@torch.no_grad()
def test_features() -> None:
    network = tiny()
    x = torch.randn(2, 3, 33, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    features = network(x)
    assert features.shape == (2, 20)
    torch.testing.assert_close(features, by_names(dict(network.state_dict()), x))
