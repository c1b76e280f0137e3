"""Population based training (Jaderberg et al., 2017), in step and from exact commits.

All members train to the same age, commit and end. The worst are then replaced: such a member's run
folder gets the commit of one of the best - weights, optimizer, average and position, byte for byte
- and goes on from it with perturbed values. What is decided is a pure function of the scores, the
seed and the age, and is written down when it is done, so that it can be interrupted anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.codec import decode
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.checkpoints.manifest import POINTER_NAME, checked_commits
from orchestrator.config.places import bucket_of
from orchestrator.config.scalars import Json
from orchestrator.config.schema import Domain, Experiment, PbtConfig
from orchestrator.data import counter_rng
from orchestrator.errors import StorageError, error_with
from orchestrator.runs.digests import config_digest
from orchestrator.runs.identity import Identity, open_run
from orchestrator.storage.address import below
from orchestrator.storage.bucket import commit_storage
from orchestrator.storage.bucket_mirror import mirrored
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import LocalStorage, Storage
from orchestrator.storage.run_files import CHECKPOINTS, EVENTS, LABEL_MAP, STOP, trial_name
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.plan import Planner, Trial
from orchestrator.sweeps.sources import Record
from orchestrator.sweeps.space import (
    Space,
    Values,
    count_options,
    index_of,
    inside,
    option_at,
    pick,
)
from orchestrator.tracking.events import EventLog

#: Score of a member that failed on its way to an age: below all others.
_FAILED = -2.0


def ages(config: PbtConfig, epochs: int) -> list[int]:
    """Epochs after which the population is judged, and its full age."""
    return [*range(config.interval_epochs, epochs, config.interval_epochs), epochs]


@dataclass(frozen=True)
class Exploit:
    """A member that is to be replaced.

    Attributes:
        member: its number.
        donor: number of the one it continues from.
        values: what it goes on with.
    """

    member: int
    donor: int
    values: Values


def exploits(
    scores: Mapping[int, float],
    values: Mapping[int, Values],
    *,
    config: PbtConfig,
    space: Space,
    seed: int,
    age: int,
) -> list[Exploit]:
    """Who continues from whom, and with which values.

    Args:
        scores: of every member, larger is better.
        values: of every member.
        config: of the population.
        space: what may be perturbed.
        seed: of the sweep.
        age: in epochs.

    Returns:
        Nothing where nobody has come to this age.
    """
    ranked = sorted(scores, key=lambda number: (-scores[number], number))
    count = min(math.ceil(len(ranked) * config.quantile), len(ranked) // 2)
    best = [number for number in ranked[:count] if scores[number] != _FAILED]
    if not best:
        return []
    worst = ranked[-count:]
    found = []
    for number in sorted(worst):
        # Drawn beside those that made the population, whose coordinate is the attempt.
        words = counter_rng.words(
            seed,
            counter_rng.Domain.SWEEP,
            epoch=2**32 + age,
            sample=number,
            count=1 + 3 * len(space),
        )
        shares = [int(word) / 2**64 for word in words]
        donor = best[int(shares[0] * len(best))]
        perturbed = {
            key: perturb(domain, values[donor][key], shares[1 + 3 * i : 4 + 3 * i], config)
            for i, (key, domain) in enumerate(space.items())
        }
        found.append(Exploit(number, donor, perturbed))
    return found


def perturb(domain: Domain, value: Json, shares: Sequence[float], config: PbtConfig) -> Json:
    """A value near ``value``, or one drawn anew.

    Args:
        domain: it belongs to.
        value: of the donor.
        shares: three numbers in [0, 1).
        config: of the population.
    """
    if shares[0] < config.resample_probability:
        return pick(domain, shares[1])
    if domain.choice is not None or domain.step is not None:
        place = index_of(domain, value) + (1 if shares[2] < 0.5 else -1)
        return option_at(domain, min(max(place, 0), count_options(domain) - 1))
    assert isinstance(value, int | float)
    factor = config.factors[int(shares[2] * len(config.factors))]
    if domain.integer is not None or domain.logint is not None:
        low, high = domain.integer or domain.logint or (0, 0)
        return min(max(round(value * factor), low), high)
    return inside(domain, value * factor)


def clone(donor: Path, trial: Trial, member: Path, *, step: int, initial: str | None) -> str:
    """Let a run continue from the commit of another one.

    Everything the member has committed is removed first; doing it again, after being interrupted,
    ends in the same.

    Args:
        donor: folder of the run, beside that of the member, that has a commit of ``step``.
        trial: what the member is from now on.
        member: its run folder. Of runs in a bucket both are working folders, and of the
            donor's only the name matters.
        step: of the commit.
        initial: digest of the weights that all members began with, if there are any.

    Returns:
        SHA-256 of the weights file, which is that of the donor's.
    """
    source = CommitStore(_commits_in(donor, trial.resolved.experiment))
    try:
        files = source.read_files(step)
    except StorageError as error:
        raise StorageError(
            f"{error}. {member.name} is to go on from that checkpoint of {donor.name}. Next: bring "
            "it back, or give the sweep another name (name=...)"
        ) from error
    commit = next(c for c in source.commits() if c.step == step)
    with (
        mirrored(bucket_of(trial.resolved.experiment), member) as mirror,
        RunLock(member) as folder_lock,
    ):
        storage = LocalStorage(member) if mirror is None else mirror.storage
        lock = folder_lock if mirror is None else mirror.lock
        try:
            if storage.list(CHECKPOINTS):
                storage.remove_tree(CHECKPOINTS)
            if any(entry.name == POINTER_NAME for entry in storage.list("")):
                storage.unlink(POINTER_NAME)
        except OSError as error:
            raise StorageError(
                f"{storage.describe(CHECKPOINTS)}: cannot be removed, to go on from {donor.name}: "
                f"{error}. Next: see that it can be written, then run the same command again"
            ) from error
        digest = config_digest(trial.resolved.tree, initial=initial)
        store = CommitStore(storage, fence=lock.fence())
        store.save(
            decode({name: data for name, data in files.items() if name != LABEL_MAP}),
            config_digest=digest,
            data_digest=commit.manifest.data_digest,
            label_map=files[LABEL_MAP].decode(),
        )
        if commit.metrics is not None:
            store.attach_metrics(step, commit.metrics)
        store.close()
        copied = next(c for c in store.commits() if c.step == step).manifest
        if copied.files != commit.manifest.files:
            raise StorageError(
                f"{member}: the clone of {donor} at step {step} is not what it was cloned from. "
                "Next: report this as a bug"
            )
        identity = Identity(digest, commit.manifest.data_digest, initial=initial)
        open_run(member, identity, trial.resolved.tree, force=True, commits=storage)
        events = EventLog(member / EVENTS)
        events.note("cloned", f"from {donor.name}; goes on with {trial.text()}", step=step)
        events.close()
    return copied.files["weights.safetensors"].sha256


def _commits_in(folder: Path, experiment: Experiment) -> Storage:
    """Where the commits of a member are.

    Args:
        folder: its run folder; in a bucket only its name matters.
        experiment: of any member.
    """
    bucket = below(experiment.storage, folder.name) if experiment.in_bucket else None
    return commit_storage(folder, bucket)


class Population:
    """The members of a sweep, their values and their age, rebuilt from the journal.

    Args:
        planner: of the sweep.
        journal: of the sweep.
        record: of the sweep.
        members: as they begin.
        steps_per_epoch: of every member.
        initial: digest of the weights that all members begin with, if there are any.

    Raises:
        ConfigError: there were more members, or fewer, when some were judged.
    """

    def __init__(
        self,
        planner: Planner,
        journal: Journal,
        record: Record,
        members: Sequence[Trial],
        *,
        steps_per_epoch: int,
        initial: str | None,
    ) -> None:
        self._planner = planner
        self._journal = journal
        self._record = record
        self._steps_per_epoch = steps_per_epoch
        self._initial = initial
        self.ages = ages(planner.sweep.pbt, planner.base.experiment.train.epochs)
        self.values = {trial.number: trial.values for trial in members}
        _require_size(planner, journal, len(members))
        record.planned(*members)
        #: Score of each member by age, as far as they are known.
        self.scores: dict[int, dict[int, float]] = {age: {} for age in self.ages}
        self._cloned: set[tuple[int, int]] = set()
        #: How members have ended that failed since this start, by age and number.
        self._failed: dict[tuple[int, int], dict[str, Any]] = {}
        for entry in journal.entries:
            if entry.kind == "aged":
                self.scores[entry.content["age"]][entry.content["trial"]] = entry.content["score"]
            elif entry.kind == "cloned":
                self._cloned.add((entry.content["age"], entry.content["trial"]))
                self.values[entry.content["trial"]] = entry.content["values"]
            elif entry.kind == "end":
                # Written before the score of the full age, which nobody is judged by.
                self.scores[self.ages[-1]][entry.content["trial"]] = self._score(entry.content)
        self._forget_failures()

    def _forget_failures(self) -> None:
        """Have members tried again that failed, where it has not been decided who replaces them."""
        decided = max((age for age, _ in self._cloned), default=0)
        for age, scores in self.scores.items():
            if age > decided:
                self.scores[age] = {n: score for n, score in scores.items() if score != _FAILED}

    def segment(self, age: int) -> Segment:
        """What is left of the training up to an age.

        Raises:
            StorageError: the checkpoint that a member continued from is gone. From its beginning
                it would train to something else, by its last values alone.
        """
        for number in self.waiting(age):
            cloned = max((at for at, one in self._cloned if one == number), default=0)
            if cloned:
                self._require_commit(self.trial(number, age), cloned * self._steps_per_epoch)
        return Segment(self, age)

    def _require_commit(self, trial: Trial, step: int) -> None:
        """Raise unless a member has the checkpoint of ``step``, or a later one."""
        commits = _commits_in(self._planner.folder / trial.name, trial.resolved.experiment)
        try:
            newest = max((commit.step for commit in checked_commits(commits)), default=0)
        except OSError as error:
            raise StorageError(
                f"{commits.describe(CHECKPOINTS)}: cannot be read: {error}"
            ) from error
        if newest < step:
            raise StorageError(
                f"{commits.describe(CHECKPOINTS)}: has no checkpoint of step {step}, which came "
                "from another member of the population, nor a later one. Next: bring it back, or "
                "give the sweep another name (name=...)"
            )

    def trial(self, number: int, age: int | None) -> Trial:
        """A member as it is now.

        Args:
            number: of the member.
            age: epochs to train to; None for all of them.
        """
        values = dict(self.values[number])
        if age is not None and age < self.ages[-1]:
            values["train.max_steps"] = age * self._steps_per_epoch
        return self._planner.trial(number, values)

    def waiting(self, age: int) -> list[int]:
        """Members that have not reached an age yet."""
        return [number for number in sorted(self.values) if number not in self.scores[age]]

    def ended(self, trial: Trial, age: int, end: dict[str, Any]) -> None:
        """Write down that a member has reached an age, failed on the way, or was interrupted."""
        whole = self.trial(trial.number, None)
        if end["state"] == "preempted":
            return
        if age == self.ages[-1]:
            self._record.ended(whole, end)
        score = self._score(end)
        if score == _FAILED:
            self._failed[age, trial.number] = end
        self._journal.add("aged", trial=trial.number, age=age, score=score)
        self.scores[age][trial.number] = score

    def _score(self, end: Mapping[str, Any]) -> float:
        metrics = end.get("result", {}).get("metrics", {})
        value = metrics.get(self._planner.sweep.metric.removeprefix("val/"))
        # A member that failed is the worst, and goes on as somebody else.
        return _FAILED if value is None else float(value)

    def failures(self, age: int) -> dict[int, str]:
        """Why members have failed on their way to an age since this start, by their number."""
        found = {n: end for (at, n), end in self._failed.items() if at == age}
        return {number: found[number].get("reason", "not evaluated") for number in sorted(found)}

    def exploit(self, age: int) -> list[Exploit]:
        """Replace the worst members at an age that all have reached; may be interrupted.

        Returns:
            Those that were replaced by this call.

        Raises:
            OrchestratorError: all of them have failed on their way to it.
        """
        reasons = self.failures(age)
        if len(reasons) == len(self.values):
            first = min(reasons)
            raise error_with(self._failed[age, first].get("exit_code", 70))(
                f"all {len(reasons)} members failed on their way to epoch {age}, so none can be "
                f"replaced; the first one: {reasons[first]}. Next: see to the cause and run the "
                "same command again, which goes on from their commits"
            )
        folder = self._planner.folder
        before = dict(self.values)
        for entry in self._journal.of("cloned"):
            if entry["age"] == age:
                before[entry["trial"]] = entry["replaced"]
        found = exploits(
            self.scores[age],
            before,
            config=self._planner.sweep.pbt,
            space=self._planner.sweep.space,
            seed=self._planner.seed,
            age=age,
        )
        new = [one for one in found if (age, one.member) not in self._cloned]
        for one in new:
            replaced = self.values[one.member]
            step = age * self._steps_per_epoch
            trial = self._planner.trial(one.member, one.values)
            digest = clone(
                folder / trial_name(one.donor),
                trial,
                folder / trial.name,
                step=step,
                initial=self._initial,
            )
            self._journal.add(
                "cloned",
                trial=one.member,
                donor=one.donor,
                age=age,
                step=step,
                values=one.values,
                replaced=replaced,
                weights_sha256=digest,
            )
            self._cloned.add((age, one.member))
            self.values[one.member] = one.values
            (folder / trial.name / STOP).unlink(missing_ok=True)
        return new


def _require_size(planner: Planner, journal: Journal, members: int) -> None:
    """Raise where members were judged by others than there are now."""
    before = sum(1 for _ in journal.of("trial"))
    if members != before and any(entry.kind == "aged" for entry in journal.entries):
        raise planner.error_at(
            ("sweep", "trials"),
            f"is {members}, and {before} members of this population have been judged by each other "
            f"already. Next: set sweep.trials to {before}, or give this sweep another name "
            "(name=...)",
        )


class Segment:
    """The training of a population up to an age, as a source of trials."""

    def __init__(self, population: Population, age: int) -> None:
        self._population = population
        self._age = age
        self._waiting = population.waiting(age)

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self) -> Trial | None:
        """A member that has not reached the age yet."""
        return self._population.trial(self._waiting.pop(0), self._age) if self._waiting else None

    def ended(self, trial: Trial, end: dict[str, Any]) -> None:
        """Write down how far a member has come."""
        self._population.ended(trial, self._age, end)
