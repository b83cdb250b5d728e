"""The house's own rules: who may import whom, how long a file may be, what is not used."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedsparse", "clients", "strategies", "edge_export", "simulations")
ABOVE = {
    "fedsparse": {"clients", "strategies", "edge_export", "simulations"},
    "clients": {"strategies", "edge_export", "simulations"},
    "strategies": {"clients", "edge_export", "simulations"},
    "edge_export": set(),
    "simulations": set(),
}
"""Packages that a package may not import where a module is loaded."""

SERIALISERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "yaml.load", "os.system", "eval", "exec"}
LONGEST = 450

FILES = [p.relative_to(ROOT) for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.lineno, child.module


def imports_on_load(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the imports that loading the module runs: those outside functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imports(node)
    for child in ast.iter_child_nodes(node):
        yield from imports_on_load(child)


def calls(node: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for child in ast.walk(node):
        if isinstance(child, ast.Call):
            yield child, ast.unparse(child.func)


def trespasses(package: str, module: ast.Module) -> list[tuple[int, str]]:
    above = ABOVE[package]
    return [(line, m) for line, m in imports_on_load(module) if m.partition(".")[0] in above]


def unsafe(module: ast.Module) -> list[tuple[int, str]]:
    """Return what reads or runs what it should not trust: pickles, YAML tags, shells."""
    found = [(line, m) for line, m in imports(module) if m.partition(".")[0] in SERIALISERS]
    for call, name in calls(module):
        allows_pickle = any(
            k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in call.keywords
        )
        shell = any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords)
        if name in UNSAFE_CALLS or allows_pickle or shell:
            found.append((call.lineno, name))
    return found


def test_every_package_has_files():
    assert {path.parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    assert trespasses(path.parts[0], tree(path)) == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_unpickled_and_no_shell_is_asked(path):
    assert unsafe(tree(path)) == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_has_one_subject(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert path.stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_module_says_what_it_is_for(path):
    assert ast.get_docstring(tree(path))


def test_the_rules_see_what_they_forbid():
    assert trespasses("clients", ast.parse("if True:\n    from strategies.base import Reply"))
    assert trespasses("fedsparse", ast.parse("class A:\n    import simulations.grid"))
    assert not trespasses("fedsparse", ast.parse("def f():\n    import simulations.grid"))
    assert not trespasses("simulations", ast.parse("import strategies, clients"))
    for text in (
        "import pickle",
        "def f():\n    from joblib import load",
        "torch.load(path)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
    ):
        assert unsafe(ast.parse(text)), text
    assert not unsafe(ast.parse("np.load(path, allow_pickle=False)\nyaml.safe_load(text)"))
