"""The learner's figures, written to results/learning.json: `make bench-learning`.

Each part lands a real log in a lake and lets several ways of keeping a model fresh foresee it step by step, before they
learn it (tests/benchmarks/lineage.py, side_by_side.py). Costs are CPU-seconds of all threads, without the compilation
of the step that each process does once (measured and written down). A log of one's own is named by its mapping, as for
`make run`, in the place of a part (`PARTS=myshop.toml DATA=log.csv`); its results are written beside that file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.settings import REPOSITORY
from pipeline.sources import SourceError
from pipeline.sources.shop import ShopSize
from tests.benchmarks.learning_judging import judging_metrics
from tests.benchmarks.learning_methods import compare
from tests.benchmarks.learning_searches import SEARCHED_SHOP, fragments_held_out, searches_withheld
from tests.benchmarks.lineage import Lineage, Step, WithoutText, judged, measured_compilation
from tests.benchmarks.rivals_on_log import rival_answers
from tests.benchmarks.shop_log import Protocol, ProtocolError, ShopLog
from tests.benchmarks.side_by_side import (
    Figures,
    answered,
    as_text,
    baseline_scores,
    by_step,
    judged_steps,
    mean_learning,
    mean_of,
    recall,
    say,
    side_by_side,
    summary,
)

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "learning.json"
SEEDS = (0, 1, 2)
# DIGINETICA on two cores: joint retraining costs minutes a step and ranking 43,000 items for every prefix another half
# hour a way, so it is retrained at these steps and judged on this share of the sessions, the same ones for every way.
JOINT_STEPS = (8, 16)
SESSIONS_SHARE = 0.25
# Four times the demo's catalogue, so that twenty places are one in a hundred; two new items an hour, for three days.
NEW_ITEMS_SHOP = ShopSize(items=2_000, history_days=14, history_events=150_000, hours=72, launches_per_hour=2)

Part = tuple[Figures, dict[str, Any]]


def online_retail(seeds: Sequence[int]) -> Part:
    """Next baskets of weeks 44 to 53: all ways side by side."""
    with landed("online_retail", seeds[0]) as shop:
        figures, tables, ours = side_by_side(shop, seeds)
        forgotten = forgetting(shop, ours, shop.steps_from(0)[-1])
    return {**figures, "forgetting.vs_full": forgotten["ratio"]}, {**tables, "forgetting": forgotten}


def own(file: str, data: Path | None, seeds: Sequence[int]) -> Part:
    """The same ways on a log of one's own, which a mapping or a protocol file describes."""
    with landed(file, seeds[0], data=data) as shop:
        figures, tables, _ = side_by_side(shop, seeds)
        learnt = shop.protocol
    print(f"\n{as_text(tables[learnt.name])}\n")
    return figures, tables | {"protocol": {
        "log": learnt.data.name, "from": learnt.origin.isoformat(), "step_days": learnt.step_days,
        "judged_steps": [learnt.first_test_step, learnt.last_test_step],
    }}


def daily(seeds: Sequence[int]) -> Part:
    """The same weeks, learnt day by day."""
    with landed("online_retail", seeds[0], days=1) as shop:
        compilation = measured_compilation(shop, -1)
        lineage = Lineage(shop, shop.task.update_schedule, seeds[0]).begin(-1)
        never = lineage.copy()
        frames: dict[str, list[pd.DataFrame]] = {"ours": [], "never updated": [], "most bought": []}
        for step in judged_steps(shop, 0):
            if len(step.examples):
                frames["ours"].append(answered(step, lineage.learner))
                frames["never updated"].append(answered(step, never.learner))
                frames["most bought"].append(baseline_scores(shop, step))
            lineage.update(step.number)
        days = list(lineage.costs)[1:]
    table = {name: summary([pd.concat(one)]) for name, one in frames.items()}
    table["ours"]["cpu_s_per_step"] = mean_learning(lineage, days, compilation)
    return {"online_retail.daily_recall_at_20": table["ours"]["recall"]}, {"online_retail_daily": table}


