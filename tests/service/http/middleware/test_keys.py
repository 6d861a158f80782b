"""Keys from settings and from files: which are valid, and since when; never a key in a message."""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.settings import SettingsError
from service.http.middleware import keys
from service.http.middleware.keys import Keys, digest_of
from service.settings import Settings


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def kinds(known: Keys, *asked: str) -> list[str | None]:
    return [known.kind_of(digest_of(key.encode())) for key in asked]


def test_several_keys_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "api").write_text("third\n\n  fourth  \r\nthird\n")
    known = Keys(
        Settings(api_key=("first", "second"), api_key_file=tmp_path / "api", admin_key=("boss", "second"))
    )
    assert kinds(known, "first", "third", "fourth", "boss", "second") == ["api"] * 3 + ["admin"] * 2
    assert kinds(known, "", "firs", "first ", "First", "third\nfourth") == [None] * 5
    assert known.any_of("api")
    assert known.any_of("admin")


def test_without_keys() -> None:
    known = Keys(Settings())
    assert not known.any_of("api")
    assert not known.any_of("admin")
    assert kinds(known, "", "anything") == [None, None]


def test_a_file_is_read_again_when_it_changes(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    known = Keys(Settings(api_key=("given",), api_key_file=file))
    file.write_text("old\nnew\n")
    assert kinds(known, "old", "new") == ["api", None]  # it is looked at once a second
    clock.now += 1
    assert kinds(known, "old", "new", "given") == ["api"] * 3
    new = tmp_path / "other"
    new.write_text("neu\nalt\n")  # as long as the last one was, and as old
    os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    new.replace(file)
    clock.now += 1
    assert kinds(known, "old", "new", "neu", "alt", "given") == [None, None, "api", "api", "api"]


@pytest.mark.parametrize("harm", ["vanished", "empty", "directory", "fifo", "no_key", "huge", "unreadable"])
def test_a_file_that_cannot_be_used_meanwhile(
    harm: str, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n")
    known = Keys(Settings(admin_key_file=file))
    with monkeypatch.context() as patched:
        spoil(file, harm, patched)
        with caplog.at_level(logging.INFO, "residuum"):
            for _ in range(3):
                clock.now += 1
                assert kinds(known, "secret", "wrong") == ["admin", None]
        [said] = caplog.messages  # once, though it was looked at three times
        assert said.startswith(f"{file}: ")
        assert said.endswith("; the keys read before stay valid")
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    file.write_text("next\n")
    clock.now += 1
    assert kinds(known, "secret", "next") == [None, "admin"]


@pytest.mark.parametrize("harm", ["vanished", "empty", "directory", "fifo", "no_key", "huge", "unreadable"])
@pytest.mark.parametrize("setting", ["api_key_file", "admin_key_file"])
def test_a_file_that_cannot_be_used_at_the_start(
    setting: str, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n")
    spoil(file, harm, monkeypatch)
    flag = "--" + setting.replace("_", "-")
    with pytest.raises(SettingsError, match=f"^{flag} {file}: ") as refused:
        Keys(Settings(**{setting: file}))
    assert "secret" not in str(refused.value)


def spoil(file: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if harm == "unreadable":  # whoever the tests run as may read everything

        def refuse(self: Path, mode: str) -> None:
            raise PermissionError(13, "Permission denied")

        os.utime(file, ns=(0, 0))
        monkeypatch.setattr(Path, "open", refuse)
        return
    file.unlink()
    if harm == "directory":
        file.mkdir()
    elif harm == "fifo":
        os.mkfifo(file)
    elif harm != "vanished":
        content = {"empty": b" \n\n", "no_key": b"good\nsecret sentence\n", "huge": b"secret\n" * 10_000}
        file.write_bytes(content[harm])


@pytest.mark.parametrize("key", ["two words", "schlüssel", "schl\udcfcssel", "", "tab\tkey", "line\n"])
def test_a_key_that_no_header_can_hold(key: str) -> None:
    with pytest.raises(SettingsError, match=r"^--api-key: number 2 is no key") as refused:
        Keys(Settings(api_key=("good", key)))
    assert not key or key not in str(refused.value)


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Keys(Settings(api_key=("first", "second", "third"), admin_key=("boss",)))
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "hmac", SimpleNamespace(compare_digest=compare))
    for key in ("first", "third", "boss", "wrong"):
        compared.clear()
        kinds(known, key)
        assert len(compared) == 4, key


def test_nothing_holds_a_key() -> None:
    settings = Settings(api_key=("open-sesame",), admin_key=("alohomora",))
    said = f"{settings!r} {settings} {vars(Keys(settings))}"
    assert "sesame" not in said
    assert "alohomora" not in said
