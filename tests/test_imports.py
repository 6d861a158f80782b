"""Who may import whom: the table of docs/architecture.md, held against every import statement."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("models", "export", "service", "residuum")
OURS = {"models", "export", "service", "benchmarks", "tests", "residuum"}
TORCH = {"torch", "torchvision", "lightning_fabric", "lightning", "kornia", "onnxscript"}

# The longest prefix that a module's name has decides which of our modules it may import, and whether torch.
MAY_IMPORT: dict[str, tuple[set[str], bool]] = {
    "models": ({"models"}, True),
    "models.manifest": (set(), False),
    "models.image_bytes": (set(), False),
    "models.decode": ({"models.image_bytes"}, False),
    "models.preprocess": ({"models.decode", "models.image_bytes", "models.manifest"}, False),
    "export": ({"export", "models"}, True),
    "export.speeds": ({"models", "service"}, False),
    "service": ({"service", "models.preprocess", "models.manifest"}, False),
    "service.engines.pytorch": ({"service", "models"}, True),
    "residuum": ({"residuum", "service", "models", "export", "benchmarks"}, True),
}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything that the table speaks about."""
    names = {}
    for path in (file for top in TOPS for file in sorted((ROOT / top).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(path: Path, *, at_top_only: bool = False) -> set[str]:
    """Every module that a file imports: `from a import b` counts as a.b if that is a module, else as a."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            module = node.module or ""
            found |= {f"{module}.{a.name}" if is_module(f"{module}.{a.name}") else module for a in node.names}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_follow_the_table(name: str) -> None:
    rule = max((prefix for prefix in MAY_IMPORT if is_below(name, prefix)), key=len)
    allowed, torch_too = MAY_IMPORT[rule]
    for imported in imports_of(modules()[name]):
        top = imported.split(".")[0]
        if top in OURS:
            assert any(is_below(imported, prefix) for prefix in allowed), f"{name} imports {imported}"
        elif not torch_too:
            assert top not in TORCH, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(name for name in modules() if is_below(name, "residuum")))
def test_the_command_line_imports_nothing_of_the_other_packages_before_a_command_runs(name: str) -> None:
    tops = {imported.split(".")[0] for imported in imports_of(modules()[name], at_top_only=True)}
    assert not tops & (OURS - {"residuum"} | TORCH)


def test_the_test_sees_what_it_should() -> None:
    assert {"models.manifest", "service.app", "service.engines", "export", "residuum.cli.main"} <= set(
        modules()
    )
    assert "models.manifest" in imports_of(ROOT / "service" / "repository.py")


@pytest.mark.parametrize(
    "module", ["service.app", "models.preprocess", "models.manifest", "residuum.cli.main"]
)
def test_torch_stays_out_of_a_process_that_serves(module: str) -> None:
    code = f"import sys, {module}; print(sorted({TORCH!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
