"""The experiments of benchmarks/sweeps.py by name, and the claims that they decide (claims.py).

Each is a module with `runs(plan)`, what it needs; `results(plan, metrics)`, its numbers for
results.json; `draw(plan, metrics, results, folder)`, its figures; `page(results)`, its section; and
`appendix(results)` where there are numbers that decide nothing by themselves.
"""

from benchmarks.experiments import ablations, lengths, snr, temperatures

EXPERIMENTS = {
    "temperatures": temperatures,
    "snr": snr,
    "lengths": lengths,
    "ablations": ablations,
}