def diginetica(seeds: Sequence[int]) -> Part:
    """ADER's protocol, periods 1 to 16, on SESSIONS_SHARE of the sessions (EVERGREEN_BENCH_SHARE=1: on all)."""
    share = float(os.environ.get("EVERGREEN_BENCH_SHARE", SESSIONS_SHARE))
    with landed("diginetica", seeds[0]) as shop:
        first = shop.protocol.first_test_step
        schedule = shop.task.update_schedule
        alone = replace(schedule, replay_ratio=0.0, least_replayed=0, filled_up_to=0)
        compilation = measured_compilation(shop, first - 1)
        ours = [Lineage(shop, schedule, seed).begin(first - 1) for seed in seeds]
        ways: dict[str, list[Lineage]] = {
            "ours": ours, "never updated": [ours[0].copy()], "new data only": [ours[0].copy(alone)],
        }
        frames: dict[str, list[list[pd.DataFrame]]] = {name: [[] for _ in way] for name, way in ways.items()}
        frames |= {"joint retrain": [[]]}
        joint = Lineage(shop, schedule, seeds[0])
        known = shop.items_before(first)
        for number in shop.steps_from(first):
            step = Step.of(shop, number, known, share)
            for name, lineages in ways.items():
                for place, lineage in enumerate(lineages):
                    frames[name][place].append(answered(step, lineage.learner, fresh=False))
            if number in JOINT_STEPS:
                joint.begin(number - 1)
                frames["joint retrain"][0].append(answered(step, joint.learner, fresh=False))
                for name, (answers, _, _) in rival_answers(shop, step).items():
                    frames.setdefault(name, [[]])[0].append(judged(step, answers))
            for lineage in (*ours, *ways["new data only"]):
                lineage.update(number)
            newest = frames["ours"][0][-1]
            say(f"diginetica, period {number}: ours {newest.loc[~newest['unseen'], 'recall'].mean():.4f}")
        pooled = {name: [pd.concat(one) for one in runs] for name, runs in frames.items()}
        learnt = [number - 1 for number in JOINT_STEPS]
        cost = {
            "ours": float(np.mean([mean_learning(one, learnt, compilation) for one in ours])),
            "joint retrain": mean_learning(joint, learnt, compilation),
        }
    compared = {
        name: [one[one["step"].isin(JOINT_STEPS)] for one in runs] for name, runs in pooled.items()
    }
    dropped = {name: [one[~one["unseen"]] for one in runs] for name, runs in pooled.items()}
    figures = {
        "diginetica.recall_at_20": mean_of(dropped["ours"], "recall"),
        "diginetica.mrr_at_20": mean_of(dropped["ours"], "mrr"),
        "diginetica.recall_at_20_honest": mean_of(pooled["ours"], "recall"),
        "diginetica.cost_vs_joint": cost["ours"] / cost["joint retrain"],
    }
    return {name: 100 * value if "_at_20" in name else value for name, value in figures.items()}, {
        "diginetica": {name: summary([one[~one["unseen"]] for one in runs]) for name, runs in pooled.items()},
        "diginetica_honest": {name: summary(runs) for name, runs in pooled.items()},
        "diginetica_at_joint_steps": {
            name: summary([one[~one["unseen"]] for one in runs]) for name, runs in compared.items()
        },
        "diginetica_cost": {**cost, "compilation_cpu_s": compilation, "joint_passes": joint.passes},
        "diginetica_by_period": {"ours": by_step(dropped["ours"])},
    }


def forgetting(shop: ShopLog, ours: Sequence[Lineage], last: int) -> dict[str, Any]:
    """Quality on the windows of half a year ago, after all updates, beside a full retrain that has learnt the same."""
    full = Lineage(shop, shop.task.update_schedule, ours[0].seed).begin(last)
    old = [Step.of(shop, number, shop.items_before(number)) for number in shop.steps_from(last - 26)[:4]]
    ours_recall = [float(np.mean(pd.concat([answered(step, one.learner) for step in old])["recall"])) for one in ours]
    full_recall = float(np.mean(pd.concat([answered(step, full.learner) for step in old])["recall"]))
    weeks = [step.number for step in old]
    ratio = float(np.mean(ours_recall)) / full_recall
    return {"weeks": weeks, "ours": ours_recall, "full": full_recall, "ratio": ratio}


