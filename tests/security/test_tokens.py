"""The tokens file, and who is told apart by it."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from genie.cli import main
from genie.errors import AccessDenied, ConfigError
from genie.security import AuditLog, Guard, Scope, TokenFile, tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def test_the_file_has_no_token(path: Path) -> None:
    token = tokens.add(path, "alice", (Scope.USE, Scope.ADMIN), tenant="lab")
    text = path.read_text()
    assert token not in text and token.removeprefix(tokens.PREFIX) not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token.removeprefix(tokens.PREFIX)) >= 43  # 256 bits
    (entry,) = tokens.load(path)
    assert (entry.name, entry.tenant, entry.scopes) == ("alice", "lab", (Scope.USE, Scope.ADMIN))
    assert TokenFile(path).find(token) == entry
    assert TokenFile(path).find(token[:-1]) is None


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokens", "add", str(path), "alice", "--scope", "admin", "--days", "7"]) == 0
    printed = capsys.readouterr()
    token = printed.out.strip()
    assert TokenFile(path).find(token) is not None and token not in printed.err
    assert main(["tokens", "list", str(path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["scopes"], row["expired"]) == ("alice", ["admin"], False)
    assert main(["tokens", "add", str(path), "alice"]) == 1
    assert "already" in capsys.readouterr().err
    assert main(["tokens", "revoke", str(path), "alice"]) == 0
    assert tokens.load(path) == ()
    assert main(["tokens", "revoke", str(path), "alice"]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"tokens": [{}]}',
        '{"tokens": [{"name": "a", "sha256": "zz"}]}',
        '{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["root"]}]}' % ("0" * 64),
        '{"tokens": [{"name": "a", "sha256": "%s", "scopes": []}]}' % ("0" * 64),
        '{"tokens": [{"name": "a", "sha256": "%s", "expires": "tomorrow"}]}' % ("0" * 64),
        '{"tokens": [{"name": "a", "sha256": "%s", "expires": "2030-01-01T00:00:00"}]}' % ("0" * 64),
        '{"tokens": [{"name": "a", "sha256": "%s", "surprise": 1}]}' % ("0" * 64),
        '{{"tokens": [{{"name": "a", "sha256": "{h}"}}, {{"name": "a", "sha256": "{h}"}}]}}'.format(h="0" * 64),
        "[" * 100_000,
        "\xff",
    ],
)
def test_files_that_are_none(path: Path, text: str) -> None:
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        TokenFile(path)
    assert caught.value.where == str(path) and "\n" not in caught.value.message


def test_files_that_are_not_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        TokenFile(path)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="no file"):  # and it does not wait for a writer
        TokenFile(path)
    with pytest.raises(ConfigError, match="no such directory"):
        tokens.add(tmp_path / "nowhere" / "tokens.json", "a")


def test_a_file_that_changes_counts_at_once_and_a_broken_one_does_not(path: Path) -> None:
    told: list[str] = []
    first = tokens.add(path, "first")
    file = TokenFile(path, lambda what, problem: told.append(problem))
    second = tokens.add(path, "second")
    assert file.find(second) is not None
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    assert file.find(first) is not None and file.find(second) is not None
    path.unlink()
    assert file.find(first) is not None
    path.write_text(whole)
    tokens.revoke(path, "first")
    assert file.find(first) is None and file.find(second) is not None
    assert [bool(problem) for problem in told] == [False, True, True, False]


def _add(path: Path, number: int) -> None:
    tokens.add(path, f"t{number}")


def test_editors_at_the_same_time_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(path, number)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert sorted(entry.name for entry in tokens.load(path)) == [f"t{number}" for number in range(8)]


@pytest.mark.parametrize("text", ["", "\n", "two words", "x" * 300, "\u00fc"])
def test_a_clients_token_file_without_a_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError):
        tokens.read_token(path)


def test_who_may_do_what(path: Path, tmp_path: Path) -> None:
    use = tokens.add(path, "user")
    admin = tokens.add(path, "boss", (Scope.ADMIN,))
    old = tokens.add(path, "old", days=1e-9)
    log = tmp_path / "audit"
    guard = Guard(TokenFile(path), AuditLog(log))
    assert guard.identify(use, Scope.USE, "Open").name == "user"
    assert guard.identify(admin, Scope.ADMIN, "Drain").name == "boss"
    for token, scope, reason in [
        (use, Scope.ADMIN, "no scope 'admin'"),
        (admin, Scope.USE, "no scope 'use'"),
        (old, Scope.USE, "'old' has expired"),
        ("", Scope.USE, "who has a token"),
        ("genie_guess", Scope.USE, "unknown"),
        (tokens.digest(use), Scope.USE, "unknown"),  # what the file says opens nothing
    ]:
        with pytest.raises(AccessDenied, match=reason):
            guard.identify(token, scope, "here", peer="1.2.3.4:5")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 6
    assert all((line["event"], line["where"], line["peer"]) == ("refused", "here", "1.2.3.4:5") for line in lines)
    assert not any(secret in log.read_text() for secret in (use, admin, old, "genie_guess"))
