"""Which tests `make test-fast` runs: those that need no server, browser, export, training or further process.

A test file whose imports alone take seconds is not imported. Of the other files a test is left out if
something slow is used by its function, by one of its fixtures, or by a function of the tests that these call.
A test that is slow for another reason has the mark `slow`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

# Importing these takes seconds, and a file that imports them at its top is for what is slow.
HEAVY = ("datasets", "export", "models.training", "playwright", "schemathesis", "tests.support.browser")
# What uses something of these starts a server, a browser or another process, exports or trains.
SLOW = (
    *HEAVY,
    "benchmarks.http_servers.running",
    "subprocess",
    "tests.support.files_server",
    "tests.support.live",
    "tests.support.workshop",
)


def is_heavy(file: Path) -> bool:
    """True if a test file imports something of HEAVY at its top."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if any(_is_of(name, HEAVY) for name in names):
            return True
    return False


def is_slow(item: pytest.Item) -> bool:
    """True if a test has the mark `slow`, or if it or one of its fixtures uses something of SLOW."""
    if item.get_closest_marker("slow"):
        return True
    assert isinstance(item, pytest.Function)
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(each[-1].func for each in fixtures)]
    return any(_is_of(name, SLOW) for function in functions for name in _used(function, set()))


def _used(function: Any, seen: set[CodeType]) -> Iterator[str]:
    """Yield the dotted names of what a function uses, also through functions and classes of the tests."""
    function = getattr(function, "__wrapped__", function)
    if not isinstance(function, FunctionType) or function.__code__ in seen:
        return
    seen.add(function.__code__)
    for name in _names(function.__code__):
        if "." in name:  # of an import inside the function
            yield name
        used = function.__globals__.get(name)
        if isinstance(used, ModuleType):
            yield used.__name__
        elif module := getattr(used, "__module__", None):
            yield f"{module}.{name}"
            if module.startswith("tests."):
                for part in vars(used).values() if isinstance(used, type) else [used]:
                    yield from _used(part, seen)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that code uses, with those of functions and comprehensions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_of(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
