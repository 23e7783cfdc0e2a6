"""A real closed loop beside its replay: clients that ask again once answered.

One engine serves sessions of the harness: a prompt is read alone, then every
step gives each running session a token, one after the other. The same requests
are replayed on step times that rows of ``task=speed`` tell of this machine, and
the latencies of both are printed side by side.

    python scripts/validate_replay.py --requests 40
"""

import argparse
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrobench.cli import app
from retrobench.cli.overrides import composed
from retrobench.engine import loader
from retrobench.engine.prefill import prefill
from retrobench.engine.session import Session, built_session
from retrobench.evaluate.replay import surface_points
from retrobench.measure.clock import make_clock
from retrobench.run.plan import prepare
from retrobench.run.spec import RunSpec, parse_run
from retrobench.serving.costs import Memory
from retrobench.serving.requests import Request
from retrobench.serving.served import Outcome, Policy, Served
from retrobench.serving.simulate import Simulation
from retrobench.serving.summary import PERCENTILES, Objectives, summarise
from retrobench.serving.surface import Point, Surface
from retrobench.store.results import ResultStore

CONF = Path(__file__).resolve().parent.parent / "conf"
ANY = Objectives(ttft_s=float("inf"), tpot_s=float("inf"))
NAMES = ("ttft", "tpot", "itl", "e2el")
CLAIM = 0.15  # relative error of medians and 90th percentiles


def requests_of(count: int, seed: int) -> list[Request]:
    """Prompts of 200 to 1500 tokens, answers of 16 to 96."""
    rng = np.random.default_rng(seed)
    into, out = rng.integers(200, 1501, count), rng.integers(16, 97, count)
    return [Request(0.0, int(i), int(o)) for i, o in zip(into, out, strict=True)]


class ClosedLoop:
    """The real thing, by wall clock."""

    def __init__(self, spec: RunSpec, requests: list[Request], clients: int) -> None:
        self.spec, self.model = spec, loader.resident(spec.model).model
        self.clock: Callable[[], float] = make_clock(str(self.model.device))
        self.left, self.waiting = deque(requests), deque[Served]()
        self.running: list[tuple[Served, Session]] = []
        self.outcome = Outcome()
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
    def run(self) -> Outcome:
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

    def step(self) -> None:
        """A token for every running session."""
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


def measured(method: str, results: str, clients: int) -> tuple[RunSpec, Surface]:
    """Steps of one sequence from rows; a step of several is so many of them, one by one."""
    asked = ["task=speed", "task.shape=model", "task.context=[128,512,1024,1700]", "task.batch=[1]"]
    raw = composed([*asked, f"method={method}", f"results_dir={results}"], CONF)
    app.run_job(raw)
    spec = parse_run(raw)
    cell = prepare(spec).cell
    points = surface_points(ResultStore(results), cell.model, cell.method, cell.budget)
    several = [
        Point(context=p.context, batch=n, prefill_s=p.prefill_s, step_s=n * p.step_s)
        for p in points
        for n in range(1, clients + 1)
    ]
    return spec, Surface(several)


def main() -> int:
    """Exit code 1 if a median or a 90th percentile is off by more than the claim."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--method", default="full")
    parser.add_argument("--results", default="results/runs", help="folder of the measured steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    spec, surface = measured(options.method, options.results, options.clients)
    requests = requests_of(options.requests, options.seed)
    ClosedLoop(spec, requests[: options.clients], options.clients).run()  # warm-up
    real = summarise(ClosedLoop(spec, requests, options.clients).run(), ANY)
    roomy = Memory((float("inf"),), lambda prompt, total: (0.0,))
    policy = Policy(max_batch=options.clients, clients=options.clients)
    replayed = summarise(Simulation(surface, roomy, policy).run(requests), ANY)
    errors = show(real, replayed)
    worst = max(abs(errors[f"p{p}_{name}_ms"]) for p in (50, 90) for name in NAMES)
    print(f"largest error of medians and 90th percentiles: {worst:.0%} (claim: {CLAIM:.0%})")
    return 0 if worst <= CLAIM else 1


def show(real: dict[str, Any], replayed: dict[str, Any]) -> dict[str, float]:
    """Both side by side; relative errors."""
    names = [f"p{p}_{name}_ms" for name in NAMES for p in PERCENTILES]
    names += ["duration", "output_throughput"]
    errors = {name: replayed[name] / real[name] - 1 for name in names}
    print(f"{'':20}{'real':>12}{'replay':>12}{'error':>8}")
    for name, error in errors.items():
        print(f"{name:20}{real[name]:12.2f}{replayed[name]:12.2f}{error:+8.1%}")
    return errors


if __name__ == "__main__":
    with app.one_line_errors():
        sys.exit(main())
