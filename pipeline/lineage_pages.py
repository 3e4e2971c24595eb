"""How an answer about lineage looks: tables for a shell, an HTML file for a browser. `pipeline/lineage.py` finds it."""

from __future__ import annotations

import hashlib
import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.learnt import ASIDE, COMPARED, LEARNT, MAYBE, READ, UNSEEN, in_words
from pipeline.pages import document

_Row = Sequence[Any]

# verdict -> (badge of the style, sign, sentence about versions)
_VERDICTS = {
    LEARNT: ("warn", "●", "have learnt from it"),
    MAYBE: ("warn", "◐", "may have learnt from it: an update's replay draws from such rows"),
    COMPARED: ("rows", "○", "were only compared on it: held out, not learnt"),
    READ: ("note", "·", "have read it as context of other examples"),
    ASIDE: ("note", "–", "have set it aside: refused for good"),
    UNSEEN: ("note", " ", "know nothing of it any more: it was deleted before they had learnt it"),
}
_COUNTED_FROM = 20  # of shorter tables the eye sees how long they are
_ORDINARY = 80  # characters of an id in a file's name


def lineage_path(answer: Mapping[str, Any], reports: Path) -> Path:
    """Where an answer's page lies: `lineage/<what was asked>.html`, in letters that any file system takes."""
    asked = (
        (answer["task"], answer["version"]) if answer["asked"] == "version"
        else (answer["asked"], *(one["feed"] for one in answer["feeds"][:1] if answer["asked"] in ("window", "row")),
              answer["id"])
    )
    words = "-".join(map(str, asked))
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", words)[:_ORDINARY]
    if name != words:
        name += "-" + hashlib.sha256(words.encode()).hexdigest()[:8]
    return reports / "lineage" / f"{name}.html"


def write_lineage_page(answer: Mapping[str, Any], reports: Path, at: datetime) -> Path:
    """Writes the page of an answer that was given `at`, in the place of an older one, and returns its path."""
    path = lineage_path(answer, reports)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(page(answer, at), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def page(answer: Mapping[str, Any], at: datetime) -> str:
    """An answer's HTML; it says when that was, because aliases move on and nothing writes an older page anew."""
    title, verdict, tables = _parts(answer)
    kind, sentences = verdict
    said = "".join(f"<p>{_text(sentence)}</p>" for sentence in sentences[1:])
    sign = {"pass": "✓", "warn": "●", "stop": "!", "rows": "○", "note": "·"}[kind]
    body = [
        f'<header><p class="crumb">Evergreen · lineage</p><h1>{_text(title)}</h1>'
        f"<p>As of {at:%Y-%m-%d %H:%M} UTC</p></header>",
        f'<section class="verdict {kind}"><h2><span class="sign" aria-hidden="true">{sign}</span>'
        f"{_text(sentences[0])}</h2>{said}</section>",
        _tiles(answer),
        *(_html_table(name, head, rows) for name, head, rows in tables if rows),
        _MEANING,
    ]
    return document(f"Lineage · {title}", body)


def print_answer(answer: Mapping[str, Any], console: Any) -> None:
    """An answer as tables on a console."""
    from rich.table import Table

    title, (_, sentences), tables = _parts(answer)
    console.print(title, style="bold", highlight=False, markup=False)
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False)
    for name, head, rows in tables:
        if rows:
            table = Table(*head, title=name, title_justify="left")
            for row in rows:
                table.add_row(*(_plain(cell) for cell in row))
            console.print(table, markup=False)


def numbered(versions: Iterable[int]) -> str:
    """Version numbers in words, runs as ranges: `1–3, 7`."""
    runs: list[list[int]] = []
    for version in sorted(versions):
        if runs and runs[-1][-1] == version - 1:
            runs[-1].append(version)
        else:
            runs.append([version])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def sentences_of(task: Mapping[str, Any]) -> list[str]:
    """What a task's versions know of the rows, a sentence for each verdict, the strongest first."""
    said = []
    for verdict, (_, _, of_many) in _VERDICTS.items():
        versions = task["by_verdict"].get(verdict, [])
        if versions and verdict != UNSEEN:
            serving = " (the champion among them)" if task["champion"] in versions else ""
            many = "Versions" if len(versions) > 1 else "Version"
            words = of_many if len(versions) > 1 else of_many.replace("have ", "has ", 1).replace("were ", "was ", 1)
            said.append(f"{many} {numbered(versions)} of {task['task']}{serving} {words}.")
    return said or [f"No version of {task['task']} has seen it."]


def _parts(answer: Mapping[str, Any]) -> tuple[str, tuple[str, list[str]], list[tuple[str, _Row, list[_Row]]]]:
    """Title, verdict (its colour and sentences), and tables (name, head, rows) of an answer."""
    return _of_version(answer) if answer["asked"] == "version" else _of_rows(answer)


