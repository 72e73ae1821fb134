"""The numbers of docs/network.md, as task_network.py left them.

python -m utils.network.page            the tables, to be put under `What came out`
"""

import json
from pathlib import Path

PATH = Path("checkpoint/network-mini.json")


def decisive(metrics: dict) -> list[str]:
    """Whether the joint allocation answers better than an equal split in equal time, and whether it
    takes less time to answer as well, by paired intervals; what does not hold comes first."""
    found = []
    for link, of in metrics["measured"]["by_deadline"].items():
        gain = of["accuracy_at_equal_latency"]["equal split"]
        holds = gain["ci95"] is not None and gain["mean"] > gain["ci95"]
        line = (
            f"- **{link}**: in equal time the joint allocation answers {points(gain)} points more "
        )
        line += "than the equal split"
        found.append((holds, line + ("." if holds else ", which does not show that it is better.")))
        ratio = of["latency_at_equal_accuracy"]["equal split"]
        holds = ratio["high"] is not None and ratio["high"] < 1
        line = f"- **{link}**: for equal accuracy the joint allocation takes {latency(ratio)} of "
        line += "the time that the equal split takes"
        found.append((holds, line + ("." if holds else ", which does not show that it is faster.")))
    return [line for _, line in sorted(found, key=lambda each: each[0])]


def points(gain: dict) -> str:
    """A difference of accuracies with its interval; a single seed has none."""
    width = gain["ci95"]
    return f"{100 * gain['mean']:+.1f}" + ("" if width is None else f" ± {100 * width:.1f}")


def latency(found: dict) -> str:
    """A ratio of latencies with its interval: `none` where it is without end, `at most` where the
    shortest deadline is enough already."""
    told = []
    for value in (found["ratio"], found["low"], found["high"]):
        least = value is not None and value <= found["least"] * (1 + 1e-9)
        told.append("none" if value is None else ("at most " if least else "") + f"{value:.2f}")
    return "{} ({} to {})".format(*told)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    return ["", row(*cells), "|" + "---|" * len(cells)]


def tables(metrics: dict) -> list[str]:
    """Everything of it that the page shows."""
    minutes = metrics["seconds_after_training"] / 60
    return [
        f"The study took {minutes:.0f} minutes after training.",
        *bounds(metrics),
        *predictions(metrics),
        *deadlines(metrics),
        *methods(metrics),
        *variables(metrics),
        *messages(metrics),
    ]


def bounds(metrics: dict) -> list[str]:
    """How near the joint allocation is to what no allocation can be below."""
    lines = head("against the lower bound", "mean gap", "worst gap")
    for link, of in metrics["vs_lower_bound"].items():
        for each in (of, of["many"]):
            gaps = (f"{100 * each[k]:.2f} %" for k in ("mean_gap", "worst_gap"))
            lines.append(row(f"{link}, {each['instances']} drops of {each['users']} users", *gaps))
    seconds = metrics["seconds_1000_users"]["slowest"]
    return [*lines, "", f"1,000 users take {seconds:.1f} s at most."]


def predictions(metrics: dict) -> list[str]:
    """Whether predicted losses came true."""
    lines = head("measured against predicted loss", "slope", "R²", "mean difference (nats)")
    for link, of in metrics["measured"]["agreement"].items():
        told = f"{link}, {len(of['points']) - of['silent']} allocations"
        lines.append(row(told, f"{of['slope']:.2f}", f"{of['r2']:.2f}", f"{of['offset']:+.3f}"))
    return lines


def deadlines(metrics: dict) -> list[str]:
    """By how many points the joint allocation is above the equal split within each deadline."""
    measured = metrics["measured"]["by_deadline"]
    times = [f"{1000 * s:g} ms" for s in next(iter(measured.values()))["deadlines_s"]]
    lines = head("joint's points more than the equal split within", *times)
    for link, of in measured.items():
        lines.append(row(link, *map(points, of["by_deadline"]["equal split"])))
    return lines


def methods(metrics: dict) -> list[str]:
    """Each link's methods: what they spend, and the joint allocation beside them."""
    lines = []
    for link, of in metrics["vs_baselines"].items():
        answers = metrics["measured"]["by_deadline"][link]
        lines += head(
            link,
            "median latency (ms)",
            "median loss (nats)",
            "share of users not heard",
            "joint's share of what can be changed",
            "joint's points more in equal time",
            "joint's share of the latency for equal accuracy",
        )
        for name, spent in of["spent"].items():
            cells = [f"{1000 * spent['latency_s']['p50']:.0f}", f"{spent['loss']['p50']:.3f}",
                     f"{100 * spent['outage_probability']:.1f} %", "", "", ""]  # fmt: skip
            if name in of["ratios"]:
                cells[3] = share(of["ratios"][name]["median_ratio"], *of["ratios"][name]["ci95"])
                cells[4] = points(answers["accuracy_at_equal_latency"][name])
                cells[5] = latency(answers["latency_at_equal_accuracy"][name])
            lines.append(row(name, *cells))
    return lines


def share(found: float, low: float, high: float) -> str:
    """A ratio with its interval."""
    return f"{found:.2f} ({low:.2f} to {high:.2f})"


def variables(metrics: dict) -> list[str]:
    """What each variable brings."""
    lines = head("optimised", "link", "power", "share of that with none optimised")
    for link, of in metrics["variables"].items():
        for regime, rows in of.items():
            for name, found in rows.items():
                lines.append(row(name, link, regime, share(found["median_ratio"], *found["ci95"])))
    return lines


def messages(metrics: dict) -> list[str]:
    """Analog and digital messages in as many channel uses."""
    found = metrics["measured"]["over_messages"]
    some = range(0, len(found["snr_db"]), 3)
    snr = [f"{found['snr_db'][i]:g} dB" for i in some]
    lines = head(f"accuracy in {found['channel_uses']:,} channel uses a clip", *snr)
    for name, curve in found["curves"].items():
        lines.append(row(name, *(f"{100 * curve[i]:.1f} %" for i in some)))
    return lines


if __name__ == "__main__":
    found = json.loads(PATH.read_text())
    print("\n".join([*decisive(found), "", *tables(found)]))
