"""What runs, to be looked at: nothing can be changed here, and no model is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils.cache import add_never_cache_headers
from django.views import View

from ...core.codecs import JSON
from ...describe import WorkerInfo
from ...errors import RpcError
from .client import client


def is_staff(request: HttpRequest) -> bool:
    """Whether somebody is logged in who may use the admin site, too."""
    user = getattr(request, "user", None)  # without AuthenticationMiddleware there is none
    return bool(user and user.is_active and user.is_staff)


class StatusView(View):
    """The workers that run now, with what each of them offers, as they answer within `wait` seconds; status
    503 if the broker does not. As HTML, or `as_json`. For whom, `is_allowed` says of a request."""

    as_json = False
    wait = 0.5
    is_allowed: Callable[[HttpRequest], bool] = staticmethod(is_staff)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Raises PermissionDenied; who might be allowed is asked to log in."""
        if not self.is_allowed(request):
            user = getattr(request, "user", None)
            if self.as_json or user is None or user.is_authenticated:
                raise PermissionDenied
            return redirect_to_login(request.get_full_path())
        response = super().dispatch(request, *args, **kwargs)
        add_never_cache_headers(response)
        return response

    def get(self, request: HttpRequest) -> HttpResponse:
        workers: list[WorkerInfo] = []
        error = ""
        try:
            workers = client().describe(wait=self.wait)
        except RpcError as failed:
            error = f"{type(failed).__name__}: {failed}"
        status = 503 if error else 200
        if self.as_json:
            body = JSON.encode({"error": error} if error else {"workers": workers})
            return HttpResponse(body, content_type="application/json", status=status)
        return render(request, "rpc/status.html", {"workers": workers, "error": error}, status=status)
