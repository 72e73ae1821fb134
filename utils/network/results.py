"""What a run of task_network.py ends with: its metrics, its figures, and a summary."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import plain
from utils.files import write_whole
from utils.network import plots
from utils.network.page import latency, points
from utils.training.log import peak_rss_mb


def finish(config: Any, found: dict) -> dict:
    """Write the metrics, draw the figures, print the summary; returns the metrics."""
    path = Path(config.out) / f"{config.name}.json"
    metrics = {"task": "network", "preset": config.preset, "config": plain(config), **found}
    metrics |= {"seconds_after_training": sum(found["seconds"].values())}
    metrics |= {"peak_rss_mb": peak_rss_mb(), "figures": []}
    metrics = json.loads(json.dumps(metrics, default=np.ndarray.tolist), parse_constant=str)
    write_whole(path, json.dumps(metrics, indent=1) + "\n")
    if config.figures != "none":
        metrics["figures"] = plots.draw(metrics, f"{config.figures}/{config.name}")
        write_whole(path, json.dumps(metrics, indent=1) + "\n")
    print_summary(metrics)
    print("look at:", path, *metrics["figures"], sep="\n  ")
    return metrics


def print_summary(metrics: dict) -> None:
    """Gaps to the bound, methods, and what answering says of them."""
    for link, of in metrics["vs_lower_bound"].items():
        for row in (of, of["many"]):
            mean, worst = (100 * row[k] for k in ("mean_gap", "worst_gap"))
            print(f"{link}, {row['instances']} drops of {row['users']} users: {mean:.2f} % above "
                  f"the lower bound on average, {worst:.2f} % at most")  # fmt: skip
    print(f"1,000 users: at most {metrics['seconds_1000_users']['slowest']:.1f} s")
    for link, of in metrics["vs_baselines"].items():
        print(f"{link + ', medians':22} latency (ms)  tokens a user    loss   what can be changed")
        for name, row in of["spent"].items():
            line = f"{name:22}{1000 * row['latency_s']['p50']:13.0f}"
            line += f"{row['tokens_per_user']['p50']:15.1f}{row['loss']['p50']:8.3f}"
            if name in of["ratios"]:
                ratio = of["ratios"][name]
                low, high = ratio["ci95"]
                line += f"   joint has {ratio['median_ratio']:.2f} of it ({low:.2f} to {high:.2f})"
            print(line)
    measured = metrics["measured"]
    for link, of in measured["agreement"].items():
        slope, r2 = of["slope"], of["r2"]
        print(f"{link}: measured against predicted loss, slope {slope:.2f}, R^2 {r2:.2f}")
    for link, of in measured["by_deadline"].items():
        for name, row in of["accuracy_at_equal_latency"].items():
            print(f"{link}: joint against {name}: {points(row)} points at equal latency, "
                  f"{latency(of['latency_at_equal_accuracy'][name])} of the latency at equal "
                  "accuracy")  # fmt: skip
    print(f"after training: {metrics['seconds_after_training'] / 60:.0f} minutes")
