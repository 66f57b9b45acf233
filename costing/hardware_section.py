"""The keys of a device's YAML file, handed out one by one.

Every number is written `{value: "3.35 TB/s", source: ...}`; `source` is a key of the file's own
`sources` table or a sentence. Unknown keys are errors, so that a misspelt one is never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

from costing.units import parse_quantity
from graph_ir.errors import HardwareError, did_you_mean


class Section:
    """One mapping of the file: hands out its keys, and at the end names those nobody asked for.

    Every method raises HardwareError with the file and the key where the value is not of its kind.
    """

    def __init__(self, data: object, file: str, path: str, root: Section | None = None) -> None:
        self.file, self.path = file, path
        self.root = root or self
        if not isinstance(data, dict):
            raise HardwareError(f"{self.where()}: expected keys, found {data!r}")
        self.data: dict[str, object] = {str(key): value for key, value in data.items()}
        self.asked: set[str] = set()
        if root is None:
            self.sources: dict[str, str] = {}

    def where(self, key: str = "") -> str:
        """The file and the path of a key in it, for an error."""
        joined = ".".join(part for part in (self.path, key) if part)
        return f"{self.file}: {joined}" if joined else self.file

    def get(self, key: str, required: bool = True) -> object | None:
        """What stands under a key; None where it is missing and may be."""
        self.asked.add(key)
        value = self.data.get(key)
        if value is None and required:
            close = did_you_mean(key, set(self.data) - self.asked) if self.data else ""
            hint = f" ({close})" if close.startswith("did") else ""
            raise HardwareError(f"{self.where()}: the required key {key!r} is missing{hint}")
        return value

    def text(self, key: str) -> str:
        """A text without a source: a name or a title."""
        value = self.get(key)
        if not isinstance(value, str):
            raise HardwareError(f"{self.where(key)}: expected text, found {value!r}")
        return value

    def flag(self, key: str) -> bool:
        """`true` or `false`."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise HardwareError(f"{self.where(key)}: expected true or false, found {value!r}")
        return value

    def words(self, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        """One or several of the known words."""
        value = self.get(key)
        items = value if isinstance(value, list) else [value]
        for item in items:
            if item not in known:
                hint = did_you_mean(str(item), known)
                raise HardwareError(f"{self.where(key)}: unknown word {item!r}; {hint}")
        return tuple(str(item) for item in items)

    def quantity(self, key: str, dimension: str, default: float | None = None) -> float:
        """A number in the base unit of its dimension; `default` where the file gives none."""
        raw = self.sourced(key, required=default is None)
        if raw is None:
            return 0.0 if default is None else default
        return parse_quantity(raw, dimension, self.where(key))

    def sourced(self, key: str, required: bool = True) -> object | None:
        """The `value` under `key`, after noting its `source`."""
        value = self.get(key, required)
        if value is None:
            return None
        joined = f"{self.path}.{key}" if self.path else key
        entry = Section(value, self.file, joined, self.root)
        known = self.root.data.get("sources") or {}
        source = entry.text("source")
        self.root.sources[joined] = str(known[source]) if source in known else source  # type: ignore[index,operator]
        inner = entry.get("value")
        entry.done()
        return inner

    def one_of(self, key: str, words: tuple[str, ...]) -> str:
        """The word that the file gives for `key`, the first one where it gives none."""
        word = self.sourced(key, required=False)
        if word is not None and word not in words:
            known = ", ".join(words)
            raise HardwareError(f"{self.where(key)}: unknown word {word!r}; known: {known}")
        return str(word or words[0])

    def section(self, key: str) -> Section:
        """The keys under a key."""
        joined = f"{self.path}.{key}" if self.path else key
        return Section(self.get(key), self.file, joined, self.root)

    def sections(self, key: str, required: bool = True) -> Iterator[Section]:
        """The keys of each entry of a list."""
        value = self.get(key, required)
        if value is None:
            return
        if not isinstance(value, list):
            raise HardwareError(f"{self.where(key)}: expected a list, found {value!r}")
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, dict) else index
            joined = f"{self.path}.{key}[{name}]" if self.path else f"{key}[{name}]"
            yield Section(item, self.file, joined, self.root)

    def done(self) -> None:
        """Ends the reading.

        Raises:
            HardwareError: if there is a key that nobody asked for.
        """
        for key in self.data:
            if key not in self.asked:
                hint = did_you_mean(key, self.asked)
                raise HardwareError(f"{self.where()}: unknown key {key!r}; {hint}")
