"""`python -m stylegan2_compress` is the same as the `stylegan2-compress` command."""

from stylegan2_compress.cli import main

main()
