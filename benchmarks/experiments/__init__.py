"""The experiments of benchmarks/sweeps.py: each says its runs, its numbers and its figures."""

from benchmarks.experiments import ablations, lengths, snr, temperatures

# A module with `runs(plan)`, `results(plan, metrics)` and `draw(plan, results, folder)` each.
EXPERIMENTS = {
    "temperatures": temperatures,
    "snr": snr,
    "lengths": lengths,
    "ablations": ablations,
}
