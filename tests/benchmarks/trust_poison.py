"""Poisoned hours through the door, the learner and the gate of a small shop: where each stops, to results/POISON.md.

On each of three simulated shops every kind of poison meets the same champion, in a copy of its own. Four hours come
poisoned and are learnt by one update. What is served in the end is judged on the next hours, which are clean: beside
the model that learnt the same four hours as they should have been. A poison does harm where its model is served and is
worse than that by more than the gate's margin.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import updating
from pipeline.evaluation import UnitMean, unit_means
from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.quality import WindowStopped
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.sources.files import json_lines, json_lines_bytes, write_file
from pipeline.sources.simulator import ShopSimulator
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import Scores
from pipeline.window import Window
from tests.benchmarks.bench_trust import Measured
from tests.benchmarks.poisons import POISONS, Hour, Poison, clean
from tests.small_shop import settings_of

PAGE = Path(__file__).with_name("results") / "POISON.md"
SEEDS = (3, 4, 5)
POISONED_HOURS, LATER_HOURS = 4, 8
NOW = datetime(2026, 3, 1, tzinfo=UTC)
TASK = "recommend"


@dataclass(frozen=True)
class Fate:
    """What became of a kind of poison.

    Attributes:
        kind: its name in POISONS.
        stopped: where; empty where it was served.
        seen: what was said there.
        loss: of the served model beside the one that learnt clean hours, relative; None where nothing was served.
    """

    kind: str
    stopped: str
    seen: str
    loss: float | None

    @property
    def harms(self) -> bool:
        """Whether it is served and worse by more than the gate's margin."""
        return self.loss is not None and self.loss > _margin()


def _margin() -> float:
    from pipeline.tasks.recommend import Recommend

    return Recommend.gate.margin


def shop_of(seed: int) -> ShopSimulator:
    """Five days of some 30,000 events by 1,200 customers, then hours of 400."""
    return ShopSimulator(
        seed=seed, users=1_200, items=300, history_days=5, hours=48, history_events=30_000, events_per_hour=400,
        history_launches_per_day=2, launches_per_hour=1, dirt_share=0.0,
    )


def _silent(_said: str) -> None:
    """Takes a line of progress, of which a benchmark has too many."""


@dataclass(frozen=True)
class Laboratory:
    """A shop with its first champion, of which each kind of poison gets a copy."""

    shop: ShopSimulator
    home: Path
    scratch: Path

    @classmethod
    def built(cls, scratch: Path, seed: int) -> Laboratory:
        """History, first model."""
        shop, settings = shop_of(seed), settings_of(scratch / "shop")
        history = [window for window in shop.windows if window.start < shop.streamed_from]
        shop.land(history, Path(settings.landing))
        ingest(history, settings, _silent)
        first = updating.retrain(TASK, settings, NOW, "first", report=_silent)
        updating.promote(TASK, first["version"], settings, NOW, who="retrain")
        return cls(shop, settings.home, scratch)

    def copied(self, name: str) -> Settings:
        """An installation in the shop's state; the models' files stay where they are."""
        home = self.scratch / name
        home.mkdir()
        shutil.copy(self.home / "mlflow.db", home / "mlflow.db")
        shutil.copytree(self.home / "lake", home / "lake")
        return settings_of(home)

    def hours(self, first: int, count: int) -> list[Window]:
        """So many streamed hours from the first-th on."""
        return [one for one in self.shop.windows if one.start >= self.shop.streamed_from][first : first + count]

    def land(self, windows: list[Window], poison: Poison, settings: Settings) -> None:
        """Writes the hours' files."""
        generator = np.random.default_rng(self.shop.seed)
        for window in windows:
            number = self.shop._hour_of(window)
            hour = poison(Hour(self.shop._events(number), self._catalogue(window)), generator)
            landing = Path(settings.landing)
            self.shop._land_items(window, landing)
            if hour.exports:
                write_file(landing, "items", window, "z-export.jsonl", json_lines_bytes(json_lines(hour.catalogue)))
            write_file(landing, "events", window, "web.jsonl", json_lines_bytes(json_lines(hour.events)))

    def _catalogue(self, window: Window) -> pa.Table:
        number = self.shop._hour_of(window)
        items = np.flatnonzero(self.shop.shop.launch_hour <= number)
        prices = self.shop.shop.prices(number)
        texts = [self.shop.shop.item_text(int(item)) for item in items]
        return pa.table({
            "change_id": [f"export-{number}-{item}" for item in items],
            "item_id": pa.array(self.shop.shop.item_id[items], pa.string()),
            "change_time": [window.start.strftime("%Y-%m-%dT%H:%M:%SZ")] * len(items),
            **{name: [text[name] for text in texts] for name in ("title", "description", "category", "brand")},
            "price": [f"{prices[item]:.2f}" for item in items],
        })

    def run(self, kind: str, poison: Poison, place: int, control: Scores | None) -> tuple[Fate, Scores | None]:
        """The fate of a kind, and the served model's scores on the next hours."""
        settings = self.copied(f"kind-{place}")
        windows = self.hours(0, POISONED_HOURS)
        self.land(windows, poison, settings)
        said, stopped = _ingested(windows, settings)
        plan = updating.plan(TASK, settings)
        if "nothing_because" in plan:
            return Fate(kind, f"quality check: {stopped}", said, None), None
        done = updating.update(plan, settings, NOW, report=_silent)
        seen = "; ".join(filter(None, [said, done["reasons"][0]]))
        if done["decision"] != "promote":
            return Fate(kind, f"gate: {done['decision']}", seen, None), None
        scores = self._later(done["version"], settings)
        return Fate(kind, "", seen, None if control is None else _loss(scores, control)), scores

    def _later(self, version: int, settings: Settings) -> Scores:
        """A version's scores on the next hours, which land clean."""
        windows = self.hours(POISONED_HOURS, LATER_HOURS)
        self.land(windows, clean, settings)
        ingest(windows, settings, _silent)
        lake = open_lake(settings)
        task = task_named(TASK, settings, lake)
        tables = Snapshot(lake, {name: lake.version(name) for name in (task.table, *task.context_tables)})
        rows = task.teaching(tables, tables.rows_from(task.table, windows[0].start))
        examples = task.examples(tables, rows.filter(pc.greater_equal(rows["hour"], windows[0].start)))
        _, learner = updating._Job.open(TASK, settings, _silent)._learner_of(version)
        return learner.score(examples)


