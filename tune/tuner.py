"""Run the trials of a job: start, follow, stop, retry, and go on where an earlier tuner was killed.

Files in the folder ``tune`` of a run:

``job.json``          the job, and the folder in which programs start
``journal.log``       Optuna's journal: which values were asked for, and what became of them; ``optuna-dashboard`` opens it; it is
                      missing if a database keeps the study
``trials.rank0.<n>.jsonl``   one record for each ended trial, with the fields of ``loopwise.tune.Trial``, ``goals``: objective ->
                      ``maximize`` or ``minimize``, and ``best``: no earlier one was better
``parents.rank0.<n>.jsonl``  one record for each trial of a warm start's parents that had ended at the job's first start, in
                      the same form; ``compared``: the best trial may be one of them
``trials/<number>/<attempt>``   one folder for each attempt; beside the files of its supervisor ``slots.json``, the CPUs and GPUs that
                      it uses, or ``place.json``, the node on which it runs; ``judged``, the number of reports that were judged
``tuner.lock``        locked while a tuner works in the folder
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loopwise.run import Run
from loopwise.warnings import warn

from .engine.engine import engine_of
from .folder import JobFolder
from .invocation import invocation
from .job.job import Job
from .process.attempt import Attempt
from .search.completion import reason_to_end
from .search.stopping import rule_of
from .search.storage import close_storage, open_storage, storage_errors, validate_holds
from .search.study import Study
from .search.warm_start import comparable, inherit, inherited
from .trials import Trial, explain, front_of, record_of, recorded

POLL = 0.1
"""Seconds between two looks at the running trials."""
RECORDED = 20_000
"""Most reports of a trial that its record holds, and that later trials are compared with after a resumption."""
LOST = 3
"""Number of attempts of a trial whose supervisor was killed before it is given up."""


@dataclass(slots=True)
class _Running:
    trial: Trial
    attempt: Attempt
    before: float
    """Seconds of the earlier attempts."""
    stopping: bool = False
    reports: int = 0
    """Number of reports that were judged."""


class Tuner:
    """Tuner of one job in one folder.

    Args:
        job: the job.
        folder: the run folder; the trials' folders are in its ``tune/trials``.  Programs start in the present working
            folder, also those of a resumed job.
        resume: go on with the job that the folder holds.
        show: function that is called with the tuner a few times a second.

    Attributes:
        trials: number -> trial.
        inherited: trials of the parents of a warm start.

    Raises:
        InputError: the folder holds another job, or the program cannot be executed.
        StateError: the folder holds a run and ``resume`` is false, or another tuner works in it.
    """

    def __init__(
        self, job: Job, folder: str, resume: bool = False, show: Callable[[Tuner], None] | None = None
    ) -> None:
        self.job, self.folder, self._show = job, Path(folder), show
        with contextlib.ExitStack() as undo:
            self._files = JobFolder(self.folder, resume)
            undo.callback(self._files.close)
            self._engine = engine_of(job, self._files.name, self._files.trials, self._files.cwd)
            undo.callback(self._engine.close)
            self._storage = open_storage(job.storage, self._files.path / "journal.log")
            undo.callback(close_storage, self._storage)
            self.inherited = inherit(job, folder) if self._files.is_new else inherited(folder)
            self._run = Run(folder, resume=resume)
            if self._files.is_new:
                self._record_inherited()
            self._files.store(job)
            name = "job" if job.storage is None else self._files.name
            self.study = Study(job, self._storage, name, self.inherited)
            undo.pop_all()
        self.trials: dict[int, Trial] = {}
        self._running: dict[int, _Running] = {}
        self._waiting: list[Trial] = []
        self._rule = rule_of(job)
        self._finished: list[float] = []
        self.began = time.monotonic()

    def _attempt(self, number: int, attempt: int) -> Attempt:
        return self._engine.attempt(self._files.attempt(number, attempt), list(self.job.metrics))

    # -- the job --------------------------------------------------------------------------------

    def run(self) -> Trial | None:
        """Run the job to its end and return the best trial; ``None``: no trial finished.

        After Ctrl-C the running trials are ended, and the folder can be resumed.

        Raises:
            StateError: the database of the study or the Ray cluster was lost; the folder can be resumed.
        """
        state = "failed"
        try:
            with storage_errors(self.job.storage), self._engine.errors():
                self._recall()
                while not self._step():
                    time.sleep(POLL)
            if unused := self._rule.unused():
                warn(unused)
            state = "finished"
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            self.close(state)
        return self.best()

    def close(self, state: str = "failed") -> None:
        """Close the run, with how it ended, and let another tuner work in the folder; trials that run go on."""
        self._run.close(state)
        close_storage(self._storage)
        self._engine.close()
        self._files.close()

    def best(self) -> Trial | None:
        """Return the finished trial with the best objective, the first one of ``front``; ``None``: no trial finished."""
        return next(iter(self.front()), None)

    def front(self) -> list[Trial]:
        """Return the finished trials of which no other one is better: one, or with several objectives the Pareto front.

        The trials of the parents of an identical warm start are among them.
        """
        return front_of(comparable(self.job, self.trials.values(), self.inherited), self.job.goals)

    def _step(self) -> bool:
        """Start, follow and end trials; return whether the job is over."""
        self._engine.look()
        for number in list(self._running):
            self._follow(self._running[number])
        over = self._over()
        if over:
            for entry in self._running.values():
                self._stop(entry, over)
            self._give_up_waiting()
        while not over and len(self._running) < self.job.limits.parallel and self._is_due():
            if not self._engine.reserve():
                break
            self._start(self._waiting.pop(0) if self._waiting else self._asked())
        if self._show is not None:
            self._show(self)
        return not self._running

    def _is_due(self) -> bool:
        """Return whether a trial is to be started or repeated."""
        return bool(self._waiting) or len(self.trials) < self.study.limit

    def _asked(self) -> Trial:
        return Trial(*self.study.ask())

    def _give_up_waiting(self) -> None:
        """Record trials that failed and are not repeated any more; those that were interrupted wait for a resumption."""
        for trial in self._waiting:
            if trial.reason:
                trial.state = "failed"
                self._record(trial)
            else:
                self.trials.pop(trial.number, None)
        self._waiting.clear()

    def _over(self) -> str:
        """Return why no further trial is to be started; empty: the job goes on."""
        seconds = self.job.limits.seconds
        if seconds is not None and time.monotonic() - self.began > seconds:
            return "the time of the job is up"
        return reason_to_end(self.job, self._finished)

    # -- one trial ------------------------------------------------------------------------------

    def _start(self, trial: Trial) -> None:
        """Start the next attempt of a trial."""
        attempt = self._attempt(trial.number, trial.attempts)
        trial.reason = ""
        self._begin(trial, attempt)  # first, so that an interruption finds what was started
        self._engine.start(attempt, invocation(self.job, trial, attempt.folder, self._files.cwd))

    def _begin(self, trial: Trial, attempt: Attempt) -> None:
        before = (self._attempt(trial.number, number).seconds(False) for number in range(trial.attempts))
        self._running[trial.number] = _Running(trial, attempt, sum(before), reports=attempt.judged())
        self.trials[trial.number] = trial
        trial.attempts += 1

    def _stop(self, entry: _Running, reason: str) -> None:
        if not entry.stopping:
            entry.stopping, entry.trial.reason = True, reason
            entry.attempt.mark(reason)
        entry.attempt.stop()

    def _follow(self, entry: _Running) -> None:
        """Read what a trial has printed, stop it if it is worse than the others, and end it if its program has ended."""
        alive = entry.attempt.alive()  # asked before reading, so that nothing is printed after the last look
        more = entry.attempt.follow()
        curve = entry.attempt.reader.curves[self.job.goals[0].metric]
        trial, known = entry.trial, entry.reports
        trial.seconds = entry.before + entry.attempt.seconds(alive)
        trial.reports, trial.objective = curve.reports, curve.value()
        if not alive and not more:  # a long log is read in turn with those of the other trials
            self._end(entry)
        elif entry.stopping:
            entry.attempt.stop()  # a supervisor that has just started did not listen yet
        elif reason := self._rule.verdict(trial, known):
            self._stop(entry, reason)
        elif len(trial.reports) > known and self._rule.judges:
            entry.reports = len(trial.reports)
            entry.attempt.mark_judged(entry.reports)

    def _end(self, entry: _Running) -> None:
        """Decide what became of an attempt, and record it or start the next one."""
        entry.attempt.end_left()
        self._engine.release(entry.attempt)
        trial, ending = entry.trial, entry.attempt.ending()
        curves, goal = entry.attempt.drain(), self.job.goals[0].metric
        trial.reports = curves[goal].reports
        used = self._rule.verdict(trial, len(trial.reports)) if self._rule.uses_all(trial) else ""
        if used:  # what it printed further, until it was ended, depends on the time that this took
            assert self.job.hyperband is not None
            curves = curves | {goal: curves[goal].until(self.job.hyperband.max_resource)}
        trial.reports, trial.objective = curves[goal].reports, curves[goal].value()
        trial.metrics = {
            name: value for name, other in curves.items() if (value := other.value()) is not None
        }
        del self._running[trial.number]
        if ending is not None and ending["reason"] == "ended" and ending["code"] == 0:
            entry.stopping, trial.reason = False, ""  # it was at its end before it could be stopped
        failure = explain(self.job, entry.attempt, ending, curves, entry.stopping)
        if failure and not entry.stopping and self._may_repeat(trial, ending is None):
            trial.reason = failure
            self._waiting.append(trial)
            return
        late = ending is not None and ending["reason"] == "time"
        if late and not trial.reason:
            limit = self.job.limits.trial_seconds  # a resumed job may have another one, or none
            trial.reason = f"more than {limit:g} seconds" if limit else "more than the seconds of a trial"
        early = entry.stopping and not used
        if used and not failure:
            trial.reason = used
        trial.state = "failed" if failure else "stopped" if early else "finished"
        trial.reason = "; ".join(
            filter(None, (trial.reason, failure))
        )  # stopped, perhaps before its first report
        self._record(trial)

    def _may_repeat(self, trial: Trial, lost: bool) -> bool:
        """Return whether another attempt is due: losses and failures count apart, and interruptions count for neither."""
        endings = [self._attempt(trial.number, attempt).ending() for attempt in range(trial.attempts)]
        if lost:
            return sum(ending is None for ending in endings) <= LOST
        failed = sum(ending is not None and ending["reason"] != "stopped" for ending in endings)
        return bool(failed <= self.job.limits.retries)

    def _record(self, trial: Trial) -> None:
        """Tell the study, and the run folder, what became of a trial."""
        self._count(trial)
        best = any(best is trial for best in self.front())
        record = record_of(trial, self.job.goals, RECORDED) | {"best": best}
        self._run.append("tune", "trials", record)
        self._tell(trial)

    def _record_inherited(self) -> None:
        """Write the trials of the parents into the run folder, from which a resumed job takes them."""
        compared = {trial.name for trial in comparable(self.job, [], self.inherited)}
        for trial in self.inherited:
            record = record_of(trial, self.job.goals, 1) | {"compared": trial.name in compared}
            self._run.append("tune", "parents", record)

    def _count(self, trial: Trial) -> None:
        """Let later decisions use a trial that has ended."""
        self._rule.ended(trial)
        if trial.state == "finished" and trial.objective is not None:
            self._finished.append(trial.objective)

    def _tell(self, trial: Trial) -> None:
        values = None if trial.state == "failed" else trial.objectives(self.job.goals)
        self.study.tell(trial.number, len(trial.reports), values, trial.state == "stopped")

    # -- after a kill ---------------------------------------------------------------------------

    def _recall(self) -> None:
        """Take over what an earlier tuner left: records of ended trials, programs that still run, attempts to repeat."""
        known = recorded(str(self.folder))
        validate_holds(self.study.trials(), (trial.number for trial in known))
        for trial in known:
            self.trials[trial.number] = trial
            self._count(trial)
        for number, values in list(self.study.running()):
            before = self.trials.get(number)
            if before is not None:  # recorded, and killed before the study was told
                self._tell(before)
                continue
            self._take_over(Trial(number, values))

    def _take_over(self, trial: Trial) -> None:
        done = self._files.attempts(trial.number)
        if not done:
            self._waiting.append(trial)
            return
        attempt = self._attempt(trial.number, done - 1)
        trial.attempts, trial.reason = done - 1, attempt.marked()
        alive, ending = attempt.alive(), attempt.ending()
        if not alive and (ending is None or (ending["reason"] == "stopped" and not trial.reason)):
            attempt.end_left()
            trial.attempts, trial.reason = done, ""
            self._waiting.append(trial)  # killed or interrupted with the tuner
            return
        self._engine.adopt(attempt)
        self._begin(trial, attempt)
        self._running[trial.number].stopping = bool(trial.reason)

    def _interrupt(self) -> None:
        """End the running trials; a resumed job repeats them."""
        while self._running:
            self._engine.look()
            for entry in list(self._running.values()):
                entry.attempt.stop()  # again and again: a supervisor that has just started does not listen yet
                if not entry.attempt.alive():
                    entry.attempt.end_left()
                    self._engine.release(entry.attempt)
                    del self._running[entry.trial.number]
            time.sleep(POLL)


def run(
    job: Job, folder: str, *, resume: bool = False, show: Callable[[Tuner], None] | None = None
) -> Trial | None:
    """Run a tuning job and return its best trial; ``None``: no trial finished.

    Args:
        job: the job.
        folder: the run folder.
        resume: go on with the job that the folder holds.
        show: function that is called with the ``Tuner`` a few times a second.

    Raises:
        InputError: the folder holds another job, or the program cannot be executed.
        StateError: the folder holds a run and ``resume`` is false, or another tuner works in it.
    """
    return Tuner(job, folder, resume, show).run()
