"""From a shell: which version serves, all versions, the log of decisions, promotion and rollback by hand.

`python -m pipeline.champion --help`; the installation is the one of the environment's EVERGREEN_* variables.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.asking import a_person_waits
from pipeline.registry import Promotion, Registry, open_registry
from pipeline.registry_errors import PREFIX, RegistryError
from pipeline.settings import SettingsError, read_settings
from pipeline.tasks.catalogue import entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    from rich.console import Console

    chosen = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        chosen.task = settings.tasks[0] if chosen.task is None else chosen.task
        entry(chosen.task)  # refuses one that is not there
        registry = open_registry(settings)
        with a_person_waits(settings.tracking_uri):
            chosen.run(registry, chosen, Console(markup=False))  # people's words have brackets
    except (RegistryError, SettingsError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.champion",
        description="Shows which model versions serve and why, and moves the champion by hand. "
        "The installation is the one of the environment's EVERGREEN_* variables.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--task", help="the task (default: the first of EVERGREEN_TASKS)")
        made.set_defaults(run=run)
        return made

    command("show", _show_champion, "Print the version that serves.")
    command("versions", _show_versions, "List all versions with their decisions and aliases.")
    command("history", _show_history, "List who served when and why, oldest first; also versions that are gone.")
    command("log", _show_log, "List every promotion, hold, rejection and rollback, oldest first.")
    promote = command("promote", _promote, "Make a version the champion.")
    promote.add_argument("version", type=int, help="the version")
    promote.add_argument("--force", action="store_true", help="though the gate did not say so; needs --why")
    back = command("rollback", _rollback, "Make an earlier version the champion again.")
    back.add_argument("--to", type=int, metavar="VERSION", help="that version (default: the previous one)")
    for one in (promote, back):
        one.add_argument("--who", default=getpass.getuser(), help="your name, for the log (%(default)s)")
        one.add_argument("--why", default="", help="the reason, for the log")
    return parser


def _show_champion(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    champion = registry.champion(chosen.task)
    if champion is None:
        raise RegistryError(
            f"{PREFIX}{chosen.task} has no champion yet: run the DAG retrain_{chosen.task} first."
        )
    console.print(champion, highlight=False)


def _show_versions(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    from rich.table import Table

    aliases: dict[int, list[str]] = {}
    for alias, version in registry.aliases(chosen.task).items():
        aliases.setdefault(version, []).append(alias)
    table = Table("version", "alias", "kind", "from", "newest window", "decision", "because", "files")
    for one in registry.entries(chosen.task):
        version, tags = one.number, one.tags
        seen = (tags.get(f"evergreen.{key}", "") for key in ("kind", "parent", "window", "decision"))
        reasons = json.loads(tags.get("evergreen.reasons", "[]"))
        table.add_row(
            str(version), " ".join(sorted(aliases.get(version, []))), *seen, " ".join(reasons),
            "removed" if one.retired else "there",
        )
    console.print(table)


def _show_history(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    from rich.table import Table

    table = Table("version", "served from (UTC)", "until", "by", "who", "newest window", "because")
    for one in registry.services(chosen.task):
        until = f"{one.until:%Y-%m-%d %H:%M}" if one.until else "now"
        table.add_row(
            str(one.version), f"{one.since:%Y-%m-%d %H:%M}", until, one.action, one.who,
            f"{one.window:%Y-%m-%d %H:%M}" if one.window else "", " ".join(one.reasons),
        )
        if one.gap:
            console.print(f"The move that made {one.follows} the champion before {one.version} is not in the log.")
    console.print(table)


def _show_log(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    from rich.table import Table

    table = Table("decided at", "action", "version", "champion", "window", "who", "because")
    for row in registry.decisions(chosen.task).to_pylist():
        before, after = row["champion_before"] or "none", row["champion_after"] or "none"
        table.add_row(
            f"{row['decided_at']:%Y-%m-%d %H:%M}", row["action"], str(row["version"]),
            str(after) if before == after else f"{before} → {after}",
            f"{row['window']:%Y-%m-%d %H:%M}" if row["window"] else "", row["who"],
            " ".join(json.loads(row["reasons"])),
        )
    console.print(table)


def forced(registry: Registry, task: str, version: int, *, who: str, why: str, decided_at: datetime) -> Promotion:
    """Makes a version the champion whatever the gate said; the log keeps who did it and why.

    Raises:
        RegistryError: no reason is given.
        VerificationFailed: the version does not answer in a fresh process.
        VersionMissing: there is no such version.
    """
    if not why.strip():
        raise RegistryError("A promotion by force must say why, for the log: add --why \"...\".")
    window = registry.tags(task, version).get("evergreen.window")
    return registry.promote(
        task, version, registry.champion(task), who=who, reasons=[why], action="force", decided_at=decided_at,
        window=datetime.fromisoformat(window) if window else None,
    )


def _promote(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    now = datetime.now(UTC)
    if chosen.force:
        who, why = chosen.who, chosen.why
        _say_moved(forced(registry, chosen.task, chosen.version, who=who, why=why, decided_at=now), console)
        return
    tags = registry.tags(chosen.task, chosen.version)
    decision = tags.get("evergreen.decision", "undecided")
    reasons = json.loads(tags.get("evergreen.reasons", "[]"))
    compared_with = tags.get("evergreen.compared_with")
    expected = int(compared_with) if compared_with else None
    if decision not in ("promote", "first"):
        raise RegistryError(
            f"The gate must have decided to promote version {chosen.version}; it decided {decision!r}: "
            f"{' '.join(reasons)} To promote it all the same, add --force --why \"...\"."
        )
    window = tags.get("evergreen.window")
    done = registry.promote(
        chosen.task, chosen.version, expected, who=chosen.who, reasons=reasons, action=decision,
        decided_at=now, window=datetime.fromisoformat(window) if window else None,
    )
    if done.champion_after != chosen.version:
        raise RegistryError(
            f"Version {chosen.version} was promoted before and replaced since, so the gate's word is used up; "
            f"{done.champion_after} still serves. To promote it all the same, add --force --why \"...\"."
        )
    _say_moved(done, console)


def _rollback(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    if not chosen.why:
        raise RegistryError("A rollback must say why, for the log: add --why \"...\".")
    now = datetime.now(UTC)
    done = registry.rollback(chosen.task, chosen.to, who=chosen.who, why=chosen.why, decided_at=now)
    _say_moved(done, console)


def _say_moved(done: Promotion, console: Any) -> None:
    before = "none" if done.champion_before is None else done.champion_before
    console.print(f"Version {done.champion_after} of {PREFIX}{done.task} serves; before: {before}.")


if __name__ == "__main__":
    sys.exit(main())
