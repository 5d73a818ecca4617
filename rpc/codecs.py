"""How values are encoded, and how those of classes of your own travel.

`rpc.codecs.register(Money, str, Money.parse)` has amounts sent as text, and made of it again for parameters
that are annotated with Money. A codec of your own is a `Codec`, in the group of entry points `rpc.codecs`, or
named by its dotted path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, TypeVar

from .core.codecs import CODECS, SAFE, Accepted, Codec
from .core.compression import compress_from
from .core.known import is_record, know
from .core.values import public_attributes
from .core.values import register as _register
from .errors import SettingsError
from .settings import Settings
from .transport import Backend

__all__ = ["Codec", "accepted", "codec_named", "named", "public_attributes", "register", "reply_limits"]

GROUP = "rpc.codecs"
T = TypeVar("T")
_named: dict[str, Codec] = {}


def register(
    kind: type[T],
    to: Callable[[T], Any] = public_attributes,
    from_: Callable[[Any], T] | None = None,
    *,
    name: str | None = None,
) -> None:
    """Have instances of a class, and of its subclasses, encoded as what `to` makes of them: by default their
    public attributes. `from_` makes one of what was decoded, for parameters that are annotated with just this
    class. What is encoded already (a dataclass, a Struct, an attrs class, an Enum, a named tuple, a model of
    pydantic) is registered without both, so that the codec `json+types` makes instances of it: of what goes
    by its `name`, which is that of the class with its module if nothing else is said, and which both sides
    must agree on. Registering a class again replaces what was said of it. Raises TypeError for what is no
    class, and ValueError for a class that is encoded in another way, which cannot be changed."""
    if not is_record(kind) or to is not public_attributes or from_ is not None:
        _register(kind, to, from_)
    if from_ is not None or is_record(kind):
        know(kind, name)


def codec_named(codec: str | Codec) -> Codec:
    """The codec of this name: "json", "msgpack", "json+types", "pickle", that of an entry point, or the
    dotted path of a Codec, which is imported; a Codec is returned as it is. Raises SettingsError."""
    found = codec if isinstance(codec, Codec) else _found(codec)
    _named[found.content_type] = found
    return found


def _found(name: str) -> Codec:
    if name in CODECS:
        return CODECS[name]
    if name in _named_by_entry_points():
        found: Any = _loaded(name, lambda: _named_by_entry_points()[name].load())
    elif "." in name:
        module, _, attribute = name.rpartition(".")
        found = _loaded(name, lambda: getattr(import_module(module), attribute))
    else:
        known = ", ".join([*CODECS, *_named_by_entry_points()])
        raise SettingsError(
            f"there is no codec {name!r} (see RPC_CODEC, RPC_ACCEPT); there are {known}, and dotted paths of "
            "others"
        )
    if not isinstance(found, Codec):
        raise SettingsError(f"codec {name!r} is {found!r:.100}, not a rpc.codecs.Codec")
    return found


def _named_by_entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points  # it takes as long to import as all of us, and few need it

    return {each.name: each for each in entry_points(group=GROUP)}


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # the module is the user's
        raise SettingsError(f"codec {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


def accepted(names: Iterable[str | Codec], most: int | None = None, where: str = "RPC_ACCEPT") -> Accepted:
    """What one side reads that names these codecs; `most` is the bytes that a body may have. Raises
    SettingsError."""
    return Accepted(map(codec_named, names), most, where)


def reply_limits(settings: Settings, backend: Backend) -> dict[str, Any]:
    """What a dispatcher must know of the size of replies. Raises SettingsError."""
    return {
        "max_message": settings.max_message_bytes,
        "max_sent": backend.max_message,
        "compress_from": compress_from(settings.compress),
    }


def named() -> list[Codec]:
    """All codecs that anything in this process has named, and those that anybody may send."""
    return [*SAFE, *_named.values()]
