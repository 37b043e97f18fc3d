"""Whose scans they are, where no manifest and no DICOM tag states it.

Scans of one person must never be parted by a split. When in doubt two are taken for one
person: that costs a little data, the opposite would make results too good.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from homolog.config import ConfigError
from homolog.scans.names import shorter_names
from homolog.scans.paths import scan_stem, split_series
from homolog.words import counted, listed

_BIDS = re.compile(r"^(sub-[A-Za-z0-9]+)(?:_|$)")

# Names of public collections whose last number is a visit of the same person: BraTS
# since 2023, TCGA, OASIS 2 and 3, ChestX-ray14.
_VISITS = (
    re.compile(r"(?P<person>BraTS-[A-Za-z]+-\d{5})-\d{3}(?!\d)", re.IGNORECASE),
    re.compile(r"(?P<person>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE),
    re.compile(r"(?P<person>OAS\d_?\d{4})_MR", re.IGNORECASE),
    re.compile(r"(?P<person>\d{8})_\d{3}$"),
)

# Last words of names that tell scans of one person apart.
_SEQUENCES = """
    t1 t1w t1c t1ce t1cw t1n t1gd t1km t1ca t1post t1pre t1wce t2 t2w t2f t2s t2star
    t2tse t2spir t2fs flair pd pdw dwi adc swi dti dsc dce perf bold asl mra mrv tof
    mprage mp2rage tse ffe stir spir space fatsat dixon inphase outphase opphase
    opposed water fat unit1 cine lge bssfp hbv tra ax axial cor coronal sag sagittal
    ct cbct cta ncct cect mr mri pet suv spect fdg us xr
"""
_TIMES = """
    ed es enddiastole endsystole diastole systole diastolic systolic 4d baseline bl
    followup fup fu pre post preop postop pretreatment posttreatment precontrast
    postcontrast prior current native noncontrast contrast arterial venous
    portalvenous delayed late early insp exp inspiration expiration inhale exhale rest
    stress
"""
_PLACES = "left right lt rt lh rh lhs rhs prone supine image img scan vol volume"
_WORDS = frozenset(f"{_SEQUENCES} {_TIMES} {_PLACES}".split())
# With a number behind them, or in the next word: ``frame01``, ``ses-02``.
_NUMBERED = frozenset(
    """
    frame fr phase ph time tp timepoint timeframe visit vis ses session sess day week wk
    month year followup fu run echo inv acq
    """.split()
)
# As much only behind a name that has a number of its own: ``P01_L``, not ``model_l``;
# and with a number of one digit (``P01_scan2``), of times of several (``P01_t12``).
_SHORT = frozenset("l r od os pa ap lat cc mlo sa la sax lax de c0 pv".split())
_FEW = frozenset("mr ct pet scan series exam study rep".split())
_CHAMBERS = re.compile(r"[234]ch")
_LAST = re.compile(r"^(?P<core>.*?)[_\-. ]+(?P<word>[^_\-. ]+)$")


def person_of(name: str) -> str:
    """A scan's name without what tells scans of one person apart.

    ``acdc_001_ED`` -> ``acdc_001``; ``sub-01_ses-02_T1w`` -> ``sub-01``;
    ``hippocampus_001`` stays: a number alone is another person.

    Args:
        name: Of a file or folder, without suffix.
    """
    if bids := _bids(name):
        return bids
    for known in _VISITS:
        if found := known.search(name):
            return name[: found.end("person")]
    core = name
    while shorter := _shortened(core):
        core = shorter
    return core


def _shortened(name: str) -> str:
    """The name without its last word, where that tells no persons apart; else empty."""
    found = _LAST.match(name)
    if found is None or not re.search(r"[A-Za-z0-9]", found["core"]):
        return ""
    core, word = found["core"], found["word"].lower()
    if word in _WORDS or _CHAMBERS.fullmatch(word):
        return core
    has_number = re.search(r"\d", core) is not None
    if has_number and word in _SHORT:
        return core
    parts = re.fullmatch(r"([a-z]+)(\d{1,4})", word)
    if parts and parts[1] in _NUMBERED:
        return core
    if (
        parts
        and has_number
        and (parts[1] in ("t", "v") or (parts[1] in _FEW and len(parts[2]) == 1))
    ):
        return core
    before = _LAST.match(core)
    if word.isdigit() and before and before["word"].lower() in _NUMBERED:
        return before["core"]
    return ""


def _is_no_person(name: str) -> bool:
    """Whether a folder's whole name is such a word: ``visit1``, ``ses-02``, ``T1``."""
    return person_of(f"0_{name}") == "0"


@dataclass(frozen=True)
class SubjectPattern:
    """Where in a scan's name its person stands, as the user told it.

    Attributes:
        text: A regular expression; its first group is the person.
    """

    text: str

    def __post_init__(self) -> None:
        """Raise ConfigError where it cannot be meant."""
        try:
            groups = re.compile(self.text).groups
        except re.error as error:
            raise ConfigError(
                f"subjects must be a regular expression, got {self.text!r}: {error}."
            ) from None
        if groups == 0:
            raise ConfigError(
                "subjects must have a group in brackets that matches the person, such "
                f"as '(patient[0-9]+)', got {self.text!r}."
            )

    def person_of(self, name: str) -> str:
        """What the first group matches in a name; empty where nothing does."""
        found = re.search(self.text, name)
        return (found.group(1) or "") if found else ""


