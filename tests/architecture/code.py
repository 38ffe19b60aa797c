"""The code as data: which modules there are and what each imports, in functions as well."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(
    path for path in (ROOT / 'executors').iterdir() if path.is_dir() and not path.name.startswith(('.', '_'))
)
DOORS = [*ROOMS, ROOT / 'gateway']
PACKAGES = {'clipflow': ROOT / 'clipflow', 'clipflow_client': ROOT / 'client' / 'clipflow_client'}


def files(*folders: str) -> list[Path]:
    """All Python files below folders of the checkout."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob('*.py'))


@cache
def modules() -> dict[str, Path]:
    """Dotted names of our own modules and their files."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob('*.py'):
            parts = [package, *path.relative_to(folder).with_suffix('').parts]
            found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding='utf-8'), str(path))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports anywhere; `from a import b` is `a.b` where that is one of our modules."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            both = {f'{node.module}.{alias.name}' for alias in node.names}
            known = both & set(modules())
            found |= known if known == both else known | {str(node.module)}
    return frozenset(found)


def has_relative_import(path: Path) -> bool:
    """Whether a file imports anything by a leading dot."""
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree(path)))


def top(name: str) -> str:
    """The distribution-level name: `jina.proto.x` is `jina`."""
    return name.partition('.')[0]


def own_imports(module: str) -> set[str]:
    """Which of our own modules this one imports."""
    return {name for name in imports(modules()[module]) if name in modules() and name != module}
