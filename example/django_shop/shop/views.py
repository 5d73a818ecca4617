"""The web side: it saves orders, and has the worker do the rest."""

import logging

from django.db import transaction
from django.forms import modelform_factory
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from rpc import BackendUnavailable, QueueFull, RemoteError
from rpc.contrib.django import call_on_commit, rpc

from .models import Order

logger = logging.getLogger(__name__)

OrderForm = modelform_factory(Order, fields=["item", "quantity"])


def orders(request: HttpRequest) -> HttpResponse:
    return page(request, OrderForm())


@require_POST
def place(request: HttpRequest) -> HttpResponse:
    form = OrderForm(request.POST)
    if not form.is_valid():
        return page(request, form, status=422)
    try:
        with transaction.atomic():
            order = form.save()
            call_on_commit("orders.pack", [order.pk])
    except (BackendUnavailable, QueueFull):
        logger.exception("order %d is saved, but its job was not sent: see pack_forgotten", order.pk)
    return redirect("orders")


def price(request: HttpRequest, item: str) -> JsonResponse:
    try:
        return JsonResponse({"cents": rpc.services.orders.price(item)})
    except RemoteError as error:
        return JsonResponse({"error": error.type}, status=404 if error.type == "KeyError" else 502)


def page(request: HttpRequest, form: OrderForm, status: int = 200) -> HttpResponse:
    found = Order.objects.order_by("-pk")
    return render(request, "shop/orders.html", {"form": form, "orders": found}, status=status)
