"""A store of the scans of another one, with other labels; images are shared.

For labels that were made rather than drawn, on the store's own grid: no scan is read
or resampled again. ``image.b2nd`` is a hard link where the disk allows one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homolog.config import config_hash, to_dict
from homolog.errors import UnusableInput
from homolog.json_files import object_or_none
from homolog.store.arrays import write_array
from homolog.store.build import check_folder, intensities_by_modality, writing
from homolog.store.card import IMAGE, LABEL, POINTS, Card
from homolog.store.cases import (
    checksums,
    current_card,
    damages,
    foreground_index,
    write_card,
)
from homolog.store.store import (
    FORMAT,
    LABELS_MADE,
    Store,
    case_folder,
    read_contents,
)
from homolog.writing import share, write_json, write_npy, writing_folder

# Counted up when what is written changes; such stores are then made anew.
_VERSION = 1


def own_labels(store: Store) -> frozenset[str] | None:
    """Cases whose labels are theirs; None: all of them, none were carried."""
    made = (read_contents(store.path) or {}).get(LABELS_MADE)
    return None if made is None else frozenset(made.get("from", ()))


@dataclass
class Relabelled:
    """A store that is being made; see ``relabelling``.

    Attributes:
        source: The store whose scans it has.
        out: Its folder.
        seed: Of the foreground index.
        cards: Cases that are done.
    """

    source: Store
    out: Path
    seed: int = 0
    cards: dict[str, Card] = field(default_factory=dict)

    def keep(self, case_id: str) -> Card:
        """Take a case with the labels that it has."""
        card = self.source.card(case_id)
        key = config_hash(_VERSION, "kept", card.key)
        names = [IMAGE] + [LABEL, POINTS] * card.has_label
        if not self._has(case_id, key):
            with writing_folder(case_folder(self.out, case_id)) as fresh:
                for name in names:
                    share(case_folder(self.source.path, case_id) / name, fresh / name)
                write_card(dataclasses.replace(card, key=key), fresh)
        return self._taken(case_id, key)

    def has(self, case_id: str, key: str) -> bool:
        """Whether a case with labels of this key was made before; it is taken then."""
        key = self._key(case_id, key)
        if not self._has(case_id, key):
            return False
        self._taken(case_id, key)
        return True

    def put(self, case_id: str, labels: NDArray[np.integer], key: str) -> Card:
        """Take a case with these labels.

        Args:
            case_id: Of the source.
            labels: (D, H, W) on the stored grid; 0 background, -1 teaches nothing.
            key: Hash of all that the labels depend on but the stored case.

        Raises:
            UnusableInput: Labels of another size.
            JobError: What was written does not read back.
        """
        card = self.source.card(case_id)
        if labels.shape != card.shape:
            raise UnusableInput(
                f"{case_id} of {self.source.path} has {card.shape} voxels, got labels "
                f"of {labels.shape}."
            )
        array = np.ascontiguousarray(labels, np.int16)
        points, counts = foreground_index(array, self.seed)
        with writing_folder(case_folder(self.out, case_id)) as fresh:
            share(case_folder(self.source.path, case_id) / IMAGE, fresh / IMAGE)
            write_array(array, fresh / LABEL)
            write_npy(fresh / POINTS, points)
            names = (IMAGE, LABEL, POINTS)
            new = dataclasses.replace(
                card, key=self._key(case_id, key), has_label=True, label_map={},
                label_values=tuple(sorted(counts)), label_counts=counts,
                label_source=None, boxes=(), target=None, types=None,
                files={name: (fresh / name).stat().st_size for name in names},
            )  # fmt: skip
            sums = {**card.checksums, **checksums(fresh, new)}
            write_card(dataclasses.replace(new, checksums=sums), fresh)
        return self._taken(case_id, new.key)

    def leave_out(self, case_id: str) -> None:
        """Take a case out again; its files stay for the next time."""
        self.cards.pop(case_id, None)

    def finish(self, facts: Mapping[str, object]) -> Store:
        """Write the list of cases; the store is there then.

        Args:
            facts: How its labels were made, JSON types, for ``store.json``.
        """
        source = self.source
        contents = {
            "format": FORMAT,
            "preprocessing": to_dict(source.preprocessing),
            "label_names": {str(v): name for v, name in source.label_names.items()},
            "fingerprint": {
                **source.fingerprint,
                "intensities": intensities_by_modality(list(self.cards.values())),
            },
            "cases": {
                name: {"key": card.key, "split": card.split}
                for name, card in sorted(self.cards.items())
            },
            LABELS_MADE: dict(facts),
        }
        write_json(self.out / "store.json", contents, end="")
        return Store.open(self.out)

    def _key(self, case_id: str, key: str) -> str:
        return config_hash(_VERSION, "made", self.source.card(case_id).key, key)

    def _has(self, case_id: str, key: str) -> bool:
        card = current_card(self.out, case_id, key)
        return card is not None and not damages(case_folder(self.out, case_id), card)

    def _taken(self, case_id: str, key: str) -> Card:
        card = current_card(self.out, case_id, key)
        assert card is not None
        # the split is the source store's, not the case's
        card = dataclasses.replace(card, split=self.source.card(case_id).split)
        self.cards[case_id] = card
        return card


@contextmanager
def relabelling(source: Store, out: Path, seed: int = 0) -> Iterator[Relabelled]:
    """The right to make a store of another one's scans.

    Cases that lie there from an earlier, interrupted time are found again.

    Raises:
        UnusableInput: The folder is the source, something else, a store that was
            prepared from scans, or in use.
    """
    if out.resolve() == source.path:
        raise UnusableInput(f"{out} is the store itself; choose another folder.")
    check_folder(out)
    contents = object_or_none(out / "store.json")
    if contents is not None and LABELS_MADE not in contents:
        raise UnusableInput(
            f"{out} is a store that was prepared from scans; choose another folder."
        )
    with writing(out):
        yield Relabelled(source, out, seed)
