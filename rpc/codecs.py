"""Values of classes of your own: how they travel.

`rpc.codecs.register(Money, str, Money.parse)` has amounts sent as text, and made of it again for parameters
that are annotated with Money.
"""

from .core.values import public_attributes, register

__all__ = ["public_attributes", "register"]
