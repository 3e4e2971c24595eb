"""The tables of figures of the README and of the tasks' page, from results/: `make tables` puts them between marks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.settings import REPOSITORY
from tests.benchmarks import learning_tables

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "loop.json"
BEGIN, END = "<!-- figures: make bench-loop, then make tables -->", "<!-- end of figures -->"
TASKS = RESULTS.with_name("tasks.json")
TASKS_PAGE = REPOSITORY / "pipeline" / "docs" / "tasks.md"
TASKS_BEGIN, TASKS_END = "<!-- tasks: make bench-tasks, then make tables -->", "<!-- end of tasks -->"
LEARNING_BEGIN, LEARNING_END = "<!-- learning: make bench-learning, then make tables -->", "<!-- end of learning -->"

# figure -> (what it says, how it is written, what is wanted)
ROWS = {
    "ingest.rows_per_s": ("ingest of one window of a million events, checks included, rows a second", "{:,.0f}", ""),
    "ingest.vs_bare_read": ("… beside DuckDB merely reading the same files (1 would be as fast)", "{:.2f}", "≥ 0.2"),
    "checks.vs_bare_read": ("its checks alone, beside reading the rows from Parquet", "{:.2f}", ""),
    "freshness.seconds": ("from a landed hour of 100,000 events until the champion has moved, s", "{:.0f}", "≤ 90"),
    "recommend.vs_matmul": ("one request over 100,000 items, beside numpy's product and top-k", "{:.2f} ×", "≤ 2"),
    "run.seconds": ("`make run` after set-up, s", "{:.0f}", "≤ 480"),
    "test.seconds": ("`make test` after set-up, s", "{:.0f}", "≤ 300"),
}
TASK_ROWS = {
    "demand.wape": ("Online Retail, items that sell every week, ten weeks: WAPE of the week ahead", "{:.3f}", ""),
    "demand.wape_vs_best_baseline": ("… beside the best baseline (trees on the same features)", "{:.3f} ×", "≤ 0.90"),
    "demand.wape_vs_compound_poisson": ("… beside a compound Poisson median, which learns nothing", "{:.3f} ×", ""),
    "demand.wape_without_price_head": ("… of the same network that learns no prices", "{:.3f}", ""),
    "demand.wape_moving_average": ("… of the mean of the last four weeks", "{:.3f}", ""),
    "demand.wape_seasonal_naive": ("… of the last week again", "{:.3f}", ""),
    "demand.coverage_80": ("… share of the truths in the 80 % interval", "{:.3f}", "0.78 to 0.82"),
    "price.rank_correlation": ("simulated shop: rank correlation with the true elasticities", "{:.2f}", "≥ 0.8"),
    "price.optimum_inside": ("… true best price inside the advised range", "{:.2f}", "≥ 0.8"),
    "price.range_width_vs_rails": ("… width of that range, of all that the guard rails allow", "{:.2f}", ""),
    "price.no_advice_online_retail": ("Online Retail: items for which there is no advice on price", "{:.2f}", ""),
}

MESSAGES_BEGIN, MESSAGES_END = "<!-- messages: make bench-tasks, then make tables -->", "<!-- end of messages -->"
MESSAGES_ROWS = {
    "support.accuracy": ("banking77, 77 intents in 8 steps: accuracy after the last", "{:.3f}", "≥ 0.93"),
    "support.gap_to_joint": ("… points below training on all at once", "{:.2f}", "≤ 1"),
    "support.cost_vs_joint": ("… CPU-seconds of an update beside that", "{:.2f} ×", "≤ 0.25"),
    "support.calibration_error": ("… expected calibration error", "{:.3f}", ""),
    "support.answered_share": ("… share answered without a person", "{:.2f}", ""),
    "support.answered_precision": ("… of those right", "{:.3f}", "≥ 0.95"),
    "support.tfidf_accuracy": ("… TF-IDF with logistic regression on all at once", "{:.3f}", ""),
    "sentiment.f1_gap": ("clothing reviews, a tenth labelled: points of macro-F1 below all labels", "{:.1f}", "≤ 2"),
    "sentiment.f1_tenth": ("… a tenth labelled: macro-F1 of rating and recommendation, one network", "{:.1f}", ""),
    "sentiment.f1_tenth_heads_apart": ("… a network for each of the two", "{:.1f}", ""),
    "sentiment.teaching_cpu_s": ("… CPU-seconds in which reviews teach the text encoder", "{:.0f}", ""),
    "sentiment.heads_apart_cost": ("… CPU-seconds of two networks beside one", "{:.2f} ×", ""),
    "sentiment.f1_tenth_asked_for": ("… the tenth that the model asks for, first seed", "{:.1f}", ""),
    "sentiment.f1_tenth_first_seed": ("… a tenth by chance, first seed", "{:.1f}", ""),
    "sentiment.false_alarms_per_year": ("surge alert, simulated: false alarms a year", "{:.2f}", "≤ 1"),
    "sentiment.windows_to_alarm": ("… windows until a doubled share is found, 100 messages an hour", "{:.1f}", "≤ 3"),
    "sentiment.windows_to_alarm_30": ("… 30 messages an hour", "{:.1f}", ""),
}


README_ROWS = {  # what has a target, and what a reader would doubt without
    name: row for name, row in (TASK_ROWS | MESSAGES_ROWS).items()
    if row[2] or name in ("demand.wape", "demand.wape_vs_compound_poisson", "support.answered_share")
}


def table(results: Path = RESULTS, rows: Mapping[str, tuple[str, str, str]] = ROWS) -> str:
    """A table as Markdown: those of `rows` that `results` holds."""
    result = json.loads(results.read_text())
    lines = ["| figure | measured | wanted |", "|---|---|---|"]
    for name, (meaning, form, wanted) in rows.items():
        if name in result["figures"]:
            lines.append(f"| {meaning} | {form.format(result['figures'][name])} | {wanted} |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with the tables between their marks."""
    readme = _between(readme, BEGIN, END, table())
    readme = _between(readme, TASKS_BEGIN, TASKS_END, table(TASKS, README_ROWS))
    return _between(readme, LEARNING_BEGIN, LEARNING_END, learning_tables.short_table())


def with_tasks_tables(page: str) -> str:
    """The page of the further tasks with its two tables, which have every figure, between their marks."""
    page = _between(page, TASKS_BEGIN, TASKS_END, table(TASKS, TASK_ROWS))
    return _between(page, MESSAGES_BEGIN, MESSAGES_END, table(TASKS, MESSAGES_ROWS))


def _between(text: str, begin: str, end: str, inside: str) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n{inside}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Rewrites the README and the pages of the learner and the tasks, and draws the learner's pictures."""
    learning_tables.main()
    path = Path(REPOSITORY / "README.md")
    path.write_text(with_table(path.read_text()))
    TASKS_PAGE.write_text(with_tasks_tables(TASKS_PAGE.read_text()))


if __name__ == "__main__":
    sys.exit(main())
