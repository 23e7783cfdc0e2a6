"""Counting over a captured graph: a captured step counts when it is replayed, never before."""

from __future__ import annotations

from retrobench.measure.probe import CountingProbe


def test_a_captured_step_counts_once_per_replay():
    probe = CountingProbe()
    probe.count(0, attended=3, kv=10)  # the warm-up step runs
    probe.capture()
    probe.count(0, attended=5, kv=20)  # recorded: nothing ran
    assert probe.by_layer("kv") == {0: 10}
    probe.replayed()
    probe.replayed()
    assert probe.by_layer("kv") == {0: 50} and not probe.missing((0,), 3)
    probe.count(0, attended=1, kv=1)  # eager again
    assert probe.by_layer("kv") == {0: 51}
