"""Training the runs of a comparison, one after the other, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from zoo.comparison.plan import LOG, Run
from zoo.errors import ZooError
from zoo.progress import duration

_ZOO = [sys.executable, "-c", "from zoo.cli import main; raise SystemExit(main())"]
_LONGEST = 300  # letters of a reason, which stands in a table


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run. problem: why it failed, "" if it did not; seconds: of its process, 0 if there was none."""

    run: Run
    problem: str = ""
    seconds: float = 0.0


def train(runs: Sequence[Run], say: Callable[[str], None]) -> list[Outcome]:
    """Train all runs that are not finished. One that fails is noted, and the next one begins.

    Args:
        runs: in the order in which they are trained.
        say: told one line when a run begins and when it ends, with an estimate of the time left.

    Raises:
        KeyboardInterrupt: also for SIGTERM; the run under way has saved a checkpoint, from which it goes on.
        ZooError: a run's folder can't be written.
    """
    outcomes = [Outcome(run) for run in runs if run.finished]
    if outcomes:
        say(f"{len(outcomes)} of {len(runs)} runs were finished before")
    waiting = [run for run in runs if not run.finished]
    with _ended_politely():
        for number, run in enumerate(waiting):
            say(f"{_place(run, number, waiting)}: {'goes on' if run.checkpoint else 'begins'}")
            outcomes.append(_trained(run))
            left = _time_left(waiting[number + 1 :], outcomes)
            say(f"{_place(run, number, waiting)}: {_told(outcomes[-1])}{left}")
    return sorted(outcomes, key=lambda outcome: runs.index(outcome.run))


def _trained(run: Run) -> Outcome:
    log = run.folder / LOG
    begin = time.perf_counter()
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            # a session of its own: Ctrl-C reaches it as SIGTERM, upon which it saves before it ends
            process = subprocess.Popen(
                [*_ZOO, *run.command()], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
    except OSError as error:
        raise ZooError(f"recipe '{run.recipe}', seed {run.seed}: {run.folder} can't be used: {error}") from error
    seconds = time.perf_counter() - begin
    if code == 0 and run.finished:
        return Outcome(run, seconds=seconds)
    if code == 0:
        return Outcome(run, "it measured nothing: the data section has no test tasks", seconds)
    return Outcome(run, _reason(log, start, code), seconds)


def _reason(log: Path, start: int, code: int) -> str:
    """The error line of what a process wrote since `start`, or its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    told = errors or [line for line in lines if line]
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    reason = told[-1] if told and code > 0 else ended
    return reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"


# ---- what is said ----------------------------------------------------------------------------------------------------


def _place(run: Run, number: int, waiting: Sequence[Run]) -> str:
    return f"{number + 1}/{len(waiting)} {run.recipe} seed {run.seed}"


def _told(outcome: Outcome) -> str:
    if outcome.problem:
        return f"failed after {duration(outcome.seconds)}: {outcome.problem} ({outcome.run.folder / LOG})"
    return f"done in {duration(outcome.seconds)}"


def _time_left(waiting: Sequence[Run], outcomes: Sequence[Outcome]) -> str:
    """By the mean time of the recipe's own runs, or of all where it has none yet; failed ones tell nothing."""
    done = [outcome for outcome in outcomes if outcome.seconds and not outcome.problem]
    if not waiting or not done:
        return ""
    by_recipe: dict[str, list[float]] = {}
    for outcome in done:
        by_recipe.setdefault(outcome.run.recipe, []).append(outcome.seconds)
    overall = mean(outcome.seconds for outcome in done)
    seconds = sum(mean(by_recipe.get(run.recipe, [overall])) for run in waiting)
    return f"; about {duration(seconds)} left"


@contextmanager
def _ended_politely() -> Iterator[None]:
    """SIGTERM counts as Ctrl-C, so that the run under way is told to save and end as well."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
