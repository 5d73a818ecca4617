"""What the project answers."""

from django.urls import include, path
from tally import views

urlpatterns = [
    path("rpc/", include("rpc.contrib.django.urls")),
    path("notes/", views.notes),
    path("double/<int:number>/", views.double),
]
