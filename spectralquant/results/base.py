"""`Row`: a typed row of a results file. Fields that a producer does not set are not written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

Figure = float | None
"""A measured number; null in a file where it came out as no number (NaN, infinity)."""
Options = dict[str, Any]
"""Options of a method, as its constructor takes them."""


class Row(BaseModel):
    """Read by attribute. By name too (`row["kl_nats"]`, `row.get(…)`, `dict(row)`), for tables over any rows; those show set
    fields alone.

    A file may hold fields that this version does not know (they are kept); a row that is written may not.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())

    def keys(self) -> Iterator[str]:
        """Names of the fields that are set, as files spell them."""
        fields = type(self).model_fields
        for name in (*fields, *(self.model_extra or {})):
            if name in self.model_fields_set:
                yield (fields[name].alias or name) if name in fields else name

    def __getitem__(self, name: str) -> Any:
        attribute = self._attribute(name)
        if attribute not in self.model_fields_set:
            raise KeyError(name)
        return getattr(self, attribute)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, self._attribute(name), value)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._attribute(name) in self.model_fields_set

    def get(self, name: str, default: Any = None) -> Any:
        """A field that is set, or `default`."""
        try:
            return self[name]
        except KeyError:
            return default

    def items(self) -> Iterator[tuple[str, Any]]:
        """Set fields and their values."""
        return ((name, self[name]) for name in self.keys())

    def updated(self, **fields: Any) -> Self:
        """The same row with other fields, checked."""
        return type(self).model_validate({**dict(self.items()), **fields})

    def as_json(self) -> dict[str, Any]:
        """What a file holds of it."""
        return self.model_dump(exclude_unset=True, by_alias=True)

    @classmethod
    def _attribute(cls, name: str) -> str:
        for attribute, field in cls.model_fields.items():
            if field.alias == name:
                return attribute
        return name


def undeclared(value: Any, where: str = "") -> str | None:
    """The first field of a row, or of a row in it, that its type does not declare."""
    if isinstance(value, Row):
        for name in value.model_extra or ():
            return f"{where}{type(value).__name__}.{name}"
        return next((first for each in value.model_fields_set if (first := undeclared(getattr(value, each)))), None)
    if isinstance(value, list):
        return next((first for each in value if (first := undeclared(each))), None)
    return None
