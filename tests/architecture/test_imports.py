"""Data flows one way: who may import whom."""

from pathlib import Path

import pytest

from .code import DOORS, files, has_relative_import, imports, modules, own_imports, top

# Each part of clipflow, lowest first, and what it may import. The package itself (ROOT, __version__) is open to all.
ALLOWED: dict[str, set[str]] = {
    'errors': set(),
    'files': {'errors'},
    'tags': {'errors'},
    'clicks': {'errors'},
    'templates': {'tags'},
    'settings': {'errors', 'templates'},
    'filters': {'errors'},
    'wire': {'errors', 'filters', 'templates', 'clicks'},
    'access': {'errors', 'wire'},
    'metrics': set(),
    'tracing': set(),
    'logs': set(),
    'order': set(),
    'quantiles': set(),
    'sharding': set(),
    'probe': set(),
    'flows': {'errors'},
    'deploy': {'errors', 'flows'},
    'work': {'errors', 'wire'},
    'gathering': {'errors', 'wire', 'work'},
    'cache': set(),
    'catalogue': {'errors'},
    'checkpoint': {'errors'},
    'preprocessing': {'checkpoint'},
    'weights': {'errors', 'catalogue', 'templates', 'checkpoint', 'preprocessing'},
    'pictures': {'errors', 'preprocessing'},
    'addresses': set(),
    'sources': {'errors', 'addresses'},
    'tokens': {'errors', 'weights'},
    'preparation': {'errors', 'settings', 'tags', 'wire', 'weights', 'pictures', 'sources'},
    'vectors': {'errors'},
    'sessions': {'errors', 'files', 'settings', 'preprocessing', 'weights', 'tokens'},
    'batching': {'errors', 'templates', 'wire', 'cache', 'weights', 'tokens', 'preparation', 'vectors', 'sessions'},
    'classify': {'errors', 'wire'},
    'elsewhere': {'pictures', 'errors', 'wire', 'preparation', 'vectors'},
    'store': {'errors', 'files', 'filters', 'clicks'},
    'backup': {'errors', 'files', 'store'},
    'records': {'tags', 'wire', 'store'},
    'index': {'errors', 'files', 'filters', 'store', 'order', 'vectors', 'quantiles'},
    'milvus': {'errors', 'filters', 'wire', 'quantiles', 'store', 'index'},
    'bulk': {
        'errors',
        'tags',
        'files',
        'settings',
        'wire',
        'work',
        'sharding',
        'weights',
        'preparation',
        'sessions',
        'batching',
        'store',
        'index',
        'templates',
        'vectors',
    },
    'rank': {'errors', 'files', 'tags', 'clicks', 'wire', 'order', 'vectors', 'quantiles'},
    'relevance': {
        'errors',
        'tags',
        'templates',
        'quantiles',
        'files',
        'settings',
        'wire',
        'weights',
        'bulk',
        'index',
        'rank',
    },
    'tuning': {
        'errors',
        'files',
        'tags',
        'clicks',
        'templates',
        'preprocessing',
        'weights',
        'pictures',
        'tokens',
        'work',
        'sessions',
        'rank',
        'relevance',
    },
    'web': {'errors', 'tags', 'clicks', 'settings', 'access', 'metrics', 'tracing', 'logs', 'sources', 'wire'},
    'border': {
        'errors',
        'flows',
        'settings',
        'access',
        'metrics',
        'tracing',
        'wire',
        'work',
        'logs',
        'weights',
        'sharding',
        'store',
        'tags',
        'clicks',
        'records',
        'index',
    },
    'client': {'errors', 'tags', 'files', 'clicks', 'wire'},
    'cli': {
        'access',
        'deploy',
        'flows',
        'tuning',
        'clicks',
        'rank',
        'backup',
        'relevance',
        'bulk',
        'store',
        'index',
        'errors',
        'files',
        'settings',
        'weights',
        'tokens',
        'sessions',
        'border',
        'client',
    },
}


def part_of(module: str) -> str:
    """The row of the table that a module belongs to; empty for the package itself."""
    if top(module) == 'clipflow_client':
        return 'client'
    return [*module.split('.'), ''][1]


def edges() -> dict[str, set[str]]:
    """Part to parts, as the code has them."""
    found: dict[str, set[str]] = {}
    for module in modules():
        found.setdefault(part_of(module), set()).update(part_of(name) for name in own_imports(module))
    return {part: targets - {part, ''} for part, targets in found.items() if part}


def test_every_part_of_the_package_has_a_row_in_the_table() -> None:
    assert set(edges()) == set(ALLOWED)


@pytest.mark.parametrize('part', ALLOWED)
def test_a_part_imports_only_what_the_table_allows(part: str) -> None:
    assert edges()[part] - ALLOWED[part] == set()


@pytest.mark.parametrize('part', ALLOWED)
def test_the_table_points_downwards_only(part: str) -> None:
    lower = list(ALLOWED)[: list(ALLOWED).index(part)]
    assert ALLOWED[part] <= set(lower)


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, ' -> '.join((*trail[trail.index(module) :], module))
        if module not in done:
            for name in own_imports(module):
                visit(name, (*trail, module))
            done.add(module)

    for module in modules():
        visit(module, ())


def test_only_the_border_and_the_client_know_jina() -> None:
    knowing = {part_of(name) for name, path in modules().items() if 'jina' in {top(other) for other in imports(path)}}
    assert knowing <= {'border', 'client'}


def test_the_package_imports_no_room() -> None:
    rooms = {file.stem for folder in DOORS for file in folder.glob('*.py')} | {'executors', 'gateway'}
    assert [name for name, path in modules().items() if rooms & {top(other) for other in imports(path)}] == []


@pytest.mark.parametrize('folder', DOORS, ids=lambda folder: folder.name)
def test_a_room_imports_no_other_room(folder: Path) -> None:
    others = {file.stem for other in DOORS if other != folder for file in other.glob('*.py')}
    for file in folder.glob('*.py'):
        assert (others | {'executors', 'gateway'}).isdisjoint(top(name) for name in imports(file))


def test_nothing_is_imported_by_a_relative_path() -> None:
    assert [path for path in files('clipflow', 'client', 'executors', 'gateway') if has_relative_import(path)] == []
