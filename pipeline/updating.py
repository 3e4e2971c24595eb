"""The jobs that the DAGs call: plan, update, retrain, promote, and whether a task is behind its table.

Each is a function of table versions and of the registry's state, so it can be killed at any moment and run
again: an update that was registered already is found by its parent and its ledger, a promotion that was
done already is done. `plan`, `promote` and `behind` load neither TensorFlow nor a model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import readings, texts
from pipeline.alerts import raise_alert, settle_alert
from pipeline.checkpoint import LEDGER, Ledger
from pipeline.judged import Judged, publish_quality
from pipeline.lake import Lake, open_lake
from pipeline.lineage import note_version_page, of_version
from pipeline.lineage_pages import write_lineage_page
from pipeline.locking import LockNotTaken, locks_of
from pipeline.model_card import COMPARISONS, write_model_card
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import PromotionConflict
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import AdaptsEncoder, Counts, KeepsVectors
from pipeline.unscorable import CannotScore, asking, beyond_the_lake, checkpoint_of

if TYPE_CHECKING:
    from pipeline.gate import Decision
    from pipeline.lesson import Lesson
    from pipeline.tasks.contract import Learner, Task

Report = Callable[[str], None]

# One refusal may be chance (the gate errs once in twenty), two may be one bad hour seen twice; a third time
# the oldest hour of the three is what they have in common (DESIGN.md, decision 1).
REFUSALS_BEFORE_SETTING_ASIDE = 3


def plan(task_name: str, settings: Settings) -> dict[str, Any]:
    """What the next update of a task would learn, in JSON's types.

    Returns:
        `task`, `champion` (version), `versions` (table -> version to learn up to), `start` (learn the task's
        table from after this version on); or `nothing_because` with the reason.
    """
    lake, registry = open_lake(settings), open_registry(settings)
    task = task_named(task_name, settings, lake)
    champion = registry.champion(task_name)
    if champion is None:
        return {"nothing_because": f"{task_name} has no champion yet: run the DAG retrain_{task_name} first."}
    registry.settle(task_name)
    ledger = _ledger(registry, task_name, champion)
    versions = _versions(task, lake)
    table, newest = task.table, versions[task.table]
    if newest < ledger.versions[table]:
        return {"nothing_because": beyond_the_lake(champion, ledger, table, newest)}
    if newest == ledger.versions[table]:
        return {"nothing_because": f"version {champion} has learnt all of {table} (version {newest})."}
    start, done = _attempts(registry, task_name, champion, ledger.versions[table], table, newest)
    if start >= newest:
        return {"nothing_because": f"all that came of {table} up to version {start} was refused for good."}
    if done is not None:
        return {"nothing_because": f"version {done} has learnt exactly this and was decided on; waiting for more."}
    return {"task": task_name, "champion": champion, "versions": versions, "start": start}


def update(
    plan: Mapping[str, Any], settings: Settings, decided_at: datetime, report: Report = print
) -> dict[str, Any]:
    """Fine-tunes the champion on the planned change, scores both, decides, and registers the challenger.

    Returns:
        `task`, `version`, `decision`, `reasons`, `window`. `version` is None where the champion has moved
        since the plan (`overtaken`): the next run plans anew; where another job of the task trains (`waits`), which a
        retrain does for hours: the next hour tries again; and where champion or reference cannot be compared with
        (`cannot-score`): that is recorded, and there is an alert until it is settled.
    """
    name = str(plan["task"])
    try:
        with locks_of(settings.home, settings.lock_url)(f"learn-{name}"):
            return _updated(plan, _Job.open(name, settings, report), decided_at)
    except LockNotTaken as held:
        if held.name != f"learn-{name}":
            raise
        return _outcome(name, None, "waits", [
            f"Another job of {name} trains, a retrain as a rule; the update of the next hour learns these rows too."
        ])


def _updated(plan: Mapping[str, Any], job: _Job, decided_at: datetime) -> dict[str, Any]:
    champion = int(plan["champion"])
    if job.registry.champion(job.name) != champion:
        return _outcome(job.name, None, "overtaken", [f"Version {champion} is no longer the champion."])
    done = job.registered(champion, int(plan["versions"][job.task.table]), int(plan["start"]))
    if done is not None:
        return done
    try:
        done = job.update(champion, dict(plan["versions"]), int(plan["start"]), decided_at)
    except CannotScore as fault:
        return job.not_compared(champion, fault, decided_at)
    settle_alert(job.settings, f"cannot-score-{job.name}")
    return done


def retrain(
    task_name: str, settings: Settings, decided_at: datetime, reason: str, days: int | None = None,
    report: Report = print, versions: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Trains from the base over the whole history (or its newest `days`), through the same gate.

    Without a champion this makes the first one. `versions` (table -> version) are those of the tables that are read;
    None: the newest. Returns what `update` does.
    """
    with locks_of(settings.home, settings.lock_url)(f"learn-{task_name}"):
        job = _Job.open(task_name, settings, report)
        champion = job.registry.champion(task_name)
        versions = dict(versions or _versions(job.task, job.lake))
        done = job.unfinished_retrain(champion, versions, days)
        return job.retrain(champion, versions, days, reason, decided_at) if done is None else done


