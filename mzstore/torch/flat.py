"""Flat: the state of a checkpoint as torch.distributed.checkpoint sees it, under flat names, and as it is stored, nested.

A flat name is the path of keys and indices with dots between. Mappings are descended, and lists that hold tensors or mappings;
whatever else is found is a value (as ``flatten_state_dict`` of PyTorch has it).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mzstore.checkpoints.state import MAX_DEPTH
from mzstore.errors import FormatError

Path = tuple[str | int, ...]  # keys of mappings and indices of lists


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor or a value. ``doc`` is what the structure of the state has for it."""

    path: Path
    doc: Any

    @property
    def tensor(self) -> str | None:
        """The name of the tensor that it is, if it is one."""
        return _tensor(self.doc)


def name_of(path: Path) -> str:
    return ".".join(map(str, path))


def nest(leaves: Mapping[Path, Any]) -> Any:
    """The structure that has the document ``leaves[path]`` at each path. Raises ValueError if no state is so."""
    root: dict[Any, Any] = {}
    for path, doc in leaves.items():
        at = root
        for key in path[:-1]:
            at = at.setdefault(key, {})
            if isinstance(at, Leaf):
                raise ValueError(f"{name_of(at.path)!r} is a value, and {name_of(path)!r} is inside of it")
        if path[-1] in at:
            raise ValueError(f"{name_of(path)!r} occurs twice")
        at[path[-1]] = Leaf(path, doc)
    return _nested(root, ())


def _nested(node: Any, path: Path) -> Any:
    if isinstance(node, Leaf):
        return node.doc
    if {str}.issuperset(map(type, node)):
        return {"dict": {key: _nested(inner, (*path, key)) for key, inner in node.items()}}
    if node.keys() != set(range(len(node))):
        raise ValueError(f"{name_of(path)!r} is a list of which not all members are there")
    return [_nested(node[i], (*path, i)) for i in range(len(node))]


def flatten(structure: object, *, where: str) -> dict[str, Leaf]:
    """All leaves of a stored state, by flat name. Raises FormatError for what is no state, and for two of one name."""
    members = _members(structure)
    if members is None:
        raise FormatError("its state is no dict", where=where, clause="checkpoint-3")
    found: dict[str, Leaf] = {}
    for key, inner in members:
        for leaf in _leaves(inner, (key,), where):
            if name_of(leaf.path) in found:
                raise FormatError(
                    f"two values are called {name_of(leaf.path)!r:.200}", where=where, clause="checkpoint-3"
                )
            found[name_of(leaf.path)] = leaf
    return found


def _leaves(doc: object, path: Path, where: str) -> Iterator[Leaf]:
    if len(path) > MAX_DEPTH:
        raise FormatError(f"containers are nested deeper than {MAX_DEPTH}", where=where, clause="checkpoint-3")
    members = _members(doc)
    if members is not None:
        for key, inner in members:
            yield from _leaves(inner, (*path, key), where)
    elif isinstance(doc, list) and _descended(doc, MAX_DEPTH):
        for i, inner in enumerate(doc):
            yield from _leaves(inner, (*path, i), where)
    else:
        yield Leaf(path, doc)


def _descended(doc: list[Any], depth: int) -> bool:
    return depth > 0 and any(
        _tensor(each) is not None
        or _members(each) is not None
        or (isinstance(each, list) and _descended(each, depth - 1))
        for each in doc
    )


def _tensor(doc: object) -> str | None:
    match doc:
        case {"tensor": str(name)}:
            return name
    return None


def _members(doc: object) -> list[tuple[str, Any]] | None:
    """Those of a mapping, in order; None for anything else."""
    match doc:
        case {"dict": dict(members)} | {"ordered": dict(members)}:
            return list(members.items())
        case {"dict_items": list(pairs)} | {"ordered_items": list(pairs)}:
            return [(_key(pair[0]), pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2]
    return None


def _key(doc: object) -> str:
    match doc:
        case {"int": str(digits)}:
            return digits
    return str(doc)
