"""The learner's tables and pictures, from results/learning.json: `make tables` writes them.

The README gets the short table, `tests/benchmarks/LEARNING.md` all of them, `results/` the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings import REPOSITORY
from tests.benchmarks.method_rows import DEFAULT, METHODS, NOTHING

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "learning.json"
PAGE = REPOSITORY / "tests" / "benchmarks" / "LEARNING.md"
BY_WEEK, AGING = RESULTS.with_name("learning-by-week.png"), RESULTS.with_name("learning-aging.png")

# figure -> (what it says, how it is written, what is wanted)
ROWS = {
    "online_retail.recall_at_20": ("Online Retail, baskets of weeks 44–53, weekly: Recall@20", "{:.3f}", "≥ 0.340"),
    "online_retail.ndcg_at_20": ("… NDCG@20", "{:.3f}", "≥ 0.315"),
    "online_retail.new_to_user_vs_item_knn": ("… items new to the customer, beside item-kNN", "{:.2f} ×", "≥ 1.5"),
    "online_retail.quality_vs_full": ("… Recall@20 beside a full retrain each week", "{:.3f} ×", "≥ 1.00"),
    "online_retail.cost_vs_full": ("… CPU-seconds of an update beside that", "{:.3f} ×", "≤ 0.03"),
    "diginetica.recall_at_20": ("DIGINETICA, ADER's protocol, unseen targets dropped: Recall@20", "{:.1f}", "≥ 51"),
    "diginetica.mrr_at_20": ("… MRR@20", "{:.1f}", "≥ 17.5"),
    "diginetica.recall_at_20_honest": ("… Recall@20 with unseen targets counted as misses", "{:.1f}", ""),
    "diginetica.cost_vs_joint": ("… CPU-seconds of an update beside joint retraining", "{:.3f} ×", "≤ 0.05"),
    "forgetting.vs_full": ("quality on windows of half a year ago beside a full retrain's", "{:.3f} ×", "≥ 0.97"),
    "new_items.vs_without_text": (
        "simulated shop, choices of new items on their first day: found, beside one without text (finds hardly any)",
        "{:.0f} ×", "≥ 5",
    ),
    "growth.cost_at_10x_catalogue": ("an update's cost when the catalogue is ten times as large", "{:.2f} ×", "≤ 1.15"),
    "growth.cost_at_10x_history": ("… when the history is", "{:.2f} ×", "≤ 1.15"),
    "growth.memory_gb_at_1m_items": ("memory for a million items of 64 dimensions, growing, GB", "{:.2f}", "≤ 2"),
    "step.vs_bare_loop": ("steps a second beside a bare TensorFlow loop of the same arithmetic", "{:.2f} ×", ""),
}
_COLUMNS = {
    "recall": ("Recall@20", "{:.4f}"), "ndcg": ("NDCG@20", "{:.4f}"), "mrr": ("MRR@20", "{:.4f}"),
    "fresh_recall": ("Recall@20 of new items", "{:.4f}"), "cpu_s_per_step": ("CPU-s a step", "{:.1f}"),
}


METHODS_PREFACE = """Each is a plain setting of [`pipeline/tasks/methods.py`](../../pipeline/tasks/methods.py) or of the
schedule, where its paper is named. One at a time beside the default update: Online Retail's weeks 44 to 53, seed 0,
each week foreseen before it is learnt. The difference is of the same baskets, its interval (95 %) over customers; the
row *with other draws* says what chance alone does, and of so many intervals one in twenty leaves 0 out by chance.
CPU is of growth and training of an update; *first model* says that the retrain was made with it too.
"""
SEARCHES_PREFACE = """The customers of a simulated shop search in their own words: these are the real searches of one
day, by models that learnt the days before, with the shop's log of searches or without. Online Retail has none: there,
fragments of titles that customers chose, none of which was taught. Lexical search is the gate's TF-IDF.
"""


CHOSEN = """What was chosen by looking: the learner's settings on weeks before 44 of Online Retail and on periods 1 to 5
of DIGINETICA, which are among its judged ones (Recall@20, mean of the periods: {late}). Weeks 44 to 53 were looked at
beside earlier ones for three constants, which say so where they stand (models/layers.py, models/blend.py,
pipeline/tasks/recommend_blend.py). Of the rivals' settings item-kNN's were chosen on weeks 36 to 43 and on period 8,
which favours it.
"""


def late_periods(tables: Mapping[str, Any]) -> str:
    """DIGINETICA's mean recall of the periods that settings were chosen on, and of those after."""
    periods = {int(period): value for period, value in tables["diginetica_by_period"]["ours"].items()}
    early, late = ([value for period, value in periods.items() if (period > 5) is after] for after in (False, True))
    return f"{sum(early) / len(early):.3f} in these and {sum(late) / len(late):.3f} in 6 to {max(periods)}"