def promote(
    task_name: str, version: int, settings: Settings, decided_at: datetime, who: str = "update"
) -> dict[str, Any]:
    """Acts on the decision in a version's tags; writes its quality, its page of lineage and its card. Idempotent.

    Returns:
        `action`, `champion_before`, `champion_after`. `action` is the decision, or `overtaken` where another
        champion serves than the version was compared with: then it is held, and the next update plans anew.
    """
    note_version_page(task_name, version, settings)  # its address first: whoever sees a decision finds where it leads
    done = _acted_on(task_name, version, settings, decided_at, who)
    learnt = of_version(task_name, version, settings, whole=False)
    write_lineage_page(learnt, settings.reports, decided_at)
    write_model_card(learnt, settings)
    return done


def _acted_on(
    task_name: str, version: int, settings: Settings, decided_at: datetime, who: str
) -> dict[str, Any]:
    lake, registry = open_lake(settings), open_registry(settings)
    with locks_of(settings.home, settings.lock_url)(f"quality-{task_name}"):  # two runs may promote one version at once
        publish_quality(lake, registry, task_name, version)
    tags = registry.tags(task_name, version)
    readings.publish(lake, registry, task_name, version)
    reasons = json.loads(tags["evergreen.reasons"])
    ledger = _ledger(registry, task_name, version)
    outcome = tags["evergreen.decision"]
    if outcome in ("promote", "first"):
        expected = int(tags["evergreen.compared_with"]) if tags["evergreen.compared_with"] else None
        try:
            done = registry.promote(
                task_name, version, expected, who=who, reasons=reasons, action=outcome, decided_at=decided_at,
                window=ledger.window,
            )
            return {"action": outcome, "champion_before": done.champion_before, "champion_after": done.champion_after}
        except PromotionConflict as conflict:
            outcome, reasons = "overtaken", [str(conflict)]
    registry.record(
        task_name, "hold" if outcome == "overtaken" else outcome, version, who=who, reasons=reasons,
        decided_at=decided_at, window=ledger.window,
    )
    champion = registry.champion(task_name)
    return {"action": outcome, "champion_before": champion, "champion_after": champion}


def behind(task_name: str, settings: Settings) -> bool:
    """Whether the next update would have something to learn."""
    return "nothing_because" not in plan(task_name, settings)