# How the person of a scan was known, in the words of the note.
STATED, PATTERN, TAG, FOLDER, NAME, ALONE = (
    "as the source states", "by --subjects", "by their DICOM tags",
    "by their folders and names", "by their names", "each by its own name",
)  # fmt: skip


class Persons:
    """Whose each scan of an index is, and how that is known.

    Args:
        pattern: Regular expression on names whose first group is the person; "" for
            none.

    Raises:
        ConfigError: It cannot be meant.
    """

    def __init__(self, pattern: str = "") -> None:
        self._asked = SubjectPattern(pattern) if pattern else None
        self._known: dict[str, tuple[str, str]] = {}

    def add(self, case: str, name: str, told: str, tagged: str, beside: str) -> str:
        """The person of one more scan.

        Args:
            case: Its id: the person where nothing tells more.
            name: Its name relative to its source, without suffix.
            told: The person as a manifest states, "" for nothing.
            tagged: As the scan's own tags state, "" for nothing.
            beside: What its place among other files suggests, "" for nothing.
        """
        self._known[case] = self._of(case, name, told, tagged, beside)
        return self._known[case][0]

    def _of(
        self, case: str, name: str, told: str, tagged: str, beside: str
    ) -> tuple[str, str]:
        if told:
            return told, STATED
        if self._asked is not None and (found := self._asked.person_of(name)):
            return found, PATTERN
        if tagged:
            return tagged, TAG
        if beside:
            return person_of(beside), FOLDER
        path = Path(name)
        person = person_of(path.name)
        if person == path.name:
            return case, ALONE
        same = path.parent.name in ("", person)
        return person if same else str(path.parent / person), NAME

    def note(self) -> str:
        """How many persons there are, and how that was known; empty for no scan."""
        if not self._known:
            return ""
        cases: dict[str, list[str]] = defaultdict(list)
        for case, (person, _) in self._known.items():
            cases[person].append(case)
        ways = Counter(how for _, how in self._known.values())
        told = next(iter(ways))
        if len(ways) > 1:
            told = "; ".join(f"{n} {how}" for how, n in ways.most_common())
        scans, persons = len(self._known), len(cases)
        text = f"{counted(scans, 'scan')} of {counted(persons, 'patient')} ({told}"
        example = next((ids for ids in cases.values() if len(ids) > 1), None)
        if example:
            text += f"; {example[0]} and {example[1]} are one"
        if set(ways) <= {STATED, PATTERN}:
            return f"{text})."
        return f"{text}); where that is wrong: --subjects."

    def unmatched(self) -> list[str]:
        """A sentence on scans whose names the pattern does not match, if any.

        Raises:
            ConfigError: It matches none of them.
        """
        hows = {case: how for case, (_, how) in self._known.items()}
        odd = [case for case, how in hows.items() if how not in (STATED, PATTERN)]
        if self._asked is None or not odd:
            return []
        text = self._asked.text
        if PATTERN not in hows.values():
            raise ConfigError(
                f"subjects {text!r} matches no name; the first is {odd[0]!r}."
            )
        return [
            f"--subjects {text!r} does not match {counted(len(odd), 'name')} "
            f"({listed(odd, most=4)}): what else is known tells whose they are."
        ]


def guess_subjects(images: Iterable[Path], root: Path) -> dict[Path, str]:
    """Subject of each scan of one folder tree; scans that stand alone are left out.

    In this order: a BIDS name (``sub-01``) in the path; the folder, when it and
    folders beside it hold scans of the same names (``P01/T1``, ``P02/T1``), or the one
    above where it is called like a visit (``P01/visit1/T1``), or the scan's own name
    where there is none (``ED/P01``); a scan beside it whose name it continues with a
    word (``ct``, ``ct_small``).
    """
    subjects: dict[Path, str] = {}
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        bids = next(filter(None, map(_bids, image.relative_to(root).parts)), None)
        folder = home = split_series(image)[0].parent
        while home != root and _is_no_person(home.name):
            home = home.parent
        if bids or (home == root != folder):
            subjects[image] = bids or person_of(scan_stem(image))
        else:
            by_folder[home].append(image)
    persons = _person_folders(by_folder, root)
    for folder, members in by_folder.items():
        if folder in persons:
            subjects.update(dict.fromkeys(members, folder.name))
        else:
            subjects.update(_continued(members))
    return subjects


def _bids(part: str) -> str | None:
    found = _BIDS.match(part)
    return found.group(1) if found else None


def _person_folders(by_folder: Mapping[Path, list[Path]], root: Path) -> set[Path]:
    """Folders whose scans' names come back in a folder beside them."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for folder in by_folder:
        if folder != root and root in folder.parents:
            beside[folder.parent].append(folder)
    persons = set()
    for folders in beside.values():
        names = {f: {scan_stem(i).lower() for i in by_folder[f]} for f in folders}
        count: dict[str, int] = defaultdict(int)
        for stems in names.values():
            for stem in stems:
                count[stem] += 1
        for folder, stems in names.items():
            again = sum(count[stem] > 1 for stem in stems)
            if again * 2 >= len(stems) and len(stems) <= 32:
                persons.add(folder)
    return persons


def _continued(members: list[Path]) -> dict[Path, str]:
    stems = {scan_stem(m): m for m in members}
    subjects = {}
    for stem, member in stems.items():
        start = stem
        for shorter in shorter_names(stem):
            more = stem[len(shorter) :].strip("_-. ")
            if shorter in stems and not re.search(r"\d", more):
                start = shorter
        if start != stem:
            subjects[member] = start
            subjects[stems[start]] = start
    return subjects
