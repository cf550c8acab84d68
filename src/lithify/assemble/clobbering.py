"""Paths that several packages fill with different files: settled before there is a layer, by one rule.

The rule: the family's ``[conda] owners`` decides where it names the path. Else a wheel, which is installed on top, wins
over a conda package; and of two conda packages the one that is linked last, as conda has it: a package comes after all
that it depends on, and else after those whose names sort before its own. (rattler agrees about packages that depend on
each other; of others it keeps the first.) Two wheels with different files for one path are an error, and so is a file
where another package needs a folder.

The loser's fragment is made anew without the path, so that layers may be joined in any order and the loser's own
record tells the truth. Equal files are no conflict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lithify.errors import InputError, LithifyError
from lithify.lockfile import Package
from lithify.store import tar


@dataclass(frozen=True)
class Settlement:
    """One path (relative to the image's root) that several packages bring: whose file stays, and whose do not."""

    path: str
    winner: Package
    losers: tuple[Package, ...]


def settle(
    paths: Mapping[Package, Mapping[str, str]],
    prefixes: Mapping[str, str],
    owners: Mapping[str, str],
) -> tuple[Settlement, ...]:
    """Whose file stays for every path that packages fill differently.

    ``paths`` maps each package's paths to what identifies the file there; ``prefixes`` are the environments', by name;
    ``owners`` are packages' names by path below a prefix.

    Raises:
        LithifyError: for two wheels, or a file in a folder's place: naming the packages and the first paths.
        InputError: for an owner that does not bring the path.
    """
    identities: dict[str, str] = {}
    repeated: set[str] = set()
    for own in paths.values():
        repeated |= {path for path in own.keys() & identities.keys() if own[path] != identities[path]}
        identities.update(own)
    # One file where another package needs a folder is the same mistake.
    below = {path.rpartition("/")[0] for path in identities}
    above = (below | set(tar.parents(below))) & identities.keys()
    if not repeated and not above:
        return ()
    rank = {package: number for number, package in enumerate(linking_order(paths))}
    settled: list[Settlement] = []
    refused: dict[tuple[Package, Package], list[str]] = {}
    folders: dict[tuple[Package, Package], list[str]] = {}
    for path in sorted(repeated | above):
        claims = sorted((package for package in paths if path in paths[package]), key=lambda package: rank[package])
        if path in above:
            other = next(package for package in sorted(paths) if _has_below(path, paths[package]))
            folders.setdefault((claims[0], other), []).append(path)
            continue
        winner = _winner(path, claims, prefixes, owners)
        if winner is None:
            mine = paths[claims[0]][path]
            other = next(package for package in claims if paths[package][path] != mine)
            refused.setdefault((claims[0], other), []).append(path)
            continue
        kept = paths[winner][path]
        settled.append(Settlement(path, winner, tuple(p for p in claims if paths[p][path] != kept)))
    if refused:
        raise _refusal("two packages bring different files for one path", refused)
    if folders:
        raise _refusal("one package brings a file where another has a folder", folders)
    return tuple(settled)


def _winner(
    path: str, claims: Sequence[Package], prefixes: Mapping[str, str], owners: Mapping[str, str]
) -> Package | None:
    prefix = prefixes.get(claims[0].environment, "").strip("/")
    if (owner := owners.get(path.removeprefix(f"{prefix}/"))) is not None:
        for package in claims:
            if package.name == owner:
                return package
        names = " and ".join(package.name for package in claims)
        raise InputError(
            f"[conda] owners gives /{path} to `{owner}`, and it is {names} that bring it",
            hint="name one of them in lithify.toml, or leave the path out",
        )
    wheels = [package for package in claims if package.kind == "pypi"]
    if len(wheels) > 1:
        return None
    return wheels[0] if wheels else claims[-1]


def linking_order(packages: Iterable[Package]) -> list[Package]:
    """Packages in the order in which conda would link them: after what they depend on, else by name.

    Where packages depend on each other in a circle, the one that is met first goes last.
    """
    ordered = sorted(packages, key=lambda package: (package.environment, package.name, package))
    by_name = {(package.environment, package.name): package for package in ordered}
    result: list[Package] = []
    met: set[Package] = set()
    for first in ordered:
        if first in met:
            continue
        met.add(first)
        waiting = [(first, iter(_needed(first, by_name)))]
        while waiting:
            package, rest = waiting[-1]
            needed = next((one for one in rest if one not in met), None)
            if needed is None:
                result.append(package)
                waiting.pop()
            else:
                met.add(needed)
                waiting.append((needed, iter(_needed(needed, by_name))))
    return result


def _needed(package: Package, by_name: Mapping[tuple[str, str], Package]) -> list[Package]:
    names = sorted({spec.split(maxsplit=1)[0].lower() for spec in package.depends if spec.strip()})
    found = (by_name.get((package.environment, name)) for name in names)
    return [needed for needed in found if needed is not None]


def _has_below(path: str, paths: Mapping[str, str]) -> bool:
    return any(other.startswith(f"{path}/") for other in paths)


def _refusal(message: str, refused: Mapping[tuple[Package, Package], Sequence[str]]) -> LithifyError:
    lines = []
    for (one, two), paths in refused.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines.append(f"{one.name} {one.version} and {two.name} {two.version}: /{paths[0]}{more}")
    return LithifyError(
        message,
        details="\n".join(lines),
        hint="leave one of them out, or choose versions that do not collide",
    )
