"""The `stylegan2-compress` command: one thin function per sub-command, the work is in the rooms.

Imports of torch and of our rooms happen inside the commands, so that `--help` answers at once.
"""

import click

from stylegan2_compress.version import __version__


@click.group(context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(__version__, prog_name='stylegan2-compress')
def main() -> None:
    """Compress StyleGAN2 generators: pruning, DiME distillation, and what they need around them."""


# --- host, patch --------------------------------------------------------------------------------------------------


# --- inspect, convert ---------------------------------------------------------------------------------------------


# --- prune, profile -----------------------------------------------------------------------------------------------


# --- stats --------------------------------------------------------------------------------------------------------


# --- distill, quickstart ------------------------------------------------------------------------------------------
