"""What can be asked of a cell besides its score: fidelity, speed, traces, matching."""