def results() -> dict[str, Any]:
    """What `make bench-learning` wrote."""
    return json.loads(RESULTS.read_text())


def short_table() -> str:
    """The README's table."""
    figures = results()["figures"]
    lines = ["| figure | measured | wanted |", "|---|---|---|"]
    lines += [
        f"| {meaning} | {form.format(figures[name])} | {wanted} |"
        for name, (meaning, form, wanted) in ROWS.items() if name in figures
    ]
    return "\n".join(lines)


def ways_table(ways: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a way of keeping a model fresh."""
    shown = [name for name in _COLUMNS if any(name in one for one in ways.values())]
    lines = [
        "| | " + " | ".join(_COLUMNS[name][0] for name in shown) + " | by seed (Recall@20) | 95 % over users |",
        "|---|" + "---|" * (len(shown) + 2),
    ]
    for way, one in ways.items():
        values = [_COLUMNS[name][1].format(one[name]) if one.get(name) else "" for name in shown]
        seeds = ", ".join(f"{value:.4f}" for value in one["recall_by_seed"])
        low, high = one["user_interval"]
        lines.append(f"| {way} | " + " | ".join(values) + f" | {seeds} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def methods_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a method: what it gives beside the default update, what it costs, whether it is on, and why."""
    lines = ["| method | Recall@20 | difference | CPU | by default |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        if name in table:
            one = table[name]
            cost = f"{one['cpu_s']:.1f} s"
            if name == DEFAULT:
                lines.append(f"| **{name}** | {one['recall']:.4f} | | {cost} | |")
                continue
            shown = f"{name} (first model)" if method.from_base else name
            lines.append(
                f"| {shown} | {one['recall']:.4f} | {_difference(one)} | {one['cpu_s'] / one['default_cpu_s']:.2f} × | "
                f"{method.verdict(one)} |"
            )
    return "\n".join(lines)


def searches_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a way of teaching search, for each log."""
    lines = ["| log | what was learnt | Recall@20 | beside no searches | CPU of training |", "|---|---|---|---|---|"]
    for log, found in table.items():
        lines.append(f"| {log}, {found['searches']:,} searches | (lexical search) | {found['lexical']:.3f} | | |")
        lines += [
            f"| | {way} | {one['recall']:.3f} | {'' if way == NOTHING else _difference(one)} | {one['cpu_s']:.0f} s |"
            for way, one in found["ways"].items()
        ]
    return "\n".join(lines)


def judging_table(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """One line a metric and half of the steps: what it takes to tell an update from a worse one."""
    lines = [
        "| | metric | users there | users needed | updates shown to be not worse | gain | lead over never updated |",
        "|---|---|---|---|---|---|---|",
    ]
    for steps, metrics in table.items():
        lines += [
            f"| {steps} | {name} | {one['units']:.0f} | {one['units_needed']:.0f} | {one['shown_not_worse']:.0%} | "
            f"{one['gain']:+.1%} | {one['over_never_updated']:+.1%} |"
            for name, one in metrics.items()
        ]
    return "\n".join(lines)


def _difference(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def page() -> str:
    """LEARNING.md: every table, with the command that makes it."""
    found = results()
    tables = found["tables"]
    titles = {
        "online_retail": "Online Retail, weekly: next baskets of weeks 44 to 53",
        "online_retail_daily": "Online Retail, the same weeks day by day",
        "diginetica": "DIGINETICA, unseen targets dropped (joint retrain and rivals at the joint steps only)",
        "diginetica_honest": "DIGINETICA, unseen targets counted as misses (the same)",
        "diginetica_at_joint_steps": "DIGINETICA, where joint retraining was made, same sessions, unseen dropped",
    }
    measured = ", ".join(
        f"{name} `{part['commit'][:10]}`"
        + (f" (SASRec `{part['SASRec_commit'][:10]}`)" if "SASRec_commit" in part else "")  # a rival measured once
        for name, part in sorted(found["parts"].items())
    )
    parts = [
        "# What the learner reaches\n",
        "Written by `make bench-learning` and `make tables` from [results/learning.json](results/learning.json); the "
        "protocols are in [protocols/](protocols). CPU-seconds are of growth and training in a warm process. Parts and "
        f"the commits that they measured: {measured}.\n",
        "Of Online Retail's seeds the first goes through the gate, as in service: updates that it holds are learnt "
        "later. The others are updated every week. A figure is the mean over examples, its interval a bootstrap over "
        "users who weigh alike, whatever they buy: where busy users are foreseen better, a figure lies above it.\n",
        CHOSEN.format(late=late_periods(tables)),
        "## Figures and what is wanted\n", short_table(), "",
    ]
    for name, title in titles.items():
        if name in tables:
            parts += [f"## {title}\n", ways_table(tables[name]), ""]
        if name == "online_retail" and BY_WEEK.exists():
            parts += [f"![Recall@20 by week](results/{BY_WEEK.name})\n"]
    if "judging" in tables:
        title = "## What the gate can tell, by metric (weekly updates of Online Retail)\n"
        parts += [title, judging_table(tables["judging"]), ""]
    if "methods" in tables:
        title = "## Methods of the field, each beside the default update (Online Retail, weekly)\n"
        parts += [title, METHODS_PREFACE, methods_table(tables["methods"]), ""]
    if "searches" in tables:
        parts += ["## Search without a log of searches\n", SEARCHES_PREFACE, searches_table(tables["searches"]), ""]
    if AGING.exists():
        parts += ["## Aging\n", f"![Aging](results/{AGING.name})\n"]
    rest = {name: tables[name] for name in (
        "online_retail_served", "diginetica_cost", "forgetting", "new_items", "growth", "step"
    ) if name in tables}
    parts += ["## The rest, as measured\n", "```json", json.dumps(rest, indent=1), "```", ""]
    return "\n".join(parts)


def draw() -> None:
    """The pictures."""
    tables = results()["tables"]
    if "online_retail_by_week" in tables:
        chosen = ("ours", "full retrain", "never updated", "new data only", "most bought", "item-kNN", "ALS", "SASRec")
        weekly = tables["online_retail_by_week"]
        lines = {name: weekly[name] for name in chosen if name in weekly}
        _picture(
            BY_WEEK, {name: ([int(week) for week in one], list(one.values())) for name, one in lines.items()},
            "week", "Recall@20", "Next baskets of Online Retail, each week foreseen before it is learnt",
        )
    if "aging" in tables:
        rows = tables["aging"]
        shares = {
            "never updated, beside updated weekly": [
                (row["weeks"], row["never updated"] / row["ours"]) for row in rows],
            "updated weekly since its one full training, beside a fresh full retrain": [
                (row["weeks"], row["ours"] / row["full retrain"]) for row in rows if "full retrain" in row],
        }
        _picture(
            AGING, {name: tuple(zip(*points, strict=True)) for name, points in shares.items()},
            "weeks since the last update / the last full retrain", "share of Recall@20", "Aging on Online Retail",
        )


def _picture(path: Path, lines: Mapping[str, Sequence[Any]], across: str, up: str, title: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=110)
    for name, (places, values) in lines.items():
        axes.plot(places, values, marker="o", markersize=3, linewidth=2.2 if name == "ours" else 1.3, label=name)
    axes.set(xlabel=across, ylabel=up, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Draws the pictures and writes the page."""
    draw()
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
