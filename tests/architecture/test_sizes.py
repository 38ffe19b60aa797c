"""Short enough to be read in one sitting."""

import ast

from .code import ROOT, files, tree

FILES = files('clipflow', 'executors', 'gateway', 'client')
MODULE_LINES = 400
FUNCTION_LINES = 80


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding='utf-8').splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MODULE_LINES} == {}


def test_no_function_is_longer_than_80_lines() -> None:
    long = {
        f'{path.relative_to(ROOT)}:{node.lineno}': node.name
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= FUNCTION_LINES
    }
    assert long == {}


def test_every_module_begins_with_what_it_is_for() -> None:
    assert [path for path in FILES if not ast.get_docstring(tree(path))] == []
