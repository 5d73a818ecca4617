"""A shop on Django. `pip install 'jobrpc[fast,django,reload]'`, and here, each in its own terminal:

    rpc redis --port 6379        # if you have no Redis
    python manage.py migrate && python manage.py rpc --concurrency 4 --reload
    python manage.py runserver

Then order something at http://127.0.0.1:8000/. RPC_BACKEND in the environment changes the backend's URL.
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    execute_from_command_line(sys.argv)
