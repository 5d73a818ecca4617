"""`path("rpc/", include("rpc.contrib.django.urls"))`: the status, at `rpc/` for people, and at
`rpc/status.json` for programs."""

from django.urls import path

from .views import StatusView

app_name = "rpc"
urlpatterns = [
    path("", StatusView.as_view(), name="status"),
    path("status.json", StatusView.as_view(as_json=True), name="status-json"),
]
