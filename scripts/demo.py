"""The whole way in one go: start the service, index photographs, search them, and draw the results.

    python scripts/demo.py [FOLDER]

Without a folder it takes the photographs that scikit-image ships, and fails unless each query finds the right one.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from clipflow import ROOT
from clipflow.cli import grid
from clipflow_client import Client
from local_service import LocalService

OUT = ROOT / 'out'
EXPECTED = {
    'a cat': 'chelsea.png',
    'a cup of coffee': 'coffee.png',
    'a rocket launch': 'rocket.jpg',
    'a man with a camera': 'camera.png',
    'a clock': 'clock_motion.png',
    'a motorcycle': 'motorcycle_left.png',
}
PHOTOGRAPHS = (
    *EXPECTED.values(),
    *('astronaut.png', 'brick.png', 'coins.png', 'grass.png', 'gravel.png', 'hubble_deep_field.jpg', 'moon.png'),
    *('page.png', 'retina.jpg', 'text.png', 'ihc.png', 'cell.png', 'horse.png', 'logo.png'),
)


def index(paths: list[str], address: str) -> None:
    """What `clipflow index` does."""
    command = [sys.executable, '-m', 'clipflow.cli.main', 'index', '--host', address, *paths]
    if subprocess.run(command, check=False).returncode not in (0, 1):
        raise SystemExit('demo: indexing failed')


def search(address: str, check: bool) -> None:
    """Search, draw, and check the first result of each query."""
    rows, wrong = [], []
    with Client(address) as client:
        for query, expected in EXPECTED.items():
            matches = client.search(query, limit=5, include=['tags', 'uri', 'thumbnail'])
            if not matches:
                raise SystemExit('demo: nothing was indexed')
            rows.append((query, matches))
            found = matches[0].tags['filename']
            print(f'    {query:20} -> {found} ({matches[0].score:.3f})')
            if check and found != expected:
                wrong.append(f'{query!r} found {found}, not {expected}')
    OUT.mkdir(exist_ok=True)
    grid.save(rows, OUT / 'demo.png')
    if wrong:
        raise SystemExit('demo: ' + '; '.join(wrong))


def main() -> None:
    """Run the demo."""
    folder = Path(sys.argv[1]).expanduser() if len(sys.argv) > 1 and sys.argv[1] else None
    if folder is not None:
        paths = [str(folder)]
    else:
        import skimage

        paths = [str(Path(skimage.__file__).parent / 'data' / name) for name in PHOTOGRAPHS]
    with tempfile.TemporaryDirectory(prefix='clipflow-demo-') as workspace:
        print('1. starting the service')
        with LocalService(Path(workspace), echo=True) as service:
            print('2. indexing')
            index(paths, service.grpc)
            print('3. searching')
            search(service.grpc, check=folder is None)
    print(f'4. the results are drawn in {OUT / "demo.png"}')


if __name__ == '__main__':
    main()
