"""Who may import whom: the table of docs/architecture.md, held against every import statement."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A package, and the packages below it: all that it may import of ours, beside itself.
BELOW: dict[str, set[str]] = {
    "artifact": set(),
    "engines": {"artifact"},
    "introspection": {"artifact"},
    "models": {"artifact"},
    "export": {"artifact", "engines", "introspection", "models"},
    "service": {"artifact", "engines", "introspection"},
    "studies": {"artifact", "introspection", "models", "export"},
    "benchmarks": {"artifact", "engines", "introspection", "models", "export", "service", "studies"},
    "residuum": {
        "artifact",
        "engines",
        "introspection",
        "models",
        "export",
        "service",
        "studies",
        "benchmarks",
    },
}
# The same inside `service`, whose packages and modules are these.
BELOW_IN_SERVICE: dict[str, set[str]] = {
    "settings": set(),
    "errors": set(),
    "telemetry": {"errors"},
    "batching": set(),
    "runtime": {"settings", "errors", "telemetry", "batching"},
    "http": {"settings", "errors", "telemetry", "batching", "runtime"},
    "process": {"settings", "errors", "telemetry", "batching", "runtime", "http"},
}
TORCH = {"torch", "torchvision", "lightning_fabric", "lightning", "onnxscript"}
MAY_IMPORT_TORCH = ("models", "export", "studies", "engines.pytorch", "benchmarks", "residuum")


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    files = (file for top in BELOW for file in sorted((ROOT / top).rglob("*.py")))
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


MODULES = modules()


def imports_of(name: str, *, at_top_only: bool = False) -> set[str]:
    """Every module that a module imports: `from a import b` counts as a.b if that is a module, else as a."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if at_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            module = node.module or ""
            names = (f"{module}.{alias.name}" for alias in node.names)
            found |= {full if full in MODULES else module for full in names}
    return found


def part(name: str, number: int) -> str:
    """`part("service.http.app", 1)` is "http"; "" where there is none."""
    return (name.split(".") + [""] * number)[number]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_from_packages_below_its_own(name: str) -> None:
    package, room = part(name, 0), part(name, 1)
    for imported in imports_of(name):
        other = part(imported, 0)
        if other in TORCH:
            assert name.startswith(MAY_IMPORT_TORCH), f"{name} imports {imported}"
        if other not in BELOW:
            continue
        assert other == package or other in BELOW[package], f"{name} imports {imported}"
        if other == package == "service" and part(imported, 1) != room:
            assert part(imported, 1) in BELOW_IN_SERVICE[room], f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if part(name, 0) == "residuum"))
def test_a_module_of_the_command_line_imports_other_packages_only_when_a_command_runs(name: str) -> None:
    imported = imports_of(name, at_top_only=True) - {"artifact.errors"}
    tops = {part(other, 0) for other in imported}
    assert not tops & (set(BELOW) - {"residuum"} | TORCH)


def test_no_imports_go_in_a_circle() -> None:
    graph = {name: imports_of(name) & set(MODULES) for name in MODULES}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in path:
            yield (*path[path.index(name) :], name)
        elif name not in done:
            for imported in sorted(graph[name]):
                yield from walk(imported, (*path, name))
            done.add(name)

    circles = [circle for name in sorted(graph) for circle in walk(name, ())]
    assert not circles, "\n".join(" -> ".join(circle) for circle in circles)


def test_service_shows_nine_rooms_or_fewer() -> None:
    rooms = {part(name, 1) for name in MODULES if part(name, 0) == "service"}
    assert rooms - {""} <= {*BELOW_IN_SERVICE, "static"}


@pytest.mark.parametrize("module", ["service.process.serve", "artifact.preprocess", "residuum.cli.main"])
def test_torch_stays_out_of_a_process_that_serves(module: str) -> None:
    code = f"import sys, {module}; print(sorted({TORCH!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
