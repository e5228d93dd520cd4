"""Fixtures every test file shares: an activated host."""

import pytest

from stylegan2_compress import host

host.activate()
