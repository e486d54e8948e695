"""One set of names in all cases of a manifest: what is called otherwise in one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from anatomark.cases.case import Case
from anatomark.errors import listed, nearest
from anatomark.io.names import folded

Names = Mapping[str, Sequence[str]]  # of each case, by its id


def other_names(cases: Sequence[Case], names: Names) -> list[str]:
    """A line for each case that names no landmark of the first training case, from which the names come; for each name
    that most cases write otherwise (blanks, hyphens, capitals, Unicode form); and where the first training case alone
    uses a name, and lacks one that most others have."""
    if not cases:
        return []
    first = _first(cases)
    alike = _other_spellings(cases, names)
    lines = [line for case in cases for line in alike.get(case.id, ())]
    strange = [c for c in cases if not set(names[c.id]) & set(names[first.id]) and c.id not in alike]
    lines += [
        f"row {case.row}: {case.source}: names {listed(names[case.id], 3, quote=True)}, none of which case "
        f"{first.id!r} (row {first.row}) has: {listed(names[first.id], 3, quote=True)}; convert `label_from` "
        "description, or rename"
        for case in strange
    ]
    rest = [c for c in cases if c is not first and c not in strange]
    return lines + ([] if first.id in alike else _renamed_in_first(first, rest, names))


def unknown_names(cases: Sequence[Case], names: Names) -> list[str]:
    """A remark on each case that has a name which the first training case lacks, and lacks one which that case has."""
    lines = []
    for case in cases:
        first = _first(cases)
        own, known = names[case.id], names[first.id]
        other, lacking = [n for n in own if n not in known], [n for n in known if n not in own]
        if other and lacking:
            lines.append(
                f"row {case.row}: {case.source}: case {case.id!r} has {_near(other, lacking)}, which the first "
                f"training case {first.id!r} lacks, and lacks {listed(lacking, 3, quote=True)}: is that one landmark "
                "under two names? Names that the first lacks are not learned"
            )
    return lines


def _near(names: Sequence[str], lacking: Sequence[str]) -> str:
    """The names, each with the one of ``lacking`` that it may be a slip of."""
    return listed([f"{name!r}{nearest(name, lacking)}" for name in names], 3)


def _first(cases: Sequence[Case]) -> Case:
    return next((c for c in cases if c.split == "train"), cases[0])


def _other_spellings(cases: Sequence[Case], names: Names) -> dict[str, list[str]]:
    """Lines by case: its names that more cases (or as many, the first among them) spell otherwise."""
    spellings: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        for name, key in zip(names[case.id], map(folded, names[case.id]), strict=True):
            spellings.setdefault(key, {}).setdefault(name, []).append(case)
    lines: dict[str, list[str]] = {}
    for kinds in spellings.values():
        together = Counter(case.id for users in kinds.values() for case in users)
        if len(kinds) == 1 or max(together.values()) > 1:  # a case that has both means two landmarks
            continue
        usual = max(kinds, key=lambda name: len(kinds[name]))  # the first of the most frequent
        known = kinds[usual][0]
        for name, users in kinds.items():
            for case in users if name != usual else ():
                lines.setdefault(case.id, []).append(
                    f"row {case.row}: {case.source}: case {case.id!r} has {name!r}; did you mean {usual!r}, as case "
                    f"{known.id!r} (row {known.row}) has? One landmark needs one name"
                )
    return lines


def _renamed_in_first(first: Case, others: Sequence[Case], names: Names) -> list[str]:
    if len(others) < 2:
        return []
    counts = Counter(folded(n) for case in others for n in names[case.id])
    own = [n for n in names[first.id] if not counts[folded(n)]]
    mine = {folded(n) for n in names[first.id]}
    theirs = dict.fromkeys(n for case in others for n in names[case.id])
    lacking = [n for n in theirs if 2 * counts[folded(n)] > len(others) and folded(n) not in mine]
    if not own or not lacking:
        return []
    most = max(counts[folded(n)] for n in lacking)
    own_text, lacks = listed(own, 3, quote=True), listed(lacking, 3, quote=True)
    return [
        f"row {first.row}: {first.source}: the first training case {first.id!r} alone has {own_text}, "
        f"and lacks {lacks}, which {most} of {len(others)} others have; all learn the names of the first: "
        "rename, or name what it lacks without a position"
    ]
