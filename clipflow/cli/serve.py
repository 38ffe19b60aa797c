"""`clipflow serve`."""

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add `serve`."""
    command = commands.add_parser(
        'serve',
        help='run the service',
        description='Run the Flow under supervision. Settings come from CLIPFLOW_* in the environment, see '
        'docs/configuration.md. SIGTERM and Ctrl-C stop it.',
    )
    command.add_argument('--flow', type=Path, help='the Flow to run (default: flow.yml of this installation)')
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from clipflow import ROOT
    from clipflow.border import launcher
    from clipflow.border.supervised import say
    from clipflow.settings import GatewaySettings, unknown_variables

    for sentence in unknown_variables():
        say('warning: ' + sentence)
    launcher.serve(given.flow or ROOT / 'flow.yml', GatewaySettings.load())
    return 0
