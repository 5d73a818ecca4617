"""The table of orders."""

import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        verbose_name="ID", primary_key=True, serialize=False, auto_created=True
                    ),
                ),
                (
                    "item",
                    models.CharField(
                        max_length=20, choices=[("tea", "tea"), ("coffee", "coffee"), ("cake", "cake")]
                    ),
                ),
                (
                    "quantity",
                    models.PositiveIntegerField(validators=[django.core.validators.MinValueValidator(1)]),
                ),
                ("placed", models.DateTimeField(auto_now_add=True)),
                ("cents", models.PositiveIntegerField(null=True)),
                ("letter", models.TextField(default="")),
            ],
        )
    ]
