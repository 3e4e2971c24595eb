"""The learner's tables and pictures, from results/learning.json: `make tables` writes them.

The README gets the short table, `tests/benchmarks/LEARNING.md` all of them, `results/` the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings import REPOSITORY

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


METHODS_PREFACE = """Each is a plain setting of `pipeline/tasks/contract.py` (`Schedule`, `Methods`), where its paper is
named. Differences of less than about 0.003 in Recall@20 are within what another seed changes; what does not pay beyond
that stays off.
"""
METHOD_NOTES = {
    "no replay": "replay is on: it is what keeps an update from forgetting",
    "replay: twice as much": "half as many as new ones, at least 512",
    "dropout 0": "on: 0.4", "dropout 0.2": "on: 0.4",
    "no early stopping, 4 passes": "off: one pass is as good as two, and nothing is left to stop",
    "learning rate / 10": "2e-3", "learning rate by trials": "off: dearer than what it finds",
}


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
    """One line a method: what it changes against the default update, in Recall@20, NDCG@20, new items and cost."""
    default = table["default"]
    lines = [
        "| method | Recall@20 | NDCG@20 | Recall@20 of new items | CPU | by default |", "|---|---|---|---|---|---|",
        "| **the default update** | {recall:.4f} | {ndcg:.4f} | {fresh_recall:.4f} | {cpu_s_per_step:.1f} s | |".format(
            **default),
    ]
    for name, one in table.items():
        if name != "default":
            changes = [f"{one[metric] - default[metric]:+.4f}" for metric in ("recall", "ndcg", "fresh_recall")]
            cost = f"{one['cpu_s_per_step'] / default['cpu_s_per_step']:.2f} ×"
            lines.append(f"| {name} | " + " | ".join(changes) + f" | {cost} | {METHOD_NOTES.get(name, 'off')} |")
    return "\n".join(lines)


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
    parts = [
        "# What the learner reaches\n",
        "Written by `make bench-learning` and `make tables` from [results/learning.json](results/learning.json); the "
        f"protocols are in [protocols/](protocols). Commit `{found['commit'][:10]}`. CPU-seconds are of growth and "
        "training in a warm process.\n",
        "## Figures and what is wanted\n", short_table(), "",
    ]
    for name, title in titles.items():
        if name in tables:
            parts += [f"## {title}\n", ways_table(tables[name]), ""]
        if name == "online_retail" and BY_WEEK.exists():
            parts += [f"![Recall@20 by week](results/{BY_WEEK.name})\n"]
    if "methods" in tables:
        title = "## Methods of the field, each beside the default update (Online Retail, weekly)\n"
        parts += [title, METHODS_PREFACE, methods_table(tables["methods"]), ""]
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
