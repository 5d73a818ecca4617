FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY rpc rpc
# Wheels alone: there is no compiler here.
RUN pip install --only-binary :all: ".[fast]"

COPY example example
RUN useradd --no-create-home app
USER app
WORKDIR /app/example
CMD ["python", "worker.py"]
