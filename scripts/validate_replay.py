"""A real closed loop beside its replay: clients that ask again once answered.

One engine serves sessions of the harness: a prompt is read alone, then every
step gives each running session a token, one after the other. The same requests
are replayed on step times that rows of task=speed tell of this machine, and
the latencies of both are printed side by side. Steps are measured before,
between and after the loops, because machines drift.

    OMP_WAIT_POLICY=passive python scripts/validate_replay.py

Exit code 0: every median and 90th percentile is within the claim; 1: one is
not; 2: two real loops are further apart than the claim, so the machine cannot
tell.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrobench.cli import app
from retrobench.cli.overrides import composed
from retrobench.core.paths import check_output
from retrobench.engine import loader
from retrobench.engine.prefill import prefill
from retrobench.engine.session import Session, built_session
from retrobench.evaluate.replay import surface_points
from retrobench.measure.clock import make_clock
from retrobench.measure.machine import provenance
from retrobench.run.plan import prepare
from retrobench.run.spec import RunSpec, parse_run
from retrobench.serving.costs import Memory
from retrobench.serving.requests import Request
from retrobench.serving.served import Policy, Served, SimulatedRun
from retrobench.serving.simulate import Simulation
from retrobench.serving.summary import PERCENTILES, Objectives, summarise
from retrobench.serving.surface import Point, Surface
from retrobench.store.results import ResultStore

ANY = Objectives(ttft_s=float("inf"), tpot_s=float("inf"))
NAMES = ("ttft", "tpot", "itl", "e2el")
CLAIMED = [f"p{percent}_{name}_ms" for name in NAMES for percent in (50, 90)]
CLAIM = 0.15  # relative error of medians and 90th percentiles
INPUT, OUTPUT = (100, 701), (16, 49)  # tokens, as numpy's ranges
CONTEXTS = [96, 384, 768]  # measured; every request lies between them


def requests_of(count: int, seed: int) -> list[Request]:
    """Prompts and answers of uniform lengths."""
    rng = np.random.default_rng(seed)
    into, out = rng.integers(*INPUT, count), rng.integers(*OUTPUT, count)
    return [Request(0.0, int(i), int(o)) for i, o in zip(into, out, strict=True)]


class ClosedLoop:
    """The real thing, by wall clock."""

    def __init__(self, spec: RunSpec, requests: list[Request], clients: int) -> None:
        self.spec, self.model = spec, loader.resident(spec.model).model
        self.clock: Callable[[], float] = make_clock(str(self.model.device))
        self.left, self.waiting = deque(requests), deque[Served]()
        self.running: list[tuple[Served, Session]] = []
        self.outcome = SimulatedRun()
        self.begun = self.clock()
        for _ in range(clients):
            self.submit()

    def now(self) -> float:
        """Seconds since the first request."""
        return self.clock() - self.begun

    def submit(self) -> None:
        """A client asks, if anything is left to ask."""
        if self.left:
            served = Served(self.left.popleft(), self.now())
            self.outcome.served.append(served)
            self.waiting.append(served)

    @torch.inference_mode()
    def run(self) -> SimulatedRun:
        """Serve all."""
        while self.waiting or self.running:
            if self.waiting:
                self.read(self.waiting.popleft())
            else:
                self.step()
        self.outcome.duration_s = self.now()
        return self.outcome

    def read(self, served: Served) -> None:
        """Prefill, index build, first token."""
        spec, asked = self.spec, served.request
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = torch.randint(0, vocabulary, (1, asked.input_tokens)).tolist()
        prompt = prefill(
            self.model, ids, clock=self.clock, needs=spec.method_class.needs,
            chunk_tokens=spec.engine.chunk_tokens, room=asked.output_tokens,
        )  # fmt: skip
        session = built_session(
            self.model, spec.method_class, spec.method_config, prompt,
            max_new_tokens=asked.output_tokens, clock=self.clock, budget=spec.budget,
        )  # fmt: skip
        served.first_s = served.last_s = self.now()
        served.made = 1
        self.running.append((served, session))
        self.outcome.peak_batch = max(self.outcome.peak_batch, len(self.running))

    def step(self) -> None:
        """A token for every running session."""
        self.outcome.steps += 1
        for _, session in self.running:
            session.step(session.logits.argmax(-1, keepdim=True))
        now, going = self.now(), []
        for served, session in self.running:
            self.outcome.gaps.append((now - served.last_s, 1))
            served.last_s, served.made = now, served.made + 1
            if served.made == served.request.output_tokens:
                served.end_s = now
                session.close()
                self.submit()
            else:
                going.append((served, session))
        self.running = going


def measured(raw: dict[str, Any]) -> tuple[Point, ...]:
    """Steps of one sequence, from rows that are measured now."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {**raw, "results_dir": folder}
        if app.run_job(asked)["failed"]:
            raise ValueError("the steps could not be measured (see above)")
        cell = prepare(parse_run(asked)).cell
        return surface_points(ResultStore(folder), cell.model, cell.method, cell.budget)