def _ingested(windows: list[Window], settings: Settings) -> tuple[str, str]:
    """What the door said, in short, and the critical rules that it stopped windows by."""
    stopped, warned = "", ""
    try:
        ingest(windows, settings, _silent)
    except WindowStopped as error:
        breaches = {f"{error.feed}.{breach.rule}": breach.seen for breach in error.breaches}
        stopped = ", ".join(breaches)
        warned = "; ".join(f"{rule}: {seen}" for rule, seen in breaches.items())
    lake = open_lake(settings)
    log = lake.window_log()
    log = log.filter(pc.greater_equal(log["landed_window"], windows[0].start))
    rules = sorted({
        word for text in log["warnings"].to_pylist() if text for word in text.split() if word in _RULES
    })
    refused = lake.arrow("quarantine", columns=["landed_window", "reason"])
    refused = refused.filter(pc.greater_equal(refused["landed_window"], windows[0].start))
    counts = {one["values"]: one["counts"] for one in pc.value_counts(refused["reason"]).to_pylist()}
    parts = [warned, "warned by " + ", ".join(rules) if rules else ""]
    parts += [f"{count:,} rows quarantined as {reason}" for reason, count in counts.items()]
    return "; ".join(filter(None, parts)), stopped


def _rules() -> frozenset[str]:
    from pipeline.quality import EXPECTATIONS, read_suites

    suites = [read_suites(EXPECTATIONS / f"{feed}.json") for feed in ("events", "items")]
    return frozenset(rule.name for suite in suites for rule in suite.window)


_RULES = _rules()


def _loss(scores: Scores, control: Scores) -> float:
    """How far the mean over users lies below the control's, relative, on the examples that both have."""
    metric = control.metrics[0]
    both = scores.frame.merge(control.frame, on="example_id", suffixes=("", "_control"))
    ours, theirs = (unit_means(both[name].to_numpy(), both["unit"]) for name in (metric, f"{metric}_control"))
    return -UnitMean.of(ours - theirs).mean / float(theirs.mean())


def measure() -> Measured:
    """All kinds on all shops, with their page."""
    fates: dict[str, list[Fate]] = {kind: [] for kind in POISONS}
    for seed in SEEDS:
        for fate in _fates_on(seed):
            fates[fate.kind].append(fate)
            print(f"shop {seed}: {fate}", flush=True)
    _write_page(fates)
    every = [fate for some in fates.values() for fate in some]
    figures = {
        "poison.kinds": float(len(fates)), "poison.tried": float(len(every)),
        "poison.served": float(sum(fate.harms for fate in every)),
        "poison.worst_loss_served": max((fate.loss for fate in every if fate.loss is not None), default=0.0),
    }
    protocol = (
        f"each kind on {len(SEEDS)} shops: {POISONED_HOURS} hours of a simulated shop (1,200 users, 300 items) through "
        f"ingest, update and gate; served: promoted and on the next {LATER_HOURS} clean hours more than the margin "
        "below the model that learnt the hours clean; POISON.md"
    )
    return Measured(figures, SEEDS, protocol)


def _fates_on(seed: int) -> Iterator[Fate]:
    """What becomes of each kind on one shop."""
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        laboratory = Laboratory.built(Path(folder), seed)
        _, control = laboratory.run("clean hours", clean, 0, None)
        if control is None:
            raise RuntimeError(f"Shop {seed}'s clean hours were not promoted: there is nothing to judge poison by.")
        for place, (kind, poison) in enumerate(POISONS.items(), 1):
            fate, _ = laboratory.run(kind, poison, place, control)
            yield fate
            shutil.rmtree(laboratory.scratch / f"kind-{place}")


def _write_page(fates: Mapping[str, Sequence[Fate]]) -> None:
    lines = [f"| {kind} | {_where(some)} | {some[0].seen} |" for kind, some in fates.items()]
    PAGE.write_text(f"""# Poisoned hours, and where they stop

Made by `make bench-trust PARTS=poison`: {POISONED_HOURS} hours of each of {len(SEEDS)} simulated shops are poisoned at
the source and go through the door, one update and the gate, each kind in a copy of the same shop. *quality check*
names the critical expectation that kept the windows from being published; *gate* means learnt, and not served;
*served* is followed by the loss on the next {LATER_HOURS} clean hours beside the model that learnt the same hours as
they should have been (relative, Recall@20; the margin is {_margin():.0%}). What was said is of the first shop.

| what went wrong | where it stopped | what was said |
|---|---|---|
{chr(10).join(lines)}
""")


def _where(fates: Sequence[Fate]) -> str:
    """Where a kind stopped on all shops, each place once."""
    places: dict[str, list[Fate]] = {}
    for fate in fates:
        places.setdefault(fate.stopped or "served", []).append(fate)
    said = []
    for place, some in places.items():
        losses = [f"{fate.loss:+.1%}" for fate in some if fate.loss is not None]
        count = f" ({len(some)} of {len(fates)})" if len(places) > 1 else ""
        said.append(place + (f", loss {', '.join(losses)}" if losses else "") + count)
    return "; ".join(said)
