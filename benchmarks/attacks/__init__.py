"""What attackers win back of a level's gap, with everything they may send and see: `python -m benchmarks.attacks`."""
