"""One name a setting, clear errors, and the environment read in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from engines.settings import SettingsError, flag_of
from service.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"RESIDUUM_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = load_settings()
    assert settings.model == ("embedded",)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_environment_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDUUM_MODEL", "embedded, other")
    monkeypatch.setenv("RESIDUUM_MAX_BATCH_SIZE", "16")
    monkeypatch.setenv("RESIDUUM_PORT", "9000")
    monkeypatch.setenv("RESIDUUM_HOST", "")
    settings = load_settings(port=9001, device=None)
    assert settings.model == ("embedded", "other")
    assert settings.max_batch_size == 16
    assert settings.port == 9001
    assert settings.host == "127.0.0.1"
    assert settings.device == "auto"


def test_models_from_flags() -> None:
    assert load_settings(model=["a", "b"]).model == ("a", "b")
    assert load_settings(model=[]).model == ("embedded",)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "http"}, r"--port http: input should be a valid integer"),
        ({"port": 65536}, r"--port 65536: .*less than or equal to 65535"),
        ({"engine": "tensorflow"}, r"--engine tensorflow: not available; choose 'auto', 'onnxruntime', "),
        ({"precision": "int4"}, r"--precision int4: not available; choose 'auto', 'fp32', 'bf16', "),
        ({"max_batch_size": 0}, r"--max-batch-size 0: "),
        ({"max_images": 9, "queue_capacity": 8}, r"--max-images 9 is more than --queue-capacity 8"),
        ({"queue_bytes": 1000}, r"--queue-bytes 1000 is less than \d+, 8/7 of --max-image-bytes"),
        ({"colour": "red"}, r"--colour: there is no such setting"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(**flags)


def test_bad_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDUUM_MAX_WAIT_MS", "soon")
    with pytest.raises(SettingsError, match="RESIDUUM_MAX_WAIT_MS soon: input should be a valid number"):
        load_settings()


def test_flag_names() -> None:
    assert flag_of("max_batch_size") == "--max-batch-size"


def test_nothing_else_reads_the_environment() -> None:
    """Telling ONNX Runtime to be silent, torch where to keep what it compiled, and prometheus_client where
    workers count, writes to it."""
    readers = [
        path.name
        for path in (ROOT / "service").rglob("*.py")
        if re.search(
            r"os\.environ(?!\.setdefault\(.(ORT_DISABLE_TELEMETRY|TORCHINDUCTOR_CACHE_DIR)"
            r"|\[.PROMETHEUS_MULTIPROC_DIR.\] = )|getenv",
            path.read_text(encoding="utf-8"),
        )
    ]
    assert readers == []
