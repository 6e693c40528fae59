"""What modules import, read from their sources without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs


@attrs.frozen
class Import:
    """``target`` is the module imported (a submodule where the name is one); ``name`` what is taken from it."""

    target: str
    name: str
    line: int


@attrs.frozen
class Module:
    package: str  # the import package: "genie", "genie_pytorch", …
    name: str  # "genie.schedule.cost"
    path: Path
    lines: int
    imports: tuple[Import, ...]
    calls: tuple[tuple[str, int], ...]  # plain names called, with their lines

    def reaches(self, *prefixes: str) -> Iterator[tuple[Import, str]]:
        """Its imports of a module named, or below one."""
        for each in self.imports:
            for prefix in prefixes:
                if each.target == prefix or each.target.startswith(prefix + "."):
                    yield each, prefix


def read(root: Path) -> dict[str, Module]:
    """All modules of all packages below ``root`` (``genie-*/src``), by name."""
    sources = {}
    for source in sorted(root.glob("genie-*/src")):
        for path in sorted(source.rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: _module(name, path, sources) for name, path in sources.items()}


def cycles(modules: Mapping[str, Module]) -> list[list[str]]:
    """Groups of modules that import each other, function-level imports included (Tarjan's components)."""
    edges = {
        name: sorted({each.target for each in module.imports} & modules.keys()) for name, module in modules.items()
    }
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            component = []
            while not component or component[-1] != name:
                component.append(stack.pop())
            if len(component) > 1 or name in edges[name]:
                found.append(sorted(component))

    for name in edges:
        if name not in order:
            visit(name)
    return found


def _module(name: str, path: Path, sources: Mapping[str, Path]) -> Module:
    text = path.read_text()
    visitor = _Visitor(name, path.name == "__init__.py", sources)
    visitor.visit(ast.parse(text, str(path)))
    lines = len(text.splitlines())
    # A distribution may keep what it offers in a module beside its package, so that listing plugins imports neither.
    package = name.split(".")[0].removesuffix("_plugin")
    return Module(package, name, path, lines, tuple(visitor.imports), tuple(visitor.calls))


class _Visitor(ast.NodeVisitor):
    def __init__(self, name: str, is_package: bool, sources: Mapping[str, Path]) -> None:
        self._parent = name if is_package else name.rpartition(".")[0]
        self._own = name.split(".")[0]
        self._sources = sources
        self.imports: list[Import] = []
        self.calls: list[tuple[str, int]] = []

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        typing_only = isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
        if isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING":
            typing_only = True
        for child in node.orelse if typing_only else [test, *node.body, *node.orelse]:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.imports += [Import(alias.name, "", node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = self._parent.split(".")
            parent = ".".join(parts[: len(parts) - node.level + 1])
            base = f"{parent}.{base}" if base else parent
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            # A private name a package takes from itself is a compiled module: it has no source here.
            compiled = base == self._own and alias.name.startswith("_") and base in self._sources
            target = whole if whole in self._sources or compiled else base
            self.imports.append(Import(target, "" if target == whole else alias.name, node.lineno))

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name):
            self.calls.append((node.func.id, node.lineno))
        self.generic_visit(node)
