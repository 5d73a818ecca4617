"""The settings of the whole project; RPC is what the worker and the web side have in common."""

import os
from pathlib import Path

HERE = Path(__file__).parent
DEBUG = True
SECRET_KEY = os.environ.get("SECRET_KEY", "not a secret: this is an example")
ROOT_URLCONF = "urls"
LOGIN_URL = "login"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", HERE / "shop.sqlite3"),
    }
}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]


INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rpc.contrib.django",
    "shop",
]

RPC = {
    "BACKEND": os.environ.get("RPC_BACKEND", "redis://127.0.0.1:6379/0"),
    "SERVICES": ["shop.services.Orders", "shop.services.Letters"],
    "TIMEOUT": 5,
}