@dataclass(frozen=True)
class _Job:
    """One training job of one task, under its lock."""

    name: str
    task: Task
    lake: Lake
    registry: Registry
    settings: Settings
    report: Report

    @classmethod
    def open(cls, name: str, settings: Settings, report: Report) -> _Job:
        lake = open_lake(settings)
        return cls(name, task_named(name, settings, lake), lake, open_registry(settings), settings, report)

    def registered(self, champion: int, newest: int, start: int) -> dict[str, Any] | None:
        """The outcome of this very update if a killed run had registered it already."""
        for child in self.registry.children(self.name, champion):
            ledger, table = Ledger.of_tags(child.tags), self.task.table
            if (ledger.versions[table], ledger.learnt_from[table]) == (newest, start):
                return self._taken_up(child.number)
        return None

    def unfinished_retrain(
        self, champion: int | None, versions: Mapping[str, int], days: int | None
    ) -> dict[str, Any] | None:
        """The outcome of this very retrain if a killed run had registered it, and nobody acted on it yet."""
        for child in reversed(self.registry.children(self.name, None)):
            tags = child.tags
            same = (tags["evergreen.compared_with"], tags["evergreen.days"]) == (_text(champion), _text(days))
            if same and dict(Ledger.of_tags(tags).versions) == dict(versions):
                decided = self.registry.decided(self.name, child.number)
                return None if decided else self._taken_up(child.number)
        return None

    def _taken_up(self, version: int) -> dict[str, Any]:
        tags = self.registry.tags(self.name, version)
        self.report(f"version {version} was registered before this run: nothing is trained twice")
        self.registry.name_challenger(self.name, version)
        reasons, ledger = json.loads(tags["evergreen.reasons"]), _ledger(self.registry, self.name, version)
        return _outcome(self.name, version, tags["evergreen.decision"], reasons, ledger)

    def update(
        self, champion: int, versions: dict[str, int], start: int, decided_at: datetime
    ) -> dict[str, Any]:
        from pipeline.lesson import lesson_of_change
        from pipeline.remembering import Remembered
        from pipeline.training import fine_tune

        parent, learner = self._learner_of(champion)
        tables = Snapshot(self.lake, versions)
        base, first = (parent, learner) if parent.base is None else self._learner_of(parent.base)
        old = Remembered.of(self.task, tables, parent, base)
        lesson = lesson_of_change(
            self.task, tables, champion, parent, start, self.settings.seed,
            losses=lambda old: learner.losses(old, self.task.update_schedule.batch_size, learnt=True),
        )
        self.report(
            f"update from version {champion}: {len(lesson.arrived)} examples arrived, {len(lesson.new)} are learnt "
            f"beside {len(lesson.replayed)} replayed; {len(lesson.tune)} tune, {len(lesson.gate)} judge"
        )
        if start > parent.versions[self.task.table]:
            self._report_set_aside(champion, parent, lesson.ledger, start, decided_at)
        judged = Judged.of(self.task, tables, lesson)
        judged.old = old
        judged.add("champion", champion, learner)
        if parent.base is None:
            judged.also("never_updated", "champion")
        else:
            judged.add("never_updated", parent.base, first)
        read = readings.read_by(learner, lesson.context)
        grown = learner.grow(lesson.context, lesson.new)
        self.report(f"grown: {dict(grown)}")
        trained = fine_tune(
            learner, self.task.restore, lesson.train, lesson.tune, self.task.update_schedule,
            seed=self.settings.seed + lesson.ledger.updates, report=self.report,
        )
        if isinstance(trained.learner, Counts):
            trained.learner.count(lesson.new)
        return self._conclude(trained.learner, lesson, judged, champion, {}, read)

    def retrain(
        self, champion: int | None, versions: dict[str, int], days: int | None, reason: str, decided_at: datetime
    ) -> dict[str, Any]:
        from pipeline.lesson import lesson_of_everything
        from pipeline.workers import train_with

        tables = Snapshot(self.lake, versions)
        before = None if champion is None else _ledger(self.registry, self.name, champion)
        lesson = lesson_of_everything(self.task, tables, days, before, self.settings.seed)
        self.report(
            f"retrain ({reason}): {len(lesson.new)} examples to learn, {len(lesson.tune)} tune, "
            f"{len(lesson.gate)} judge; the last {lesson.ledger.span_hours} h stay out for that"
        )
        judged = Judged.of(self.task, tables, lesson)
        fault = None if before is None or champion is None else self._judge_lineage(judged, champion, before)
        learner = self.task.learner(self.settings.seed)
        if isinstance(learner, AdaptsEncoder):
            learner.adapt(lesson.context, lesson.train, self.task.base_schedule.methods, self.report)
        self.report(f"grown: {dict(learner.grow(lesson.context, lesson.new))}")
        trained = train_with(
            self.settings, self.task, learner, lesson.train, lesson.tune, self.task.base_schedule,
            seed=self.settings.seed, report=self.report,
        )
        notes = {"evergreen.days": _text(days), "evergreen.why": reason}
        read = readings.read_by(trained.learner, lesson.context)
        return self._conclude(trained.learner, lesson, judged, champion, notes, read, fault)

    def _judge_lineage(self, judged: Judged, champion: int, ledger: Ledger) -> CannotScore | None:
        """Scores the champion, and the first model of its lineage; returns why the champion cannot be asked.

        A retrain begins a lineage with a fixed older model of its own, so it must hold beside the one before: else
        each lineage could lose the margin once more. A first model that cannot be asked is left out, not waited for.
        """
        try:
            judged.add("champion", champion, self._learner_of(champion)[1])
        except CannotScore as fault:
            raise_alert(self.settings, f"cannot-score-{self.name}", f"{self.name}: {fault}")
            return fault
        if ledger.base is not None:
            try:
                judged.add("never_updated", ledger.base, self._learner_of(ledger.base)[1])
            except CannotScore as fault:
                self.report(f"the first model of the lineage is left out: {fault}")
        return None

    def not_compared(self, champion: int, fault: CannotScore, decided_at: datetime) -> dict[str, Any]:
        """Records that the champion cannot be compared with, and alerts. The same fault is recorded once."""
        self.report(str(fault))
        raise_alert(self.settings, f"cannot-score-{self.name}", f"{self.name}: {fault}")
        self.registry.record(
            self.name, "cannot-score", champion, who="update", decided_at=decided_at, reasons=[str(fault)],
        )
        return _outcome(self.name, None, "cannot-score", [str(fault)])

    def _conclude(
        self, learner: Learner, lesson: Lesson, judged: Judged, champion: int | None, notes: Mapping[str, str],
        read: Mapping[str, pa.Table], fault: CannotScore | None = None,
    ) -> dict[str, Any]:
        """Scores the challenger, decides, registers it with its quality and what was read beside its checkpoint."""
        from pipeline.checkpoint import Checkpoint, save
        from pipeline.gate import decide, not_compared

        challenger = judged.score(learner)
        decision = decide(
            judged.validation.get("champion"), challenger, judged.validation["baseline"], self.task.gate,
            reference=judged.validation.get("never_updated"),
            old=None if judged.old is None else judged.old.beside(learner),
            arrived=judged.arrived_by_window("champion"), gates=len(self.settings.tasks),
        )
        if fault is not None:
            decision = not_compared(decision, str(fault))
        self.report(f"{decision.outcome}: " + " ".join(decision.reasons))
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            folder = Path(scratch) / "checkpoint"
            save(Checkpoint(learner.state(), lesson.ledger), folder)
            rows = judged.rows(challenger, self.settings.seed)
            (folder / "quality.json").write_text(json.dumps(rows))
            (folder / COMPARISONS).write_text(json.dumps([asdict(one) for one in decision.comparisons]))
            readings.keep(read, folder)
            vectors = learner.vectors_name if isinstance(learner, KeepsVectors) else ""
            version = self.registry.register(
                self.name, learner.package(Path(scratch) / "package"), folder,
                tags={
                    **_tags(self.name, lesson.ledger, champion, decision), **notes,
                    "evergreen.settings": self._numbers_of(lesson.ledger.kind), readings.TAG: ",".join(read),
                    texts.TAG: vectors,
                }, metrics=_metrics(rows),
            )
        self.report(f"registered as version {version} of evergreen-{self.name}")
        return _outcome(self.name, version, decision.outcome, decision.reasons, lesson.ledger)

    def _numbers_of(self, kind: str) -> str:
        """What the training was told, as JSON: seed, encoder, the schedule with its methods, the gate's rules."""
        schedule = self.task.update_schedule if kind == "update" else self.task.base_schedule
        return json.dumps({
            "seed": self.settings.seed, "encoder": self.settings.encoder, "schedule": asdict(schedule),
            "gate": asdict(self.task.gate),
        })

    def _learner_of(self, version: int) -> tuple[Ledger, Learner]:
        checkpoint = checkpoint_of(self.registry, self.name, version)
        with asking(version):
            return checkpoint.ledger, self.task.restore(checkpoint.state)

    def _report_set_aside(
        self, champion: int, parent: Ledger, ledger: Ledger, start: int, decided_at: datetime
    ) -> None:
        windows = sorted(set(ledger.set_aside) - set(parent.set_aside))
        if not windows:  # all of them were corrected since
            return
        self.registry.record(
            self.name, "set-aside", champion, who="update", decided_at=decided_at, window=ledger.window, reasons=[
                f"Versions {parent.versions[self.task.table] + 1} to {start} of {self.task.table} were refused "
                f"{REFUSALS_BEFORE_SETTING_ASIDE} times and are set aside; they landed in {', '.join(windows)}. "
                "Look at these windows' quality pages; correct the files and backfill the hours to have them learnt."
            ],
        )


