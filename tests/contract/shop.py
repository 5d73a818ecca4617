"""A service with most of what annotations can say."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import pydantic

from rpc import Event, Request, expose, on


class Colour(enum.Enum):
    """What it looks like."""

    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclass
class Item:
    """Something to buy."""

    name: str
    price: Decimal
    colour: Colour = Colour.RED
    parts: list[Item] = field(default_factory=list)
    until: datetime | None = None


class Cash(msgspec.Struct, tag=True):
    given: float


class Card(msgspec.Struct, tag=True, rename={"from_": "from"}):
    number: str
    from_: date | None = None


class Place(NamedTuple):
    x: int
    y: int


class Address(pydantic.BaseModel):
    """Where somebody lives."""

    street: str
    zip_code: str = pydantic.Field(alias="zip")
    neighbours: list[Address] = []


HERE, ODD = Place(0, 0), object()


class Shop:
    """Sells things."""

    name = "shop.main"

    @expose
    def buy(self, item: Item, quantity: Annotated[int, msgspec.Meta(ge=1)] = 1, *, paid: Cash | Card) -> str:
        """Buy something. It is sent at once.

        A receipt is returned.
        """
        return f"{quantity} x {item.name} ({item.colour.name.lower()}) by {type(paid).__name__}"

    @expose
    def list(self, list: list[str] | None = None, mode: Literal["all", "some"] = "all") -> list[Item]:
        return [Item(name, Decimal("1.50"), until=datetime(2030, 1, 2, 3)) for name in list or ["tea"]]

    @expose
    def sum(self, first: float, /, second: float = 0, *rest: float, **named: float) -> float:
        return first + second + sum(rest) + sum(named.values())

    @expose
    def tail(self, lines: int, pause: timedelta = timedelta(0)) -> Iterator[Item]:
        for number in range(lines):
            yield Item(str(number), Decimal(number))

    @expose
    async def ticks(self, *, to: int = 2) -> AsyncIterator[dict[str, int]]:
        for number in range(to):
            yield {"tick": number}

    @expose
    def talk(self) -> Generator[str, int, bool]:
        yield "hello"
        return True

    @expose
    def where(self, address: Address, path: Path = Path("/"), at: Place = HERE) -> tuple[int, str] | None:
        return len(address.neighbours), address.street

    @expose
    def move(
        self, id: UUID, payment: Cash | Card | None = None, kind: int | str | None = None
    ) -> Cash | Card:
        return payment or Card("1234", date(2029, 1, 1))

    @expose
    def nothing(self, odd: Any = ODD, data: bytes = b"") -> None:
        """Nothing to do."""

    @expose
    def unannotated(self, one, two=None):  # type: ignore[no-untyped-def]
        return one

    @on("payment.*", group="accountant", durable=True)
    def paid(self, item: Item) -> None:
        """Write it down."""

    @on("payment.*", headers={"country": "de", "vip": None}, match="any")
    @on("boom", headers={"loud": True})
    @on("boom")
    def hear(self, event: Event) -> None:
        """Nothing to do."""


setattr(Shop, "class", expose(lambda self, x: x))


def raw(request: Request) -> dict[str, int]:
    """Anything will do."""
    return {"got": len(request.data)}
