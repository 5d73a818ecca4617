"""What is in stock."""

from rpc import expose


class OutOfStock(Exception):
    pass


class Stock:
    name = "stock"

    def __init__(self) -> None:
        self._left = {"tea": 5, "coffee": 1}

    @expose
    def take(self, item: str, quantity: int) -> int:
        """How many are left."""
        if self._left.get(item, 0) < quantity:
            raise OutOfStock(f"{quantity} x {item}")
        self._left[item] -= quantity
        return self._left[item]