def _of_version(answer: Mapping[str, Any]) -> tuple[str, tuple[str, list[str]], list[tuple[str, _Row, list[_Row]]]]:
    own, aliases = answer["own_rows"], f" ({', '.join(answer['aliases'])})" if answer["aliases"] else ""
    origin = f"from version {answer['parent']}" if answer["parent"] else "from the base"
    said = [
        f"{answer['kind'].capitalize()} {origin}: {own['taught'] + own['joined']:,} rows learnt, "
        f"{own['held_out']:,} held out to judge, {own['context']:,} read as context",
        f"Gate: {answer['decision']}. {' '.join(answer['reasons'])}", *answer["differences"],
    ]
    if answer["retired"]:
        said.append(f"Its files were removed: {answer['retired']}")
    if not answer["whole"]:
        command = f"python -m pipeline.lineage version {answer['task']} {answer['version']}"
        said.append(f"All {answer['to_base']:,} versions to the base, and every window that they learnt: {command}")
    colour = "stop" if answer["differences"] else ("pass" if answer["served"] else "note")
    facts: list[_Row] = [
        ("code", answer["code"]), ("reason for the retrain", answer["why"]), ("days of history", answer["days"]),
        ("compared with version", answer["compared_with"]), ("first model of its lineage", _Name(answer["base"])),
        *_settings(answer["settings"]),
    ]
    tables: list[tuple[str, _Row, list[_Row]]] = [
        ("Served", ("since (UTC)", "until", "by", "who", "because"), [
            (_short(one["since"]), _short(one["until"]) or "now", one["action"], one["who"], " ".join(one["reasons"]))
            for one in answer["served"]
        ]),
        ("Tables that it read", ("table", "how", "its own part: after … up to version", "rows then", "windows"), [
            (one["table"], one["reads"], _span(one), one["rows"],
             f"{_short(one['first_window'])} to {_short(one['last_window'])}") for one in answer["tables"]
        ]),
        ("Lineage, oldest first" if answer["whole"] else "It and its parent", (
            "version", "kind", "table versions", "newest window", "taught", "joined", "held out", "context",
            "set aside", "decision",
        ), [
            (_Name(one["version"]), one["kind"], _span(one), _short(one["window"]),
             *(one["own_rows"][name] for name in ("taught", "joined", "held_out", "context", "set_aside")),
             one["decision"]) for one in answer["lineage"]
        ]),
        ("Code and settings", ("what", "value"), [row for row in facts if row[1] is not None]),
        ("Windows of the whole lineage" if answer["whole"] else "Windows of its own learning", (
            "landed window", "taught", "joined", "held out", "context", "set aside", "deleted", "learnt by version",
        ), [
            (_short(one["window"]), *(_count(one["did"], *names) for names in (
                ("taught",), ("joined",), ("held out",), ("context", "too old"), ("set aside",), ("deleted",)
            )), numbered(one["learnt_by"])) for one in answer["windows"]
        ]),
    ]
    return f"evergreen-{answer['task']}, version {answer['version']}{aliases}", (colour, said), tables


def _of_rows(answer: Mapping[str, Any]) -> tuple[str, tuple[str, list[str]], list[tuple[str, _Row, list[_Row]]]]:
    tasks = [(one["feed"], task) for one in answer["feeds"] for task in one["tasks"]]
    said = [f"In {feed}: {sentence}" for feed, task in tasks for sentence in sentences_of(task)]
    if not any(one["rows"]["ever"] for one in answer["feeds"]):
        said = ["The lake has never had a row of it: no version has learnt from it. Is the id right?"]
    said += [f"Deleted on request at {_short(when)} UTC." for when in answer["deleted"]]
    learnt = any(task["by_verdict"].get(verdict) for _, task in tasks for verdict in (LEARNT, MAYBE))
    tables: list[tuple[str, _Row, list[_Row]]] = [
        (f"Versions of {task['task']}, by {feed}", (
            "versions", "what they know", "rows, ancestors included", "own learning", "decision", "serving",
        ), list(_runs(task["versions"]))) for feed, task in tasks
    ]
    for one in answer["feeds"]:
        if one["rows"]["ever"]:
            tables.append((f"Rows of {one['feed']}", ("now", "ever", "landed from", "to", "table versions"), [(
                f"{one['rows']['now']:,}", f"{one['rows']['ever']:,}", _short(one["rows"]["first_window"]),
                _short(one["rows"]["last_window"]), " … ".join(map(str, one["rows"]["table_versions"])),
            )]))
            tables.append((f"Their past in {one['feed']}", ("row", "table version", "change", "happened", "window"), [
                (image["key"], _Name(image["table_version"]), image["change"], _short(image["happened"]),
                 _short(image["landed_window"])) for image in one.get("images", ())
            ]))
    said = said or ["No task reads this feed."]
    return f"{answer['asked']} {answer['id']}", ("warn" if learnt else "note", said), tables