def new_items(seeds: Sequence[int]) -> Part:
    """Items on the day that they appear: the model knows their title, and nobody has chosen them yet.

    On the simulated shop, where new items are searched for and bought from their first hour; in Online Retail's next
    baskets nobody could foresee an item without a single sale.
    """
    runs: dict[str, list[tuple[int, float]]] = {"with text": [], "without text": []}
    for seed in seeds:
        with simulated(seed) as shop:
            first = shop.protocol.first_test_step
            for name, counted in runs.items():
                task = shop.task if name == "with text" else WithoutText(shop.task)
                lineage = Lineage(replace_task(shop, task), shop.task.update_schedule, seed).begin(shop.before(first))
                hits, targets = 0.0, 0
                for number in shop.steps_from(first):
                    found, wanted = lineage.on_first_day(number)
                    hits, targets = hits + found, targets + wanted
                    lineage.update(number)
                counted.append((targets, hits / targets))
                say(f"new items, {name}, seed {seed}: {hits / targets:.4f} of {targets}")
    means = {name: float(np.mean([recall for _, recall in one])) for name, one in runs.items()}
    floor = 0.5 / min(targets for targets, _ in runs["with text"])  # nothing found at all counts as half a hit
    ratio = means["with text"] / max(means["without text"], floor)
    return {"new_items.vs_without_text": ratio}, {"new_items": {
        **means, "targets": [targets for targets, _ in runs["with text"]],
        "by_seed": {name: [recall for _, recall in one] for name, one in runs.items()},
        "items": NEW_ITEMS_SHOP.items,
    }}


def aging(seeds: Sequence[int]) -> Part:
    """Quality against the weeks since the last update, and since the last full retrain."""
    with landed("online_retail", seeds[0]) as shop:
        first = shop.protocol.first_step
        ours = Lineage(shop, shop.task.update_schedule, seeds[0]).begin(first - 1)
        never = ours.copy()
        rows = []
        for step in judged_steps(shop, first):
            row = {"weeks": step.number - first, "ours": recall(step, ours), "never updated": recall(step, never)}
            if step.number > first and (step.number - first) % 4 == 0:
                full = Lineage(shop, ours.schedule, seeds[0]).begin(shop.before(step.number))
                row["full retrain"] = recall(step, full)
            rows.append(row)
            ours.update(step.number)
            say(f"aging, {row}")
    return {}, {"aging": rows}


def judging(seeds: Sequence[int]) -> Part:
    """How many users the gate needs by several metrics, on Online Retail's weekly updates."""
    with landed("online_retail", seeds[0]) as shop:
        halves = shop.protocol.first_test_step
        return {}, {"judging": judging_metrics(shop, halves - 10, halves, seeds[0])}


def methods(seeds: Sequence[int]) -> Part:
    """Each method of the field beside the default update, on Online Retail's weeks.

    A row is written when it is finished, and taken as it is by another run of the same code and seeds.
    EVERGREEN_BENCH_METHODS (names, by semicolons) asks for some alone.
    """
    wanted = [name for name in os.environ.get("EVERGREEN_BENCH_METHODS", "").split(";") if name]
    done = json.loads(RESULTS.read_text())["tables"].get("methods", {}) if RESULTS.exists() else {}
    started, commit = time.monotonic(), commit_of_code()

    def keep(rows: Mapping[str, Any]) -> None:
        write({}, {"methods": rows}, "methods", seeds, time.monotonic() - started)
        newest = max(rows, key=lambda name: rows[name]["done"])
        say(f"methods, {newest}: {rows[newest]['recall']:.4f}")

    with landed("online_retail", seeds[0]) as shop:
        steps = judged_steps(shop, shop.protocol.first_test_step)
        return {}, {"methods": compare(shop, steps, seeds, done, wanted, commit, keep)}


def searches(seeds: Sequence[int]) -> Part:
    """What searches made of titles give where no log has any: a simulated shop's real ones, Online Retail's titles."""
    with simulated(seeds[0], SEARCHED_SHOP) as shop:
        withheld = searches_withheld(shop, seeds[0])
        say(f"searches withheld: {json.dumps(withheld)}")
    with landed("online_retail", seeds[0]) as shop:
        step = judged_steps(shop, shop.protocol.first_test_step)[0]
        held_out = fragments_held_out(shop, step, seeds[0])
    return {}, {"searches": {"simulated shop": withheld, "Online Retail": held_out}}


