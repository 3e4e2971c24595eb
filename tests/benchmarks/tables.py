"""The README's tables of figures, from results/: `make tables` puts them between the README's marks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.settings import REPOSITORY
from tests.benchmarks import learning_tables

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "loop.json"
BEGIN, END = "<!-- figures: make bench-loop, then make tables -->", "<!-- end of figures -->"
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


def table() -> str:
    """The table as Markdown."""
    result = json.loads(RESULTS.read_text())
    lines = ["| figure | measured | wanted |", "|---|---|---|"]
    for name, (meaning, form, wanted) in ROWS.items():
        if name in result["figures"]:
            lines.append(f"| {meaning} | {form.format(result['figures'][name])} | {wanted} |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with the tables between their marks."""
    readme = _between(readme, BEGIN, END, table())
    return _between(readme, LEARNING_BEGIN, LEARNING_END, learning_tables.short_table())


def _between(text: str, begin: str, end: str, inside: str) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n{inside}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Rewrites the README and the learner's page, and draws its pictures."""
    learning_tables.main()
    path = Path(REPOSITORY / "README.md")
    path.write_text(with_table(path.read_text()))


if __name__ == "__main__":
    sys.exit(main())
