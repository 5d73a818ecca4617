"""The page of the shop, and the status of its workers for staff (`manage.py createsuperuser`)."""

from django.contrib.auth.views import LoginView
from django.urls import include, path
from shop import views

urlpatterns = [
    path("", views.orders, name="orders"),
    path("place/", views.place, name="place"),
    path("price/<str:item>/", views.price, name="price"),
    path("login/", LoginView.as_view(template_name="shop/login.html"), name="login"),
    path("rpc/", include("rpc.contrib.django.urls")),
]
