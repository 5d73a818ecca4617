"""RabbitMQ natively, over AMQP 0-9-1."""

from .backend import AmqpBackend as AmqpBackend
