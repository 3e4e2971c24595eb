"""Where bad input ends: every case lands beside good rows, goes through the real ingest, and each row is accounted for.

What was offered is counted where the case is made, not by the program: a row or a file that is no table counts one.
Each case gets an installation of its own. Beside the figures this writes the table `SECURITY.md`.
"""

from __future__ import annotations

import gzip
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.quality import WindowStopped
from tests.benchmarks.bench_trust import RESULTS, Measured
from tests.landed import WINDOW, csv_lines, event, json_lines, packed, parquet, put, settings_of
from tests.test_bad_input import CASES, cut_gzip, noise

GOOD = 30
TABLE = RESULTS.with_name("SECURITY.md")
_MIB = 1 << 20
_UNKNOWN = -1  # noise has as many rows as it happens to have line ends: the program's own count is taken

ELSEWHERE = (  # what is tried by tests, where the answer is yes or no and not a place for a row
    ("raw user and session ids, e-mail addresses and phone numbers in every file of an installation that has ingested, "
     "retrained, updated, promoted, served, watched and told lineage", "none found", "test_nothing_raw.py"),
    ("masking key, API key and a webhook's address in the same files and in all that the processes print",
     "none found", "test_nothing_raw.py"),
    ("a pickle loaded by retrain, update, promotion or server, with a class of this project or of the registry",
     "none", "test_nothing_raw.py"),
    ("a pickle loaded by a consumer in an empty environment", "none", "test_consumers.py"),
    ("pickles and a forged Arrow type in the landing zone", "none loaded", "test_hostile_files.py"),
    ("secrets in `repr` of settings, keys and installation; modes of the secret files", "none shown; 0600",
     "test_installation.py"),
    ("secrets in supervisord's configuration", "none", "test_installation.py"),
    ("a webhook's address in what is printed when it refuses", "not printed", "test_alerts.py"),
    ("requests that are too long, too many, malformed, or without a key", "413, 429, 422, 401", "test_serving.py"),
)


@dataclass(frozen=True)
class Ended:
    """Where the rows of a case went.

    Attributes:
        case: its name.
        offered: rows and files that are none, without the good rows beside them.
        published, quarantined, duplicates: of these.
        reasons: of the quarantine, or the rule that stopped the window.
        stopped: the window was refused as a whole; its files lie where they were.
    """

    case: str
    offered: int
    published: int
    quarantined: int
    duplicates: int
    reasons: tuple[str, ...]
    stopped: bool = False

    @property
    def lost(self) -> int:
        """Rows that are nowhere."""
        return 0 if self.stopped else self.offered - self.published - self.quarantined - self.duplicates


def measure() -> Measured:
    """How many bad inputs were tried (`bad_inputs.tried`) and how many rows of them are nowhere."""
    tried: dict[str, Callable[[Path], int]] = {
        **{name: _of_test(*CASES[name]) for name in CASES}, **_files(), **_names_and_links(), **_bombs(), **_code()
    }
    ended = [_run(name, lay) for name, lay in tried.items()]
    TABLE.write_text(_table(ended))
    lost = sum(abs(one.lost) for one in ended)
    return Measured(
        {"bad_inputs.tried": len(ended), "bad_inputs.lost": lost}, (0,),
        f"each case beside {GOOD} good rows through the real ingest in a home of its own; lost: rows offered less "
        "published, quarantined and duplicates, a window that is stopped by name losing none",
    )


def _run(case: str, lay: Callable[[Path], int]) -> Ended:
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        settings = settings_of(Path(folder) / "home")
        landing = Path(settings.landing)
        put(landing, "good.jsonl", json_lines(*(event(1000 + number) for number in range(GOOD))))
        offered = lay(landing)
        try:
            ingest([WINDOW], settings, report=lambda _: None, feeds=["events"])
        except WindowStopped as stopped:
            return Ended(case, max(offered, 0), 0, 0, 0, tuple(one.rule for one in stopped.breaches), stopped=True)
        lake = open_lake(settings)
        [log] = [row for row in lake.window_log().to_pylist() if row["feed"] == "events"]
        reasons = Counter(lake.arrow("quarantine")["reason"].to_pylist())
        published = len(lake.arrow("events")) - GOOD
        offered = log["rows_in"] - GOOD if offered == _UNKNOWN else offered
    print(f"{case}: {offered} offered, {published} published, {dict(reasons)}", flush=True)
    return Ended(case, offered, published, sum(reasons.values()), log["duplicates"], tuple(sorted(reasons)))


def _put(name: str, content: bytes, offered: int) -> Callable[[Path], int]:
    def lay(landing: Path) -> int:
        put(landing, name, content)
        return offered

    return lay


def _of_test(name: str, content: bytes, _: set[str], passed: int, refused: int) -> Callable[[Path], int]:
    return _put(name, content, _UNKNOWN if refused < 0 else passed + refused)


def _files() -> dict[str, Callable[[Path], int]]:
    many = [event(number, event_type="stare") for number in range(200)]
    return {
        "a truncated gzip": _put("a.jsonl.gz", cut_gzip(), _UNKNOWN),
        "a CSV without a header": _put("a.csv", csv_lines(event(1), event(2), event(3)).split(b"\n", 1)[1], 3),
        "a CSV in UTF-16": _put("a.csv", csv_lines(event(1), event(2)).decode().encode("utf-16"), _UNKNOWN),
        "a quote that is never closed": _put(
            "a.csv", b'event_type,event_time,query\nsearch,2026-01-05T13:10:00Z,"red\n', 1
        ),
        "a key that comes twice": _put("a.jsonl", b'{"event_type": "view", "event_type": "cart"}\n', 1),
        "the same row twice": _put("a.jsonl", json_lines(event(1), event(1)), 2),
        "a price of 100,000 digits": _put("a.jsonl", json_lines(event(1)).replace(b"3.5", b"9" * 100_000), 1),
        "a ZIP archive called gzip": _put("a.csv.gz", b"PK\3\4" + noise(11), 1),
        "gzip inside gzip": _put("a.jsonl.gz", gzip.compress(gzip.compress(json_lines(event(1)))), _UNKNOWN),
        "noise that outweighs the good rows": _put("a.jsonl", noise(12) * 50, _UNKNOWN),
        "an hour of unknown event types": _put("a.jsonl", json_lines(*many), len(many)),
        "an e-mail address and a phone number in a search": _put(
            "a.jsonl", json_lines(event(1, event_type="search", query="lamp for ann@mail.example +49 30 1234567")), 1
        ),
    }


