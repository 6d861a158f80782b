"""The parser and the commands: help, suggestions, completion, and what they import."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import residuum
from engines.settings import flag_of
from export.settings import PullSettings
from residuum.cli.main import command_summaries, main, make_parser
from residuum.cli.parser import Parser
from service.settings import Settings
from tests.conftest import ROOT

HEAVY = {
    "torch",
    "numpy",
    "pydantic",
    "pydantic_settings",
    "PIL",
    "onnxruntime",
    "fastapi",
    "starlette",
    "httpx",
}


COMMANDS = command_summaries()


def commands(*loaded: str) -> dict[str, Parser]:
    (action,) = make_parser(*loaded)._subparsers._group_actions  # type: ignore[union-attr]
    return action.choices  # type: ignore[return-value]


def test_a_command_is_a_module_whose_first_line_says_what_the_command_does() -> None:
    for name, summary in COMMANDS.items():
        module = import_module(f"residuum.cli.commands.{name}")
        assert (module.__doc__ or "").splitlines()[0] == f"`residuum {name}`: {summary}."
        assert summary


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_names_every_command(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """`residuum` alone prints help, too."""
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} ", said.out, re.MULTILINE)
        assert summary.split()[0] in said.out


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_and_fits(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert text.startswith(f"Usage: residuum {name} [OPTIONS]")
    assert max(map(len, text.splitlines())) <= columns
    assert "\x1b" not in text
    examples = text.partition("\nExamples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert all(line.startswith(f"  residuum {name}") for line in examples), examples  # none is wrapped


def test_examples_can_be_parsed() -> None:
    loaded = commands(*COMMANDS)
    for name, command in loaded.items():
        for line in str(command.epilog).splitlines()[1:]:
            words = re.split(r" +#| \|", line)[0].split()
            assert words[:2] == ["residuum", name]
            args, unknown = command.parse_known_args(words[2:])
            assert not unknown, line
            assert args.run


def test_serve_lists_its_settings_in_groups_with_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    groups = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert groups == [
        *(
            "Options",
            "Models",
            "Engines",
            "Address",
            "Batches and threads",
            "Limits",
            "Access",
            "Logs and traces",
        ),
        "Examples",
    ]
    for name in Settings.model_fields:
        assert flag_of(name) in text
    assert "--precision {auto,fp32,bf16,fp16,int8,int8-trt}" in text
    assert "--log-format {text,json}" in text


def test_every_setting_has_a_group() -> None:
    for kind in (Settings, PullSettings):
        for name, field in kind.model_fields.items():
            assert isinstance(field.json_schema_extra, dict), name
            assert field.json_schema_extra["group"]


@pytest.mark.parametrize(
    ("arguments", "usage", "message"),
    [
        (("serv",), "residuum [OPTIONS] COMMAND", "unknown command 'serv'; did you mean serve?"),
        (("frobnicate",), "residuum [OPTIONS] COMMAND", "unknown command 'frobnicate'"),
        (
            ("--versoin",),
            "residuum [OPTIONS] COMMAND",
            "unknown arguments: --versoin; did you mean --version?",
        ),
        (("serve", "--prot", "80"), "residuum serve [OPTIONS]", "--prot 80; did you mean --port?"),
        (
            ("classify", "x", "--topk=3"),
            "residuum classify [OPTIONS] IMAGE",
            "--topk=3; did you mean --top-k?",
        ),
        (
            ("classify", "x", "--device", "gpu"),
            "residuum classify [OPTIONS] IMAGE",
            "argument --device: 'gpu' is not one of auto, cpu, cuda; did you mean cpu?",
        ),
        (
            ("introspect", "x", "--scale", "stag"),
            "residuum introspect [OPTIONS] IMAGE",
            "'stag' is not one of image, stage, reference; did you mean stage?",
        ),
        (("models", "--sort", "mac"), "residuum models [OPTIONS]", "did you mean macs?"),
        (("compare", "a"), "residuum compare [OPTIONS] A B", "the following arguments are required: B"),
    ],
)
def test_a_mistyped_word_gets_a_suggestion_and_the_usage_of_its_command(
    arguments: tuple[str, ...], usage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (2, "")
    assert said.err.startswith(f"Usage: {usage}")
    assert said.err.rstrip().endswith(message) or message in said.err.splitlines()[-1]
    assert len(said.err.splitlines()) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"residuum {version('residuum')}\n"
    assert residuum.__version__ == version("residuum")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        residuum.nothing  # noqa: B018


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "max-batch-size", "onnxruntime"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--print-completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def complete(*words: str) -> list[str]:
        code = f'source "{tmp_path / "script"}"; COMP_WORDS=({" ".join(words)}); '
        code += f'COMP_CWORD={len(words) - 1}; _shtab_residuum; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True).stdout.split()

    assert complete("residuum", "se") == ["serve"]
    assert complete("residuum", "serve", "--max-b") == ["--max-batch-size"]
    assert complete("residuum", "serve", "--engine", "open") == ["openvino"]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from residuum.cli.main import main; main([]); print(*sys.modules, file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    tops = {name.split(".")[0] for name in done.stderr.split()}
    assert not tops & HEAVY
    assert not tops & {"service", "models", "export", "benchmarks"}


def test_a_command_imports_no_other_command() -> None:
    code = "import sys; from residuum.cli.main import make_parser; make_parser('serve'); print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    loaded = {name for name in done.stdout.split() if name.startswith("residuum.cli.commands.")}
    assert loaded == {"residuum.cli.commands.serve"}
    assert "rich" not in done.stdout.split()
