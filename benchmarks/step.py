"""One training step of the DiT: share of the matmul rate, and against the networks of diffusers and MONAI.

A step is forward and backward pass under bfloat16 autocast and AdamW, on the same number of grid cells for everyone.
The networks are of equal parameter count; since a U-Net of equal count does fewer operations a cell, and a DiT with
modulation weights in every block has fewer blocks, rows also say which share of the matmul rate each network reaches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from _common import Row, interleave, parser, print_rows, without_aims, write_rows
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sciLDM.nets import DiT

WIDTH, DEPTH, HEADS, CHANNELS = 256, 6, 4, 16
OURS = "sciLDM DiT"


@final
@dataclass(frozen=True)
class Workload:
    """`batch` latents of `side x side` cells, such as `kind` have."""

    kind: str
    batch: int
    side: int

    @property
    def name(self) -> str:
        """As in the rows."""
        return f"{self.kind}, {self.batch} x {self.side**2} tokens"

    @property
    def tokens(self) -> int:
        """Cells in the batch."""
        return self.batch * self.side**2


WORKLOADS = (Workload("molecules", 512, 3), Workload("fields", 32, 16))


@final
@dataclass(frozen=True)
class Candidate:
    """A network and how it is called with a latent and a noise level in [0, 1]."""

    network: nn.Module
    call: Callable[[Tensor, Tensor], Tensor]

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.network.parameters())

    def flops(self, side: int) -> int:
        """Floating-point operations of matrix products and convolutions in forward and backward pass, a sample."""
        x, level = torch.zeros(2, CHANNELS, side, side), torch.zeros(2)
        # The counter knows plain products, but not every fused attention.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.call(x, level).square().mean().backward()
        self.network.zero_grad(set_to_none=True)
        return counter.get_total_flops() // 2

    def step(self, workload: Workload) -> Callable[[], None]:
        """One optimiser step on a fixed batch of noise."""
        generator = torch.Generator().manual_seed(0)
        shape = (workload.batch, CHANNELS, workload.side, workload.side)
        x, level = torch.randn(shape, generator=generator), torch.rand(workload.batch, generator=generator)
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)

        def run() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = self.call(x, level)
            (output.float() - x).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return run


def ours(side: int) -> dict[str, Candidate]:
    """The DiT of this project at d = 256."""
    net = DiT(CHANNELS, (side, side), width=WIDTH, depth=DEPTH, heads=HEADS)
    return {OURS: Candidate(net, net)}


def diffusers_dit(side: int) -> dict[str, Candidate]:
    """diffusers' DiT: four blocks have as many parameters as our six, since each has modulation weights of its own."""
    from diffusers import DiTTransformer2DModel

    found = {}
    for depth, name in (
        (4, "diffusers DiT, 4 blocks (equal count)"),
        (6, "diffusers DiT, 6 blocks (equal depth)"),
    ):
        net = DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            in_channels=CHANNELS,
            num_layers=depth,
            sample_size=side,
            patch_size=1,
            num_embeds_ada_norm=1,
        )

        def call(x: Tensor, level: Tensor, net: nn.Module = net) -> Tensor:
            none = torch.zeros(len(x), dtype=torch.long)
            return net(x, timestep=(1000 * level).long(), class_labels=none).sample

        found[name] = Candidate(net, call)
    return found


def monai_unet(side: int) -> dict[str, Candidate]:
    """MONAI's diffusion U-Net: two levels, or one where the grid cannot be halved; attention at the last."""
    from monai.networks.nets import DiffusionModelUNet

    widths = (80, 144) if side % 2 == 0 else (152,)
    net = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_res_blocks=2,
        channels=widths,
        attention_levels=(*[False] * (len(widths) - 1), True),
        norm_num_groups=8,
        num_head_channels=widths[-1] // HEADS,
    )
    return {"MONAI U-Net (equal count)": Candidate(net, lambda x, level: net(x, 1000 * level))}


def matmuls(tokens: int) -> tuple[int, Callable[[], None]]:
    """Operations of, and a call for, the four products of a block at d = 256, in bfloat16."""
    bf16 = torch.bfloat16
    sizes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    pairs = [(torch.randn(tokens, n).to(bf16), torch.randn(m, n).to(bf16)) for n, m in sizes]

    def run() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return sum(2 * tokens * n * m for n, m in sizes), run


def measure(workload: Workload, *, repeats: int, clock: str, quick: bool) -> list[Row]:
    """Rows of one workload; peers that are not installed are left out."""
    torch.manual_seed(0)
    candidates = ours(workload.side)
    for peer in (diffusers_dit, monai_unet):
        try:
            candidates |= peer(workload.side)
        except ImportError as error:
            print(f"a peer is left out: {error}. Do `pip install -r benchmarks/requirements.txt`")
    work = Workload(workload.kind, 2, workload.side) if quick else workload
    flops = {name: candidate.flops(work.side) * work.batch for name, candidate in candidates.items()}
    product, run = matmuls(work.tokens)
    calls = {name: candidate.step(work) for name, candidate in candidates.items()}
    seconds = interleave({**calls, "": run}, repeats=repeats, warmup=1 if quick else 2, clock=clock)  # type: ignore[arg-type]
    rate = product / seconds[""]
    rows = [Row(f"{work.name}: bf16 matmul rate at d={WIDTH}", rate / 1e9, "GFLOP/s")]
    for name, candidate in candidates.items():
        share = flops[name] / seconds[name] / rate
        note = f"{candidate.parameters / 1e6:.2f} M parameters, {flops[name] / 1e9:.1f} GFLOP"
        rows.append(Row(f"{work.name}: {name}, step", 1e3 * seconds[name], "ms", note=note))
        own = name == OURS
        rows.append(Row(f"{work.name}: {name}, share of matmul rate", share, "1", 0.5 if own else None))
        if not own:
            aim = 2.0 if "equal count" in name else None
            rows.append(Row(f"{work.name}: {name}, time over ours", seconds[name] / seconds[OURS], "1", aim))
    return rows


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for workload in WORKLOADS:
        repeats = 1 if options.quick else options.repeats
        rows += measure(workload, repeats=repeats, clock=options.clock, quick=options.quick)
    rows = without_aims(rows) if options.quick else rows
    print_rows(rows)
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