def surface(passes: Sequence[tuple[Point, ...]], clients: int) -> Surface:
    """The mean of all passes. A step of several sequences is so many of them, one by one."""
    prefills, steps = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    for point in (point for points in passes for point in points):
        prefills[point.context].append(point.prefill_s)
        steps[point.context].append(point.step_s)
    return Surface([
        Point(
            context=context, batch=batch, prefill_s=statistics.mean(prefills[context]),
            step_s=batch * statistics.mean(steps[context]),
        )
        for context in prefills
        for batch in range(1, clients + 1)
    ])  # fmt: skip


def together(outcomes: Sequence[SimulatedRun]) -> SimulatedRun:
    """All requests of several loops."""
    return SimulatedRun(
        served=[served for outcome in outcomes for served in outcome.served],
        gaps=[gap for outcome in outcomes for gap in outcome.gaps],
        duration_s=sum(outcome.duration_s for outcome in outcomes),
        steps=sum(outcome.steps for outcome in outcomes),
        peak_batch=max(outcome.peak_batch for outcome in outcomes),
    )


def largest(errors: dict[str, float]) -> float:
    """Of what is claimed."""
    return max(abs(errors[name]) for name in CLAIMED)


def apart(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Relative differences."""
    names = [f"p{p}_{name}_ms" for name in NAMES for p in PERCENTILES]
    return {n: one[n] / other[n] - 1 for n in [*names, "output_throughput", "steps", "peak_batch"]}


def show(real: dict[str, Any], replayed: dict[str, Any], loops: list[dict[str, Any]]) -> None:
    """Both side by side, and how far the real loops are from each other."""
    errors, noise = apart(replayed, real), apart(loops[-1], loops[0])
    print(f"{'':20}{'real':>12}{'replay':>12}{'error':>8}{'real again':>12}")
    for name, error in errors.items():
        line = f"{name:20}{real[name]:12.2f}{replayed[name]:12.2f}{error:+8.1%}"
        print(f"{line}{noise[name]:+12.1%}")


def main() -> int:
    """See above for the exit codes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=20, help="of a loop")
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--method", default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    if min(options.clients, options.requests) < 1 or options.loops < 2:
        parser.error("--clients and --requests must be 1 or more, --loops 2 or more")
    if options.out:
        check_output("--out", options.out)
    load = os.getloadavg()
    asked = ["task=speed", "task.shape=model", f"task.context={CONTEXTS}", "task.batch=[1]"]
    raw = composed([*asked, f"method={options.method}", "progress=false"])
    spec, requests = parse_run(raw), requests_of(options.requests, options.seed)
    ClosedLoop(spec, requests[: options.clients], options.clients).run()  # warm-up
    print("warmed up; measuring steps", flush=True)
    passes, loops = [measured(raw)], []
    for number in range(1, options.loops + 1):
        loops.append(ClosedLoop(spec, requests, options.clients).run())
        print(f"loop {number}: {loops[-1].duration_s:.0f} s; measuring steps", flush=True)
        passes.append(measured(raw))
    roomy = Memory((float("inf"),), lambda prompt, total: (0.0,))
    policy = Policy(max_batch=options.clients, clients=options.clients)
    steps = surface(passes, options.clients)
    replays = [Simulation(steps, roomy, policy).run(requests) for _ in loops]
    real, replayed = summarise(together(loops), ANY), summarise(together(replays), ANY)
    apiece = [summarise(loop, ANY) for loop in loops]
    show(real, replayed, apiece)
    worst, noise = largest(apart(replayed, real)), largest(apart(apiece[-1], apiece[0]))
    print(f"largest error of medians and 90th percentiles: {worst:.0%} (claim: {CLAIM:.0%})")
    print(f"the same between two real loops: {noise:.0%}")
    if options.out:
        found = {"command": " ".join(sys.argv), "load_average_before": load}
        found |= {"provenance": provenance(), "real": real, "replay": replayed}
        found |= {"error": apart(replayed, real), "real_again": apart(apiece[-1], apiece[0])}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if worst <= CLAIM else 2 if noise > CLAIM else 1


if __name__ == "__main__":
    with app.one_line_errors():
        sys.exit(main())
