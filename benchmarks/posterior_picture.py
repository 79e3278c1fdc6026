"""Draws what `posterior.py` kept: truth, TV, our mean, a sample, its error and predicted deviation, a row a task."""

import argparse
from pathlib import Path

import torch

TASKS = ("thick", "views", "hole", "slices", "k-space")
TITLES = {
    "thick": "slices of 4 voxels",
    "views": "6 projections",
    "hole": "middle missing",
    "slices": "1 slice of 4",
    "k-space": "a fifth of k-space",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/posterior"), help="the benchmark's work folder"
    )
    parser.add_argument("--volume", type=int, default=1, help="0 or 1")
    parser.add_argument("--output", type=Path, default=Path("docs/images/posterior.png"))
    options = parser.parse_args()
    import matplotlib.pyplot as plt

    found = {task: sorted((options.work / "scores").glob(f"{task}-*.pt")) for task in TASKS}
    rows = [task for task in TASKS if any("-ours-" in p.name for p in found[task])]
    figure, axes = plt.subplots(len(rows), 6, figsize=(9.6, 1.7 * len(rows)), squeeze=False)
    for task, line in zip(rows, axes, strict=True):
        kept = {p.name.split("-")[-3]: torch.load(p) for p in found[task]}
        ours, tv = kept["ours"], kept["TV"]
        truth, mean = ours["truth"], ours["mean"]
        panels = {
            "truth": truth,
            "TV": tv["mean"],
            "ours, mean": mean,
            "a sample": ours["sample"],
            "error of the mean": (mean - truth).abs(),
            "predicted deviation": ours["std"],
        }
        for k, (axis, (title, volume)) in enumerate(zip(line, panels.items(), strict=True)):
            section = volume[options.volume, 0, :, volume.shape[3] // 2 - 2]
            limits = (
                {"vmin": -1, "vmax": 1, "cmap": "gray"}
                if k < 4
                else {"vmin": 0, "vmax": 0.5, "cmap": "magma"}
            )
            axis.imshow(section.numpy(), interpolation="nearest", **limits)
            axis.set_xticks([])
            axis.set_yticks([])
            if task == rows[0]:
                axis.set_title(title, fontsize=9)
        line[0].set_ylabel(TITLES[task], fontsize=9)
    figure.tight_layout(pad=0.3)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
