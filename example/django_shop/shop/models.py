"""What is kept of an order."""

from django.core.validators import MinValueValidator
from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=20, choices=[(each, each) for each in ("tea", "coffee", "cake")])
    quantity = models.PositiveIntegerField(validators=[MinValueValidator(1)])
    placed = models.DateTimeField(auto_now_add=True)
    cents = models.PositiveIntegerField(null=True)
    """What it costs; None as long as it is not packed."""
    letter = models.TextField(default="")
    """What the customer was told."""
