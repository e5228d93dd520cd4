"""The `stylegan2-compress` command: a table of sub-commands, whose modules are imported when they are asked for.

Nothing here imports torch, so that `--help`, and refusals of what needs no look at a file, come at once.
"""

import importlib

import click

from stylegan2_compress.version import __version__

COMMANDS = {
    'compare': 'evaluation:compare',
    'convert': 'networks:convert',
    'distill': 'training:distill',
    'evaluate': 'evaluation:evaluate',
    'export': 'export:export',
    'find-ticket': 'training:find_ticket',
    'generate': 'generation:generate',
    'host': 'host:host',
    'inspect': 'networks:inspect',
    'patch': 'host:patch',
    'profile': 'networks:profile',
    'prune': 'networks:prune',
    'quickstart': 'training:quickstart',
    'report': 'report:report',
    'run-host': 'scripts:run_host',
    'stats': 'statistics:stats',
    'teachers': 'networks:teachers',
    'ticket': 'tickets:ticket',
}


class Commands(click.Group):
    """A group that imports the commands of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _colon, function = COMMANDS[cmd_name].partition(':')
        return getattr(importlib.import_module(f'{__name__}.{module}'), function)


@click.group(cls=Commands, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(__version__, prog_name='stylegan2-compress')
def main() -> None:
    """Compress StyleGAN2 generators: pruning, distillation with DiME and NICKEL, lottery tickets, evaluation."""
