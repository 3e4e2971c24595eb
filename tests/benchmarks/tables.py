"""The README's table of figures, written from results/loop.json: `make tables` puts it between the README's marks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.settings import REPOSITORY

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "loop.json"
BEGIN, END = "<!-- figures: make bench-loop, then make tables -->", "<!-- end of figures -->"

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
    """The README with the table between its marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Rewrites the README."""
    path = Path(REPOSITORY / "README.md")
    path.write_text(with_table(path.read_text()))


if __name__ == "__main__":
    sys.exit(main())
