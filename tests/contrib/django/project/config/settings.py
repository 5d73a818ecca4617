"""A project for tests. Where its database and its broker are, the environment says."""

import json
import os
from urllib.parse import urlsplit

SECRET_KEY = "of-tests"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "config.urls"
LOGIN_URL = "/login/"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rpc.contrib.django",
    "tally",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

url = urlsplit(os.environ["TEST_DATABASE"])
if url.scheme == "sqlite":
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": url.path}}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path.lstrip("/"),
            "HOST": url.hostname,
            "PORT": url.port,
            "USER": url.username,
        }
    }
DATABASES["default"] |= json.loads(os.environ.get("TEST_CONNECTIONS", "{}"))

LOGGING = json.loads(os.environ.get("TEST_LOGGING", "{}"))

RPC = {
    "BACKEND": os.environ["TEST_BROKER"],
    "SERVICES": ["tally.services.Tally"],
    "JOB_MAPPING": {"double": "tally.services.double"},
    "HOOKS": {"pre_call": "tally.services.before", "post_error": ["tally.services.failed"]},
    "CONCURRENCY": 3,
    "timeout": 20,
    **json.loads(os.environ.get("TEST_RPC", "{}")),
}
