"""Every hostile file ends in what docs/safety.md says, and nothing of it runs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from attacks import ATTACKS, Attack, table
from each import each
from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput

GROUPS = dict.fromkeys(attack.group for attack in ATTACKS)


def meet(attack: Attack, folder: Path) -> None:
    """Read one; it is refused by one sentence, or does no harm."""
    inside = folder / "here"
    inside.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zips that hold a name twice
        if not attack.says:
            attack.meet(inside)
        else:
            refused = (UnusableInput, ConfigError, JobError)
            with pytest.raises(refused, match=attack.says) as error:
                attack.meet(inside)
            assert len(str(error.value)) < 2000
            assert "root:" not in str(error.value)
    assert [p.name for p in folder.iterdir()] == ["here"], "it wrote outside"
    assert not list(inside.rglob("ran*")), "it ran"


@pytest.mark.skipif(os.name == "nt", reason="links and names of POSIX")
@pytest.mark.parametrize("group", GROUPS)
def test_every_attack_ends_as_it_must(group: str, tmp_path: Path) -> None:
    @each("attack", [attack for attack in ATTACKS if attack.group == group])
    def all_of(attack: Attack, tmp_path: Path) -> None:
        meet(attack, tmp_path)

    all_of(tmp_path=tmp_path)


def test_the_page_lists_them_all() -> None:
    page = Path(__file__).parents[1] / "docs" / "safety.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    missing = [row for row in table() if row not in lines]
    assert missing == [], "python tests/attacks.py prints the rows"
    assert len(ATTACKS) == len({(a.group, a.what) for a in ATTACKS})