def _names_and_links() -> dict[str, Callable[[Path], int]]:
    row = json_lines(event(1))

    def link(name: str, target: str) -> Callable[[Path], int]:
        def lay(landing: Path) -> int:
            (landing / "events" / WINDOW.folder / name).symlink_to(target)
            return 1

        return lay

    def both(landing: Path) -> int:
        return link("a", ".")(landing) + link("b", ".")(landing)

    def pipe(landing: Path) -> int:
        os.mkfifo(landing / "events" / WINDOW.folder / "pipe.jsonl")
        return 1

    return {
        "a name with a line end and terminal codes": _put("a\n2026 all is well\x1b[2J.jsonl", row, 1),
        "a name that is no UTF-8": _put(os.fsdecode(b"a\xff.jsonl"), row, 1),
        "a name that turns its own letters round": _put("a\u202elnosj.jsonl", row, 1),
        "a name of 255 bytes": _put("n" * 249 + ".jsonl", row, 1),
        "a name with `..` and backslashes": _put(r"a\..\..\b.jsonl", row, 1),
        "a name with markup": _put("<img src=x onerror=alert(1)>.jsonl", row, 1),
        "a file twelve folders down": _put("/".join(["d" * 100] * 12) + "/a.jsonl", row, 1),
        "a link to a file outside": link("link.jsonl", "/etc/passwd"),
        "a link to the root of the machine": link("root", "/"),
        "two links to their own folder": both,
        "a link to itself": link("self.jsonl", "self.jsonl"),
        "a pipe": pipe,
    }


def _bombs() -> dict[str, Callable[[Path], int]]:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * _MIB])

    def repeated(landing: Path) -> int:
        table = pa.table({"event_type": ["search"] * 2000, "event_time": ["t"] * 2000, "query": text})
        pq.write_table(table, put(landing, "a.parquet", b""))
        return 1

    members = 65  # of 16 MiB each: just over a GiB
    return {
        "a GiB of zeros as gzip": _put("a.jsonl.gz", gzip.compress(bytes(16 * _MIB)) * members, 1),
        "a GiB of zeros as zstd": _put("a.csv.zst", packed(bytes(16 * _MIB), ".zst") * members, 1),
        "2 GiB of one repeated text as Parquet": repeated,
        "a JSON array of 80 MB from 80 KB": _put("a.json.gz", gzip.compress(b"[\n" + b"{},\n" * (20 * _MIB)), 1),
        "a line of 50 MB": _put("a.jsonl", b'{"query": "' + b"x" * (50 * _MIB) + b'"}\n', 1),
        "900,000 nested brackets": _put("a.jsonl", b"[" * 900_000 + b"\n", 1),
    }


def _code() -> dict[str, Callable[[Path], int]]:
    formula, script = "=cmd|' /C calc'!A0", "<script>alert(1)</script>"
    return {
        "a formula as a search, in CSV": _put("a.csv", csv_lines(event(1, event_type="search", query=formula)), 1),
        "a formula as an item, in Parquet": _put("a.parquet", parquet(event(1, item_id="@SUM(1+1)*cmd")), 1),
        "markup as an item": _put("a.jsonl", json_lines(event(1, item_id=script)), 1),
        "markup as an event type": _put("a.jsonl", json_lines(event(1, event_type=script)), 1),
        "SQL as an item": _put("a.jsonl", json_lines(event(1, item_id="i'; DROP TABLE events; --")), 1),
        "SQL as an event's id": _put("a.jsonl", json_lines(event(1, event_id="e' OR '1'='1")), 1),
        "a pickle called JSON": _put("a.jsonl", pickle.dumps(os.getcwd), _UNKNOWN),
        "a pickle": _put("a.pkl", pickle.dumps(os.getcwd), 1),
    }


def _table(ended: list[Ended]) -> str:
    lines = [
        "# What was tried against the door, and where it ended", "",
        "Written by `make bench-trust PARTS=bad_inputs`. Each case lands in an hour beside 30 good rows, and "
        "nothing of another hour is touched. Quarantined rows are in the lake with file, line, reason and masked "
        "content. A stopped window changes nothing and says why; its files lie where they were.", "",
        "| tried | offered | published | quarantined | duplicates | reason |", "|---|---|---|---|---|---|",
    ]
    for one in ended:
        why = ", ".join(f"`{reason}`" for reason in one.reasons)
        ends = ("–", "–", "–") if one.stopped else (one.published, one.quarantined, one.duplicates)
        said = f"window stopped: {why}" if one.stopped else why
        offered = one.offered or ("–" if one.stopped else 0)
        lines.append(f"| {one.case} | {offered} | {ends[0]} | {ends[1]} | {ends[2]} | {said} |")
    lines += ["", "## Tried elsewhere", "", "| looked for | found | by |", "|---|---|---|"]
    lines += [f"| {what} | {found} | [{by}](../../{by}) |" for what, found, by in ELSEWHERE]
    return "\n".join(lines) + "\n"
