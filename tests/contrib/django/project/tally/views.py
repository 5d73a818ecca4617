"""The web side: it asks workers, and has things done when a transaction has committed."""

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse

from rpc.contrib.django import call_on_commit, rpc

from .models import Note


def double(request: HttpRequest, number: int) -> JsonResponse:
    return JsonResponse({"is": rpc.call_and_wait("double", [number]).data})


def notes(request: HttpRequest) -> HttpResponse:
    """GET: all that is noted. POST: note a text, and have a worker say so; with `?fail`, neither."""
    if request.method != "POST":
        return JsonResponse({"notes": list(Note.objects.order_by("pk").values_list("text", flat=True))})
    text = request.body.decode()
    with transaction.atomic():
        Note.objects.create(text=text)
        call_on_commit("tally.confirm", [text])
        transaction.set_rollback("fail" in request.GET)
    return HttpResponse(status=201)
