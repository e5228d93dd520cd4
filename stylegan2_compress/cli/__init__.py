"""The `stylegan2-compress` command: its sub-commands are in `commands/`.

Imports of torch and of our rooms happen inside the commands, so that `--help` answers at once.
"""

import click

from stylegan2_compress.cli import evaluation, host, networks, report, statistics, tickets, training
from stylegan2_compress.version import __version__


@click.group(context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(__version__, prog_name='stylegan2-compress')
def main() -> None:
    """Compress StyleGAN2 generators: pruning, DiME distillation, and what they need around them."""


for command in (
    host.host,
    host.patch,
    networks.inspect,
    networks.convert,
    networks.prune,
    networks.profile,
    statistics.stats,
    training.distill,
    training.quickstart,
    report.report,
    evaluation.evaluate,
    evaluation.compare,
    tickets.find_ticket,
    tickets.ticket,
):
    main.add_command(command)
