"""Teach a mapping network the w of pictures: train a flow-matching model on them, then distil it.

Paper: Lipman et al. 2023, "Flow Matching for Generative Modeling", arXiv:2210.02747 (straight paths from noise to data,
section 4.1). Own code. The w of pictures are normal only along single axes: the normal distribution of
`normal_prior.fit_prior` mixes features that no face has together. The flow learns the joint distribution. Integrated,
it gives each z a w, and the mapping network is trained on such pairs.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from image_encoder import ImageEncoder
from jaxtyping import Float
from normal_prior import fit_prior
from torch import Tensor, nn

from stylegan_inversion.models.generator import Generator, MappingNetwork
from stylegan_inversion.models.layers import EqualLinear
from stylegan_inversion.training.optimizer import update_ema

Report = Callable[[str, int, float], None]
"""Called now and then with the stage, "flow" or "mapping", the steps done, and the mean loss since the last call."""

REPORTED = 250  # steps between two reports
FREQUENCIES = 16  # of time


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of the flow, and how long both stages take."""

    components: int = 192  # principal components of w that are drawn; the rest is left at the mean
    width: int = 512
    blocks: int = 4
    flow_steps: int = 5000
    flow_batch_size: int = 256
    flow_lr: float = 1e-3
    ode_steps: int = 8  # of Heun's method, from a z to its w
    pairs: int = 500_000  # of z and w that the mapping network learns from: 4 * (z_dim + components) bytes each
    mapping_steps: int = 12_000
    mapping_batch_size: int = 512
    mapping_lr: float = 6e-3
    bf16: bool = False  # networks in half precision: twice as fast where the processor has it

    def __post_init__(self) -> None:
        """Check the values."""
        counts = ("components", "width", "blocks", "flow_steps", "flow_batch_size", "ode_steps", "pairs")
        for name in (*counts, "mapping_steps", "mapping_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}.")
        for name in ("flow_lr", "mapping_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")

    def autocast(self) -> torch.autocast:
        """Where networks are called; weights change, so nothing is kept of them in half precision."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16, cache_enabled=False)


class Flow(nn.Module):
    """The velocity of a point on its way from noise, at time 0, to data, at time 1."""

    frequencies: Tensor

    def __init__(self, size: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 2, FREQUENCIES), persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, size)
        for layer in (self.last, *(cast(nn.Sequential, block)[-1] for block in self.blocks)):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "batch size"], time: Float[Tensor, " batch"]) -> Float[Tensor, "batch size"]:
        """Velocities at points and times."""
        angles = time[:, None] * self.frequencies
        moment = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x + moment)
        return self.last(x)

    @torch.no_grad()
    def follow(self, x: Float[Tensor, "batch size"], *, steps: int) -> Float[Tensor, "batch size"]:
        """Carry noise to data, by Heun's method."""
        for step in range(steps):
            now, then = (x.new_full((len(x),), (step + k) / steps) for k in range(2))
            velocity = self(x, now)
            x = x + (velocity + self(x + velocity / steps, then)) / (2 * steps)
        return x


def fit_flow_prior(
    generator: Generator,
    encoder: ImageEncoder,
    w: Float[Tensor, "count w_dim"],
    *,
    config: FlowConfig | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> None:
    """As `fit_prior`, and then teach the mapping network the distribution itself, in place.

    Args:
        generator: On the CPU. Its mapping network and average w are written, its style layers turned.
        encoder: Its w are turned.
        w: The encoder's w of pictures, thousands of them: with fewer the flow learns them by heart.
        config: Sizes. `None` means the defaults.
        seed: Of all random draws.
        report: See `Report`.

    Raises:
        ValueError: If there are fewer than 2 w, the mapping network has only one layer, or too few w or too small a z
            for `config.components`.
    """
    config = config or FlowConfig()
    most = min(generator.config.w_dim // 2, generator.config.z_dim, len(w) - 1)
    if config.components > most:
        raise ValueError(
            f"`components` must be at most {most}, for {len(w)} w and these sizes, got {config.components}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, where all is drawn
        turned = fit_prior(generator, encoder, w, components=config.components).float()[:, : config.components]
        mean, deviation = turned.mean(dim=0), turned.std(dim=0).clamp(min=1e-6)
        flow = train_flow((turned - mean) / deviation, config, weight=deviation / deviation.mean(), report=report)

        z = torch.randn(config.pairs, generator.config.z_dim)
        unit = z[:, : config.components] * z.square().mean(dim=1, keepdim=True).rsqrt()
        with config.autocast():
            drawn = torch.cat([flow.follow(x, steps=config.ode_steps) for x in unit.split(config.mapping_batch_size)])
        target = mean + deviation * drawn
        train_mapping(generator.mapping, z, target, config, report=report)
    generator.w_avg[: config.components] = target.mean(dim=0)


def train_flow(
    x: Float[Tensor, "count size"], config: FlowConfig, *, weight: Float[Tensor, " size"], report: Report | None = None
) -> Flow:
    """A flow from normal noise to the distribution of x, which should have unit variance; the average of its steps.

    Args:
        x: Points of the distribution.
        config: Sizes.
        weight: Of the squared error along each axis.
        report: See `Report`.
    """
    flow = Flow(x.shape[1], width=config.width, blocks=config.blocks)
    average = copy.deepcopy(flow).requires_grad_(False)

    def loss(step: int) -> Tensor:
        data = x[torch.randint(len(x), (config.flow_batch_size,))]
        noise, time = torch.randn_like(data), torch.rand(len(data))
        update_ema(average, flow, min(0.995, (step + 1) / (step + 10)))
        with config.autocast():
            velocity = flow(noise + time[:, None] * (data - noise), time)
        return ((velocity - (data - noise)).square() * weight).mean()

    _train(flow, loss, config.flow_steps, config.flow_lr, lambda step, mean: report and report("flow", step, mean))
    update_ema(average, flow, 0.995)
    return average


def train_mapping(
    mapping: MappingNetwork,
    z: Float[Tensor, "count z_dim"],
    w: Float[Tensor, "count components"],
    config: FlowConfig,
    *,
    report: Report | None = None,
) -> None:
    """Teach a mapping network, in place, the first components of the w of given z; the others stay what they are.

    Args:
        mapping: As `fit_prior` leaves it: of the other components it gives the mean.
        z: Codes.
        w: What it should make of them.
        config: Sizes.
        report: See `Report`.
    """
    rate = config.mapping_lr / cast(EqualLinear, mapping.layers[0]).bias_gain  # of weights that the gain makes small
    with torch.no_grad():
        rest = mapping(z[:1])[:, w.shape[1] :]

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(z), (config.mapping_batch_size,))
        with config.autocast():
            found = mapping(z[rows])
        return (found - torch.cat([w[rows], rest.expand(len(rows), -1)], dim=1)).square().mean()

    _train(mapping, loss, config.mapping_steps, rate, lambda step, mean: report and report("mapping", step, mean))


def _train(
    network: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float, report: Callable[[int, float], None]
) -> None:
    """Adam, with a short warm-up and then a cosine down to 0."""
    needed = [p.requires_grad for p in network.parameters()]
    network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    total, since = 0.0, 0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        total, since = total + value.item(), since + 1
        if since == REPORTED or step + 1 == steps:
            report(step + 1, total / since)
            total, since = 0.0, 0
    for parameter, wanted in zip(network.parameters(), needed):
        parameter.requires_grad_(wanted)
        parameter.grad = None