def growth(seeds: Sequence[int]) -> Part:
    """What an update costs as catalogue and history grow, memory, and where sampling begins to pay."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_growth"], check=True, capture_output=True, text=True,
        cwd=REPOSITORY,
    ).stdout
    found = json.loads(answer[answer.index("{"):])
    return {name: value for name, value in found.items() if name.startswith("growth.")}, {"growth": found}


def step(seeds: Sequence[int]) -> Part:
    """Steps a second of the training loop beside a bare TensorFlow loop of the same arithmetic."""
    from tests.benchmarks.lineage import measured_steps

    with landed("online_retail", seeds[0]) as shop:
        found = measured_steps(shop, shop.before(shop.protocol.first_test_step), seeds[0])
    return {"step.vs_bare_loop": found["vs_bare_loop"]}, {"step": found}


PARTS: Mapping[str, Callable[[Sequence[int]], Part]] = {
    "online_retail": online_retail, "diginetica": diginetica, "new_items": new_items, "growth": growth, "step": step,
    "aging": aging, "judging": judging, "methods": methods, "searches": searches, "daily": daily,
}


@contextmanager
def landed(name: str, seed: int, days: int | None = None, data: Path | None = None) -> Iterator[ShopLog]:
    """The data set's log in a lake (kept for other parts below EVERGREEN_BENCH_HOME), with a registry of its own."""
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        protocol = Protocol.read(name, data)
        kept = protocol.name if days is None else f"{protocol.name}-{days}d"
        home = Path(os.environ.get("EVERGREEN_BENCH_HOME", folder)) / kept
        if not (home / "versions.json").is_file():
            say(f"{protocol.name}: landing the log")
        for table in ("decisions", "quality"):  # of an earlier run: they belong to its registry, which is gone
            shutil.rmtree(home / "lake" / table, ignore_errors=True)
        shop = ShopLog.land(protocol, home, seed, days=days)
        yield replace(shop, settings=replace(shop.settings, tracking_uri=f"sqlite:///{folder}/mlflow.db"))


@contextmanager
def simulated(seed: int, size: ShopSize = NEW_ITEMS_SHOP) -> Iterator[ShopLog]:
    """A simulated shop, day by day after its history; its customers differ with the seed."""
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        say(f"simulated shop {seed}: landing its hours")
        yield ShopLog.simulated(Path(folder), seed, size)


def replace_task(shop: ShopLog, task: Any) -> ShopLog:
    """The same log, learnt by another task."""
    other = ShopLog(shop.protocol, shop.settings, shop.versions)
    other.__dict__["task"] = task
    return other


@cache
def commit_of_code() -> str:
    """The commit that is checked out when it is first asked for."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    return asked.stdout.strip()


def write(
    figures: Figures, tables: Mapping[str, Any], part: str, seeds: Sequence[int], seconds: float,
    results: Path = RESULTS,
) -> None:
    """Puts a part's figures into the results, beside those of the other parts."""
    result = json.loads(results.read_text()) if results.exists() else {"figures": {}, "tables": {}, "parts": {}}
    commit = commit_of_code()
    result |= {"commit": commit, "seeds": list(SEEDS), "machine": f"{os.cpu_count()} x {platform.machine()}"}
    result["protocol"] = tables.get("protocol") or {
        "online_retail": "protocols/online_retail.toml", "diginetica": "protocols/diginetica.toml",
        "joint_steps": list(JOINT_STEPS), "diginetica_share_of_sessions": SESSIONS_SHARE,
        "cost": "CPU-seconds of growth and training in a warm process; lessons, scoring and compilation are apart",
    }
    result["parts"][part] = {
        "commit": commit, "seeds": list(seeds), "seconds": round(seconds),
        "load": [round(one, 1) for one in os.getloadavg()],
    }
    result["figures"] = dict(sorted({**result["figures"], **figures}.items()))
    result["tables"] = {**result["tables"], **tables}
    results.parent.mkdir(exist_ok=True)
    unfinished = results.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=1, default=float) + "\n")
    os.replace(unfinished, results)


def main() -> None:
    """Runs the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", type=_part,
        help=f"what to measure, of {', '.join(PARTS)} (default: all), or a log of one's own by its mapping (.toml)",
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="that log")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    chosen = parser.parse_args()
    for part in chosen.parts or list(PARTS):
        started = time.monotonic()
        known = part in PARTS
        results = RESULTS if known else Path(part).with_suffix(".results.json")
        try:
            figures, tables = PARTS[part](chosen.seeds) if known else own(part, chosen.data, chosen.seeds)
        except (ProtocolError, SourceError) as error:
            parser.error(str(error))
        write(figures, tables, Path(part).stem, chosen.seeds, time.monotonic() - started, results)
        say(f"{json.dumps(figures)} in {results}")


def _part(word: str) -> str:
    if word not in PARTS and not word.endswith(".toml"):
        raise argparse.ArgumentTypeError(
            f"{word!r} must be one of {', '.join(PARTS)}, or the mapping of a log of one's own (myshop.toml)"
        )
    return word


if __name__ == "__main__":
    main()
