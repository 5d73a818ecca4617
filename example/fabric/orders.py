from typing import Any

from rpc import Request, RpcClient, expose


class Orders:
    name = "orders"

    def __init__(self) -> None:
        self._client = RpcClient()
        self._prices: Any = self._client.service(type="prices", version=">=1.2,<2").prices

    @expose
    def place(self, request: Request) -> dict[str, Any]:
        """Ask another service for the price, and tell everybody who wants to know of large orders."""
        item, quantity = request.data["item"], request.data["quantity"]
        total = self._prices.of(item, quantity=quantity)
        order = {"id": request.id, "item": item, "total": total}
        self._client.publish("orders", order, headers={"item": item, "large": total > 20})
        return order