def _runs(versions: Sequence[Mapping[str, Any]]) -> Iterable[_Row]:
    """A line for each version that did something with the rows itself; those that only inherit are put together."""
    inherit: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in versions:
        key = (one["version"],) if one["own"] else ("inherits", one["verdict"], *sorted(one["rows"].items()))
        inherit.setdefault(key, []).append(one)
    for group in inherit.values():
        first = group[0]
        decisions = sorted({str(one["decision"]) for one in group})
        serving = sorted({alias for one in group for alias in one["aliases"]} | (
            {"served"} if any(one["served"] for one in group) else set()
        ))
        yield (
            numbered(one["version"] for one in group), _Badge(first["verdict"]), in_words(first["rows"]),
            in_words(first["own"]) or "nothing: inherited", ", ".join(decisions), ", ".join(serving),
        )


def _settings(settings: Mapping[str, Any] | None) -> list[_Row]:
    """Settings in lines; what is at its default and nested stays readable as JSON would not."""
    if settings is None:
        return [("settings", "not recorded: registered before they were")]
    lines: list[_Row] = []
    for name, value in settings.items():
        shown = value
        if isinstance(value, Mapping):
            shown = ", ".join(f"{key} {one}" for key, one in value.items() if not isinstance(one, Mapping))
            lines += [(f"{name}: {key}", ", ".join(f"{k} {v}" for k, v in one.items()))
                      for key, one in value.items() if isinstance(one, Mapping)]
        lines.insert(len(lines) - (isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())),
                     (name, str(shown)))  # as it is set: a seed is no count
    return lines


class _Name(int):
    """A number that names something, such as a version: shown as a command takes it."""

    __slots__ = ()


class _Badge(str):
    """A verdict that is shown with its sign and colour."""

    __slots__ = ()


def _plain(cell: Any) -> str:
    if isinstance(cell, _Badge):
        return f"{_VERDICTS[cell][1]} {cell}"
    if isinstance(cell, int) and not isinstance(cell, _Name):
        return f"{cell:,}" if cell else "·"  # a table of windows is mostly nothing
    return str(cell if cell is not None else "")


def _html_table(name: str, head: _Row, rows: Sequence[_Row]) -> str:
    top = "".join(f'<th scope="col"{_number_class(rows, place)}>{_text(word)}</th>' for place, word in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{_number_class(rows, place)}>{_cell(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>" for row in rows
    )
    count = f" <small>{len(rows):,}</small>" if len(rows) > _COUNTED_FROM else ""
    return (
        f'<section><h2>{_text(name)}{count}</h2><div class="wide"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _number_class(rows: Sequence[_Row], place: int) -> str:
    return ' class="num"' if rows and all(isinstance(row[place], int) for row in rows) else ""


def _cell(cell: Any) -> str:
    if isinstance(cell, _Badge):
        badge, sign, _ = _VERDICTS[cell]
        return f'<span class="badge {badge}"><span aria-hidden="true">{sign}</span> {_text(cell)}</span>'
    return _text(_plain(cell))


def _tiles(answer: Mapping[str, Any]) -> str:
    if answer["asked"] != "version":
        return ""
    rows = answer["rows"]
    tiles = (
        (rows["taught"] + rows["joined"], "rows learnt in the lineage"),
        (rows["held_out"] - rows["joined"], "held out"), (rows["context"], "context"),
        (rows["set_aside"], "set aside"), (answer["to_base"], "versions to the base"),
    )
    shown = "".join(f"<div><b>{value:,}</b><span>{_text(word)}</span></div>" for value, word in tiles)
    return f'<section class="tiles" aria-label="Counts">{shown}</section>'


def _count(did: Mapping[str, int], *names: str) -> int:
    return sum(did.get(name, 0) for name in names)


def _span(step: Mapping[str, Any]) -> str:
    """The versions of a table that are a model version's own part: after … up to."""
    return f"all up to {step['to']}" if step["after"] < 0 else f"{step['after']} … {step['to']}"


def _short(time: str | None) -> str:
    return "" if time is None else time[:16].replace("T", " ")


def _text(value: object) -> str:
    return html.escape(str(value))


_MEANING = """<section><h2>What the words mean</h2><dl>
<dt>learnt, taught</dt><dd>The row was part of an example that the version or an ancestor was trained on. It stays so
when the row is corrected or deleted later: weights keep what they were taught.</dd>
<dt>joined</dt><dd>The same, after it had been held out for its span.</dd>
<dt>held out, compared</dt><dd>Of the validation part: early stopping and the gate use it (where there are many, a drawn
part of them); the weights have not seen it.</dd>
<dt>may be learnt</dt><dd>Older than the days that the retrain was given, and an update since may have replayed it.</dd>
<dt>context</dt><dd>Teaches nothing by itself, but stands in the histories and counts of other examples.</dd>
<dt>set aside</dt><dd>Of a window that was refused for good.</dd></dl></section>"""
