"""What a person's file of labels may look like: what cannot be taken is told with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import labels
from pipeline.forgetting import forget
from pipeline.ingest import ingest
from pipeline.lake import Lake, open_lake
from pipeline.settings import Settings, read_settings
from tests.landed import WINDOW, json_lines, put, settings_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a file of labels lies, beside an empty lake."""
    limit = csv.field_size_limit(131_072)  # of the process: as it is where nothing was taken in from CSV
    settings = read_settings({"EVERGREEN_HOME": str(tmp_path / "home"), "EVERGREEN_MASK_KEY": "k" * 40})
    monkeypatch.setattr(labels, "read_settings", lambda: settings)
    yield tmp_path / "wanted.csv"
    csv.field_size_limit(limit)


def test_a_file_in_which_nothing_is_filled_in_changes_nothing(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rows in ("", "support,m1,label,refund,0.5,hello,\n"):
        file.write_text("task,message_id,kind,guess,confidence,text,value\n" + rows)
        assert labels.main(["import", str(file)]) == 0
        assert "0 messages changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"message_id,kind,value\nm1,label,a\nm2,label,Gr\xfc\xdfe\n", "Line 3: the file must be in UTF-8"),
        ("message_id,kind,value\n".encode("utf-16"), "Line 1: the file must be in UTF-8"),
        (b"value,kind,message_id\na,label\n", "Line 2: message_id must be one of"),
        (b"message_id,kind,value\nm1,label," + b"a" * 200_000, "Line 2: the file must be CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_line(
    file: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    file.write_bytes(content)
    assert labels.main(["import", str(file)]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_messages_of_a_task_that_is_not_there_are_not_exported(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert labels.main(["export", str(file), "--task", "suport"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "A task is one of" in said and "received 'suport'" in said and not file.exists()


def messages_of(settings: Settings, *users: str) -> Lake:
    """A lake with a message of each user: m0, m1, …"""
    rows = [
        {"message_id": f"m{number}", "message_time": "2026-01-05T13:10:00Z", "user_id": user, "text": "Where is it?"}
        for number, user in enumerate(users)
    ]
    put(Path(settings.landing), "m.jsonl", json_lines(*rows), feed="messages")
    ingest([WINDOW], settings, report=lambda line: None, feeds=["messages"])
    return open_lake(settings)


def answered(message: str, answer: str) -> dict[str, str]:
    return {"message_id": message, "kind": "answer", "value": answer}


def test_a_file_that_a_spreadsheet_wrote_with_semicolons_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path)
    lake = messages_of(settings, "ann", "bob")
    monkeypatch.setattr(labels, "read_settings", lambda: settings)
    (tmp_path / "wanted.csv").write_bytes(
        '\ufefftask;message_id;kind;guess;confidence;text;value\r\n'
        'support;m0;label;refund;0,512;"Where; is it?";late, again\r\n'.encode()
    )
    assert labels.main(["import", str(tmp_path / "wanted.csv")]) == 0
    assert lake.arrow("messages").sort_by("message_id")["label"].to_pylist() == ["late, again", None]


def test_a_class_is_spelt_as_messages_have_it_and_a_message_has_one_of_a_kind(tmp_path: Path) -> None:
    def told(message: str, value: str) -> dict[str, str]:
        return {"message_id": message, "kind": "label", "value": value}

    lake = messages_of(settings_of(tmp_path), "ann", "bob", "eve")
    labels.take_in(lake, [told("m0", "late_delivery")], NOW, "me")
    labels.take_in(lake, [told("m1", " Late_Delivery "), told("m2", "Refund"), told("m2", "REFUND")], NOW, "me")
    assert lake.arrow("messages").sort_by("message_id")["label"].to_pylist() == [
        "late_delivery", "late_delivery", "Refund"
    ]
    with pytest.raises(labels.LabelRefused, match="Line 3: a message has one label, and m0 has 'praise' above"):
        labels.take_in(lake, [told("m0", "praise"), told("m0", "refund")], NOW, "me")
    assert lake.arrow("messages").sort_by("message_id")["label"].to_pylist()[0] == "late_delivery"


def test_an_answer_that_people_give_is_masked_like_one_that_landed(tmp_path: Path) -> None:
    lake = messages_of(settings_of(tmp_path), "ann")
    told = "We wrote to ann@mail.example, called 0151 2345678 and paid to DE89 3704 0044 0532 0130 00."
    labels.take_in(lake, [answered("m0", told)], NOW, "me")
    kept = "We wrote to [e-mail], called [phone] and paid to [iban]."
    assert lake.arrow("messages")["answer"].to_pylist() == lake.arrow("labels")["value"].to_pylist() == [kept]


def test_what_people_have_said_of_a_forgotten_users_messages_is_forgotten_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path)
    lake = messages_of(settings, "ann", "bob")
    labels.take_in(lake, [answered("m0", "Dear Ann, it's there."), answered("m1", "Dear Bob.")], NOW, "me")

    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lake, "delete", killed)
        forget("user", "ann", settings, NOW, "me")
    for deleted in (1, 0):
        assert forget("user", "ann", settings, NOW, "me") == deleted
        assert [row["value"] for row in lake.arrow("labels").to_pylist()] == ["Dear Bob."]
    ingest([WINDOW], settings, report=lambda line: None, feeds=["messages"])
    assert lake.arrow("messages")["answer"].to_pylist() == ["Dear Bob."]
