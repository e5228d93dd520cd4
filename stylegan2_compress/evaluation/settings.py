"""Which results on record can be averaged, or be on one curve: those of one setting. Nothing here imports torch."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stylegan2_compress import files

# Entries of records: absolute path, whether mirrored (none of a metric that mirrors no images), of the network's file.
DATA, MIRROR, SHA256 = 'data', 'mirror', 'sha256'
BY_SEED = dict[str, float]
Record = TypeVar('Record', bound=Mapping[str, Any])


def setting_of(record: Mapping[str, Any]) -> str:
    """What a result depends on beside the network and the seed: the data, whether mirrored, embedding and teacher."""
    return json.dumps([record.get(name) for name in (DATA, MIRROR, 'fingerprint', 'teacher')])


def of_file(records: Iterable[Record], file: Path) -> list[Record]:
    """Those of a network file's records that are of what is in it now, and not of what it was replaced with.

    Those that do not say count, as those do of a file that is gone. If some are left out, that is said on stderr.

    Args:
        records: of whatever had the file's name.
    """
    found = list(records)
    if not file.is_file() or not any(SHA256 in record for record in found):
        return found
    sha256 = files.sha256(file)
    kept = [record for record in found if record.get(SHA256, sha256) == sha256]
    if len(kept) < len(found):
        count = len(found) - len(kept)
        what = '1 result is' if count == 1 else f'{count} results are'
        print(f'{file}: {what} of another file that had this name, and left out.', file=sys.stderr)
    return kept


def seed_of(record: Mapping[str, Any]) -> str:
    """The seed, as a key; 'null' of the host's results in training, which record none."""
    return json.dumps(record.get('seed'))


def newest(records: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Results by name, one for each seed: of the setting that was measured last, the newest of each seed.

    Args:
        records: of one network, in the order in which they were measured.
    """
    return {name: list(each.values())[-1] for name, each in by_setting(records).items()}


def by_setting(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Results by name and setting, one for each seed, the newest of each; the setting that was measured last, last.

    Args:
        records: of one network, in the order in which they were measured.
    """
    found: dict[str, dict[str, BY_SEED]] = {}
    for record in records:
        for name, value in record['results'].items():
            by_seed = touched(found.setdefault(name, {}), setting_of(record))
            by_seed[seed_of(record)] = value
    return {name: {setting: values(by_seed) for setting, by_seed in each.items()} for name, each in found.items()}


def touched(by_setting: dict[str, dict], setting: str) -> dict:
    """The entry of a setting, new where there is none, and now the last of all."""
    by_setting[setting] = by_setting.pop(setting, {})
    return by_setting[setting]


def values(by_seed: BY_SEED) -> list[float]:
    """Results of all seeds. Those without one count where there are no others."""
    return [value for seed, value in by_seed.items() if seed != 'null'] or list(by_seed.values())
