"""What leaves the checkout: the wheel, its requirements and licences, the image and the compose file."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from email import message_from_string
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from residuum.cli.main import main
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PACKAGES = (
    "artifact",
    "benchmarks",
    "engines",
    "export",
    "introspection",
    "models",
    "residuum",
    "service",
)
# What others made, and under which terms: inside the wheel and beside the code.
LICENCES = ("LICENSE", "NOTICE")
# What no serving machine should have to download.
HEAVY = {"torch", "torchvision", "datasets", "lightning-fabric", "onnx", "onnxscript", "pandas", "matplotlib"}


def names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def declared() -> list[str]:
    """Every requirement of the base and of the extras."""
    return [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]


def constraints(file: str) -> dict[str, Requirement]:
    lines = (line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def build(target: str, out: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


def metadata_file(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    ours = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file()
        and "__pycache__" not in file.parts
        # What a server that ran in this checkout has measured travels nowhere.
        and file.parent.suffix != ".cache"
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == ours


def test_the_wheel_holds_the_embedded_model(wheel: zipfile.ZipFile, embedded: Path) -> None:
    for file in embedded.iterdir():
        assert wheel.read(f"models/embedded/{file.name}") == file.read_bytes()


def test_every_package_of_the_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    """`Typing :: Typed` is true only if type checkers find `py.typed` in every top-level package."""
    packages = {name.split("/")[0] for name in wheel.namelist() if name.endswith("/__init__.py")}
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert packages
    assert {f"{package}/py.typed" for package in packages} <= set(wheel.namelist())


def test_the_metadata_says_what_a_reader_and_an_index_need(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_string(metadata_file(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == list(LICENCES)
    assert metadata["Author"] == "The Residuum developers"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert metadata["Keywords"]
    classifiers = metadata.get_all("Classifier") or []
    fields = {classifier.split(" :: ")[0] for classifier in classifiers}
    assert {"Development Status", "Intended Audience", "Operating System", "Topic", "Typing"} <= fields
    assert "License" not in fields  # the licence expression says it; PEP 639 forbids both


def test_licence_and_notice_travel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    for name in LICENCES:
        assert metadata_file(wheel, f"licenses/{name}") == (ROOT / name).read_text()
    with tarfile.open(build("sdist", tmp_path)) as sdist:
        held = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert {*LICENCES, "README.md", "CHANGELOG.md"} <= held


def test_the_licence_is_apaches_own_text() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_notice_names_every_image_and_table_and_no_file_that_is_gone() -> None:
    folders = ("docs", "models", "service", "export", "benchmarks")
    named = set(re.findall(rf"\b(?:{'|'.join(folders)})/[\w./-]+\.\w+", (ROOT / "NOTICE").read_text()))
    assets = {
        file.relative_to(ROOT).as_posix()
        for folder in folders
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".png", ".jpg", ".tsv", ".onnx"} and not file.match("*.cache/*")
    }
    assert assets <= named
    assert not {name for name in named if not (ROOT / name).is_file()}


def test_the_command_is_the_front_door(wheel: zipfile.ZipFile) -> None:
    assert metadata_file(wheel, "entry_points.txt").split() == [
        "[console_scripts]",
        "residuum",
        "=",
        "residuum.cli.main:main",
    ]
    assert callable(main)


def test_serving_needs_nothing_heavy(wheel: zipfile.ZipFile) -> None:
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata_file(wheel, "METADATA").splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    base = names(requirement for requirement in required if "extra ==" not in requirement)
    assert base == names(PROJECT["dependencies"])
    assert not base & HEAVY


def test_one_onnxruntime_on_every_machine() -> None:
    runtimes = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("onnxruntime")]
    machines = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))
    for platform, machine in machines:
        environment = {"sys_platform": platform, "platform_machine": machine}
        chosen = [
            runtime.name for runtime in runtimes if runtime.marker and runtime.marker.evaluate(environment)
        ]
        assert chosen == ["onnxruntime-gpu" if (platform, machine) == ("linux", "x86_64") else "onnxruntime"]


def test_only_tests_ask_for_other_implementations() -> None:
    oracles = {"torchvision", "timm", "transformers", "pytorchcv"}
    extras = PROJECT["optional-dependencies"]
    assert oracles <= names(extras["dev"])
    for extra in (PROJECT["dependencies"], *(extras[name] for name in extras if name != "dev")):
        assert not oracles & names(extra)


def test_constraints_pin_what_is_declared() -> None:
    pinned = constraints("constraints.txt")
    for requirement in map(Requirement, declared()):
        if requirement.name == "residuum":
            continue
        pin = pinned[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert requirement.specifier.contains(exact.version), f"{pin} is not {requirement}"


def test_constraints_leave_cuda_to_torch() -> None:
    """torch's CUDA build pins NVIDIA's libraries itself: other pins would make it impossible to install."""
    assert not [name for name in constraints("constraints.txt") if name.startswith("nvidia-")]
    assert all(name.startswith("nvidia-") for name in constraints("constraints-gpu.txt"))


def instructions(name: str) -> list[list[str]]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith(f"{name} ")]


def test_the_image_is_made_of_files_that_travel_to_the_engine() -> None:
    travelling = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {
        source.removeprefix("./")
        for arguments in instructions("COPY")
        if not arguments[0].startswith("--from")
        for source in arguments[:-1]
    }
    assert copied == travelling
    assert all((ROOT / name).exists() for name in travelling)


def test_the_image_has_the_version_of_the_project() -> None:
    (version,) = (words[0] for words in instructions("ARG") if words[0].startswith("VERSION="))
    assert version == f"VERSION={PROJECT['version']}"


def test_the_image_runs_as_a_user_by_number() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user[0])


def test_compose_has_one_service_a_profile_on_the_same_port() -> None:
    cpu, gpu = COMPOSE["services"].values()
    assert (cpu["profiles"], gpu["profiles"]) == (["cpu"], ["gpu"])
    assert cpu["ports"] == gpu["ports"] == ["${RESIDUUM_PORT:-8000}:8000"]
    assert cpu["image"] != gpu["image"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in cpu


def test_compose_up_alone_means_the_cpu() -> None:
    settings = [line for line in (ROOT / ".env").read_text().splitlines() if not line.startswith("#")]
    assert settings == ["COMPOSE_PROFILES=cpu"]


def test_compose_reads_under_both_versions() -> None:
    assert "version" not in COMPOSE  # warned of by v2, not needed by 1.29
    for service in COMPOSE["services"].values():
        assert isinstance(service["ports"][0], str)
        assert isinstance(service.get("environment", {}), dict)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_hardens_and_lets_requests_finish(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    grace_s = float(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.model_fields["drain_timeout"].default


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_says_what_every_target_does() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    helped = subprocess.run(
        ["make"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout
    described = {line.split()[0] for line in helped.splitlines()}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert described == set(phony.split())


def test_ci_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    assert "make check" in script.read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "\ncheck: lint types test " in makefile