def _attempts(
    registry: Registry, task_name: str, champion: int, learnt: int, table: str, newest: int
) -> tuple[int, int | None]:
    """Where the next update starts, and the version that has learnt the same and was decided on, if any.

    A version that was decided on but neither serves nor was refused has been rolled back since; one that was
    not decided on was left by a killed process, and is taken up by the update and promoted.
    """
    entries = registry.children(task_name, champion)
    children = {child.number: Ledger.of_tags(child.tags) for child in entries}
    rejected = [children[child.number] for child in entries if child.tags["evergreen.decision"] == "reject"]
    start = _start(learnt, rejected, table)
    same = [
        version for version, ledger in children.items()
        if (ledger.versions[table], ledger.learnt_from[table]) == (newest, start)
    ]
    return start, next((version for version in same if registry.decided(task_name, version)), None)


def _start(learnt: int, rejected: Sequence[Ledger], table: str) -> int:
    """The version of `table` after which to learn: beyond each range that was rejected too often.

    All rejected ledgers have the same parent. Those that began at one version have its following range in
    common; the shortest of them is the range that all of them have learnt.
    """
    while True:
        streak = [ledger.versions[table] for ledger in rejected if ledger.learnt_from[table] == learnt]
        if len(streak) < REFUSALS_BEFORE_SETTING_ASIDE:
            return learnt
        learnt = min(streak)


