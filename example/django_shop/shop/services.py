"""What the worker does. The web side knows the names alone."""

from datetime import timedelta
from typing import Any

from django.utils.timezone import now

from rpc import every, expose, on
from rpc.contrib.django import rpc

from .models import Order

PRICES = {"tea": 250, "coffee": 400, "cake": 320}


class Orders:
    name = "orders"

    @expose
    def price(self, item: str) -> int:
        return PRICES[item]

    @expose
    def pack(self, number: int) -> None:
        """Done twice, as any job may be, it changes nothing."""
        order = Order.objects.get(pk=number)
        rpc.publish("order.packed", {"number": number})
        Order.objects.filter(pk=number).update(cents=PRICES[order.item] * order.quantity)

    @every(seconds=60, singleton=True)
    @expose
    def pack_forgotten(self, seconds: float = 60) -> None:
        """Those whose job was not sent, because the broker was away when they were saved."""
        since = now() - timedelta(seconds=seconds)
        for order in Order.objects.filter(cents=None, placed__lt=since):
            self.pack(order.pk)


class Letters:
    @on("order.packed", group="letters", durable=True)
    def write(self, event: Any) -> None:
        """To the customer."""
        order = Order.objects.get(pk=event.data["number"])
        Order.objects.filter(pk=order.pk).update(letter=f"{order.quantity} x {order.item} is on its way")
