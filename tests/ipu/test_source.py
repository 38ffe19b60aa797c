"""The worker's files run in the vendor's image: Python 3.8 and torch 2.0, which the checkout itself does not use."""

import ast
import re
from pathlib import Path

import pytest

from .process import FOLDER

FILES = sorted(FOLDER.glob('*.py'))
LATER = {
    # Python 3.9 and later.
    'removeprefix',
    'removesuffix',
    'bit_count',
    'pairwise',
    'to_thread',
    'is_relative_to',
    'TaskGroup',
    'Self',
    'StrEnum',
    'UTC',
    # torch 2.1 and later, or not for a graph that PopTorch compiles.
    'export',
    'Buffer',
    'RMSNorm',
    'flex_attention',
    'scaled_dot_product_attention',
    'set_default_device',
    'attention',
    'inf',
    'finfo',
}
LATER_NAMES = LATER | {'cache', 'batched'}
"""Of imports: as attributes these would be too common."""
GENERIC = {'list', 'dict', 'tuple', 'set', 'frozenset', 'type', 'Callable', 'Iterator', 'Sequence', 'Iterable'}
SENTINEL = 'from __future__ import annotations'


def annotations(tree: ast.AST) -> set[ast.AST]:
    """All nodes within annotations, which are not evaluated where the sentinel stands."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        for field in ('annotation', 'returns'):
            part = getattr(node, field, None)
            if isinstance(part, ast.AST):
                found |= set(ast.walk(part))
    return found


def problems(text: str) -> list[str]:
    """What Python 3.8 or torch 2.0 would not take."""
    try:
        tree = ast.parse(text, feature_version=(3, 8))
    except SyntaxError as error:
        return [f'{error.lineno}: {error.msg}']
    skipped = annotations(tree) if SENTINEL in text else set()
    found = []
    for node in ast.walk(tree):
        name = getattr(node, 'attr', getattr(node, 'id', None))
        line = getattr(node, 'lineno', 0)
        if node in skipped:
            continue
        if isinstance(node, ast.Match):
            found.append(f'{line}: match')
        elif isinstance(node, ast.With) and len(node.items) > 1 and text.splitlines()[line - 1].rstrip().endswith('('):
            found.append(f'{line}: with in parentheses')
        elif isinstance(node, ast.Name | ast.Attribute) and name in LATER:
            found.append(f'{line}: {name}')
        elif isinstance(node, ast.ImportFrom | ast.Import) and {alias.name for alias in node.names} & (
            LATER | {'cache'}
        ):
            found.append(f'{line}: import of something later')
        elif isinstance(node, ast.Subscript) and getattr(node.value, 'id', None) in GENERIC:
            found.append(f'{line}: {ast.unparse(node)} is evaluated')
        elif isinstance(node, ast.keyword) and node.arg in ('slots', 'kw_only'):
            found.append(f'{line}: {node.arg}=')
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'zip' and node.keywords:
            found.append(f'{line}: zip(strict=)')
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and _is_type(node.right):
            found.append(f'{line}: {ast.unparse(node)} is evaluated')
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and isinstance(node.right, ast.Dict):
            found.append(f'{line}: dict | dict')
    return found


def _is_type(node: ast.expr) -> bool:
    return (isinstance(node, ast.Constant) and node.value is None) or getattr(node, 'id', '') in {'int', 'str', 'float'}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_file_is_python_3_8_and_torch_2_0(path: Path) -> None:
    assert problems(path.read_text(encoding='utf-8')) == []


@pytest.mark.parametrize(
    'text',
    [
        'match x:\n    case 1: pass',
        'def f(x: int | None): ...',
        'names: list[int] = []',
        f'{SENTINEL}\nAlias = dict[str, int]',
        f'{SENTINEL}\nisinstance(x, int | None)',
        f'{SENTINEL}\nfor a, b in zip(x, y, strict=True): ...',
        'x = {} | {1: 2}',
        'torch.nn.functional.scaled_dot_product_attention(q, k, v)',
        'from functools import cache',
        'except* ValueError: pass',
    ],
)
def test_what_is_later_would_be_found(text: str) -> None:
    assert problems(text) != []


def test_nothing_in_a_checkpoint_can_be_run_and_no_pickle_is_read() -> None:
    for path in FILES:
        assert not re.search(r'trust_remote_code|torch\.load|pickle|transformers\s*import', path.read_text('utf-8'))


def test_requirements_are_pinned_and_leave_the_image_s_packages_alone() -> None:
    lines = [
        line for line in (FOLDER / 'requirements.txt').read_text('utf-8').splitlines() if line[:1] not in ('', '#')
    ]
    assert all(re.fullmatch(r'[\w.-]+(\[\w+\])?==[\d.]+', line) for line in lines)
    names = {re.split(r'[\[=]', line)[0].lower() for line in lines}
    assert 'tritonclient' in names
    assert names.isdisjoint({'torch', 'poptorch', 'popart', 'poplar'})