def _tags(task_name: str, ledger: Ledger, compared_with: int | None, decision: Decision) -> dict[str, str]:
    return {
        "evergreen.task": task_name,
        "evergreen.kind": ledger.kind,
        "evergreen.parent": _text(ledger.parent),
        "evergreen.compared_with": _text(compared_with),
        "evergreen.decision": decision.outcome,
        "evergreen.reasons": json.dumps(list(decision.reasons)),
        LEDGER: json.dumps(ledger.as_json()),
        "evergreen.window": ledger.window.isoformat(),
    }


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """MLflow's metrics: the validation means, `<role>.<metric>`, with MLflow's letters only."""
    return {
        f"{row['role']}.{row['metric'].replace('@', '_at_')}": row["mean"]
        for row in rows if row["scored_on"] == "validation"
    }


def _ledger(registry: Registry, task_name: str, version: int) -> Ledger:
    return Ledger.of_tags(registry.tags(task_name, version))


def _versions(task: Task, lake: Lake) -> dict[str, int]:
    return {table: lake.rows_version(table) for table in (task.table, *task.context_tables)}


def _outcome(
    name: str, version: int | None, decision: str, reasons: Sequence[str], ledger: Ledger | None = None
) -> dict[str, Any]:
    return {
        "task": name, "version": version, "decision": decision, "reasons": list(reasons),
        "window": ledger.window.isoformat() if ledger else None,
    }
