"""The settings module: found, read once, checked whole."""

from __future__ import annotations

import importlib
import os
import sys
from collections import OrderedDict
from types import ModuleType

import pytest

from rpc import RpcClient, RpcReceiver, SettingsError
from rpc.backends.memory import MemoryBackend
from rpc.settings import VARIABLES, Settings, load_settings

JOBS = {"len": len}


def module(**keys):
    made = ModuleType("shop.settings")
    vars(made).update(keys)
    return made


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules into the working directory, which is not on the path yet; forgets them afterwards."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)

    def write(name, text):
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()

    yield write
    for name, loaded in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(loaded, "__spec__", "")):
            del sys.modules[name]


VALUES = {
    "RPC_SERVICES": (("shop.Orders",), "shop.Orders"), "RPC_MIDDLEWARE": ((print,), print),
    "RPC_ROUTES": ({"stock.*": "stock"}, {"stock.*": 1}), "RPC_HOOKS": ({"pre_call": print}, [print]),
    "RPC_JOB_MAPPING": ({"add": print}, [print]), "RPC_BACKEND": ("memory://", 42),
    "RPC_RECEIVER_BACKEND": (MemoryBackend(), ["memory://"]), "RPC_CLIENT_BACKEND": ("memory://", 42),
    "RPC_TIMEOUT": (None, "30"), "RPC_CONCURRENCY": (8, 1.5), "RPC_COROUTINES": (9, 1.5),
    "RPC_QUEUES": (("high", "low"), "default"),
    "RPC_CODEC": ("msgpack", 5), "RPC_ACCEPT": (("json",), "json"), "RPC_COMPRESS": ("gzip:16kB", 16_000),
    "RPC_DELIVERY": ("at-most-once", "exactly-once"), "RPC_LEASE": (5.0, "5"), "RPC_MAX_DELIVERIES": (2, "2"),
    "RPC_MAX_MESSAGE_BYTES": (10**6, None), "RPC_SEND_TRACEBACKS": (True, "yes"), "RPC_GRACE": (1.5, None),
    "RPC_HEALTH_FILE": ("/run/rpc", 7), "RPC_CONTRACT": ("openrpc.json", 7), "RPC_SEND_LOGS": (True, "yes"),
    "RPC_KEEP_RESULTS": (60.0, -1), "RPC_STORE": ("redis://", 42), "RPC_UNKNOWN_FOR": (5.0, "5"),
    "RPC_STREAM_IDLE": (5.0, 0), "RPC_KEEP_ALIVE": (1.0, 0), "RPC_DOMAIN": ("shop", "a.b"),
    "RPC_SERVICE_TYPE": ("orders", "or ders"), "RPC_SERVICE_ID": ("eu-1", ""),
    "RPC_SERVICE_VERSION": ("1.4.0-rc.1", "1.4"),
    "RPC_SIGNING_KEYS": ({"k": "s" * 32}, 7), "RPC_SIGNING_REQUIRED": (False, "no"),
    "RPC_SIGNING_WINDOW": (60.0, 0), "RPC_TOKENS": ({"pay.*": "t"}, "t"), "RPC_TOKEN": ({"pay.*": "t"}, "t"),
    "RPC_TIME_LIMIT": (1.5, 0), "RPC_MAX_JOBS_PER_CHILD": (100, 0), "RPC_STREAMS_PER_CLIENT": (None, 0),
}  # fmt: skip


def test_a_lease_that_is_said_twice_is_refused():
    settings = load_settings(
        module(RPC_BACKEND="redis://127.0.0.1:1/0?lease=2", RPC_LEASE=3.0, RPC_JOB_MAPPING=JOBS)
    )
    with pytest.raises(SettingsError, match=r"RPC_LEASE and \?lease= of its URL say the same"):
        RpcReceiver(settings=settings)


def test_every_key_is_tested_here():
    assert {key.removeprefix("RPC_").lower() for key in VALUES} == set(vars(Settings())) - {
        "module",
        "origin",
    }


@pytest.mark.parametrize("key", VALUES)
def test_a_key_is_taken_if_its_type_is_right_and_else_refused_with_its_name_and_its_module(key):
    good, bad = VALUES[key]
    assert getattr(load_settings(module(**{key: good})), key.removeprefix("RPC_").lower()) == good
    with pytest.raises(SettingsError, match=rf"^shop\.settings: {key}: "):
        load_settings(module(**{key: bad}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("RPC_CONCURRENCY", 0), ("RPC_TIMEOUT", -1.0), ("RPC_GRACE", -0.1), ("RPC_MAX_MESSAGE_BYTES", 0)],
)
def test_what_is_out_of_range_is_refused(key, value):
    with pytest.raises(SettingsError, match=rf"^shop\.settings: {key}: .*(>= 1|at least 0)"):
        load_settings(module(**{key: value}))


def test_a_list_will_do_for_a_tuple_and_an_int_for_seconds():
    settings = load_settings(module(RPC_QUEUES=["a"], RPC_TIMEOUT=5, RPC_JOB_MAPPING=OrderedDict(a=print)))
    assert (settings.queues, settings.timeout, settings.job_mapping) == (("a",), 5.0, {"a": print})


@pytest.mark.parametrize(
    ("key", "meant"),
    [("RPC_TIMEOUTS", "RPC_TIMEOUT"), ("RPC_timeout", "RPC_TIMEOUT"), ("RPC_QUEUE", "RPC_QUEUES"),
     ("RPC_CONCURENCY", "RPC_CONCURRENCY"), ("RPC_BACKENDS", "RPC_BACKEND")],
)  # fmt: skip
def test_of_a_key_that_is_not_written_well_it_is_asked_which_was_meant(key, meant):
    with pytest.raises(
        SettingsError, match=rf"^shop\.settings has the unknown key {key}; did you mean {meant}\?$"
    ):
        load_settings(module(**{key: 1}))


@pytest.mark.parametrize("key", ["RPC_", "RPC_MODULE", "RPC_ORIGIN", "RPC_WORKDAYS"])
def test_an_unknown_key_is_refused_with_its_name_and_its_module(key):
    with pytest.raises(SettingsError, match=rf"^shop\.settings has the unknown key {key};.* RPC_TIMEOUT,"):
        load_settings(module(**{key: 1}))


def test_other_names_of_the_module_are_its_own_business():
    assert load_settings(module(DEBUG=True, rpc_timeout="x", os=os)) == Settings(module="shop.settings")


def test_a_dictionary_rpc_stands_for_keys_as_in_djangos_settings():
    found = load_settings(module(RPC={"GRACE": 2, "timeout": None}, DEBUG=True))
    assert found == Settings(module="shop.settings", grace=2, timeout=None)
    assert load_settings(module(RPC={"GRACE": 2}, RPC_GRACE=1)).grace == 1
    assert load_settings(module(RPC="its own business")) == Settings(module="shop.settings")
    with pytest.raises(SettingsError, match=r"shop\.settings has the unknown key RPC_THREADS"):
        load_settings(module(RPC={"THREADS": 3}))
    with pytest.raises(SettingsError, match=r"shop\.settings: RPC_GRACE is in RPC twice"):
        load_settings(module(RPC={"GRACE": 2, "grace": 2}))


def test_the_module_is_settings_unless_the_environment_names_another_one(write, monkeypatch):
    for name, text in (
        ("settings", "RPC_GRACE = 1"),
        ("shop.settings", "RPC_GRACE = 2"),
        ("bakery", "RPC_GRACE = 3"),
    ):
        write(name, text)

    assert load_settings() == Settings(module="settings", grace=1)
    monkeypatch.setenv("SETTINGS_IMPORT_PATH", "shop.settings")
    assert load_settings() == Settings(module="shop.settings", grace=2)
    monkeypatch.setenv("RPC_SETTINGS_MODULE", "bakery")
    assert load_settings() == Settings(module="bakery", grace=3)
    assert load_settings("settings").grace == 1


@pytest.mark.parametrize("name", ["nosuch", "nosuch.settings", "shop.nosuch", "shop.py"])
def test_a_missing_module_is_said_to_be_missing(write, name):
    write("shop", "")
    with pytest.raises(SettingsError, match=rf"there is no settings module '{name}'.*RPC_SETTINGS_MODULE"):
        load_settings(name)


@pytest.mark.parametrize(("text", "reason"), [
    ("import nosuch", "No module named 'nosuch'"), ("from os import nosuch", "nosuch"),
    ("x = 1\n1 / 0", r"ZeroDivisionError: division by zero \(broken\.py, line 2\)$"), ("def", "SyntaxError"),
    ("import nosuch", r"\(broken\.py, line 1\)$"),
    ("raise KeyError('SECRET_KEY')", "KeyError: 'SECRET_KEY'"),
    ("class Own(Exception): pass\nraise Own('why')", "Own: why"),
])  # fmt: skip
def test_a_module_that_cannot_be_imported_says_why(write, text, reason):
    write("broken", text)
    with pytest.raises(SettingsError, match=rf"'broken' cannot be imported: .*{reason}") as raised:
        load_settings("broken")
    assert raised.value.__cause__ is not None


def test_an_error_names_the_file_as_it_is_seen_from_here(write):
    write("shop.prices", "1 / 0")
    with pytest.raises(SettingsError, match=r" \(shop/prices\.py, line 1\)$"):
        load_settings("shop.prices")


def test_a_name_is_no_list_of_queues():
    with pytest.raises(
        SettingsError, match=r"queues is 'default': it is a list of names, as in \['default'\]$"
    ):
        RpcReceiver(jobs={"f": print}, backend="memory://", queues="default")


def test_the_name_of_a_file_is_no_name_of_a_module(write):
    write("shop", "")
    with pytest.raises(SettingsError, match=r"--settings without the \.py: 'shop'$"):
        load_settings("shop.py")


def test_a_dotted_path_is_imported(write):
    write("shop.jobs", "def add(): ...")
    write("settings", "RPC_JOB_MAPPING = {'add': 'shop.jobs.add', 'print': print}")
    jobs = load_settings().jobs()
    assert jobs == {"add": sys.modules["shop.jobs"].add, "print": print}


@pytest.mark.parametrize(("target", "reason"), [
    ("add", "which is no dotted path"), ("", "which is no dotted path"), (".add", "which is no dotted path"),
    ("nosuch.add", "No module named 'nosuch'"), ("till.nosuch", "but till has no nosuch"),
    ("broken.add", "'NoneType' object has no attribute 'add'"), ("till.number", "which cannot be called"),
    (5, "which cannot be called"), (None, "which cannot be called"),
])  # fmt: skip
def test_a_job_that_cannot_be_had_is_refused_with_its_name_and_the_reason(write, target, reason):
    write("till", "number = 5")
    write("broken", "None.add")
    write("settings", f"RPC_JOB_MAPPING = {{'add': {target!r}}}")
    with pytest.raises(SettingsError, match=rf"^settings: RPC_JOB_MAPPING\['add'\] .*{reason}"):
        load_settings().jobs()


@pytest.mark.parametrize(("make", "side", "other"), [
    (RpcReceiver, "RECEIVER", "CLIENT"), (RpcClient, "CLIENT", "RECEIVER"),
])  # fmt: skip
def test_a_missing_backend_is_named_with_its_module(make, side, other):
    settings = module(**{f"RPC_{other}_BACKEND": "memory://", "RPC_JOB_MAPPING": JOBS})
    with pytest.raises(
        SettingsError, match=rf"^shop\.settings has neither RPC_BACKEND nor RPC_{side}_BACKEND"
    ):
        make(settings=settings)


def test_a_client_needs_neither_jobs_nor_a_backend_of_receivers():
    client = RpcClient(settings=module(RPC_CLIENT_BACKEND="memory://", RPC_JOB_MAPPING={"add": "nosuch.add"}))
    assert isinstance(client.backend, MemoryBackend)


def test_two_settings_live_in_one_process_and_a_key_of_one_side_goes_first():
    both, mine = MemoryBackend("memory://both"), MemoryBackend("memory://mine")
    one = module(RPC_BACKEND=both, RPC_TIMEOUT=1, RPC_JOB_MAPPING=JOBS)
    two = module(RPC_BACKEND=both, RPC_CLIENT_BACKEND=mine, RPC_RECEIVER_BACKEND=mine, RPC_JOB_MAPPING=JOBS)

    clients, receivers = [RpcClient(settings=each) for each in (one, two)], [RpcReceiver(settings=one)]
    receivers.append(RpcReceiver(settings=two))

    assert [client.timeout for client in clients] == [1, 30]
    assert [each.backend for each in clients + receivers] == [both, mine, both, mine]


def test_what_is_given_goes_before_what_is_set():
    settings = module(
        RPC_BACKEND="memory://", RPC_TIMEOUT=1, RPC_CONCURRENCY=2, RPC_QUEUES=["a"], RPC_GRACE=3
    )
    given, backend = {"concurrency": 5, "queues": ("b",), "grace": 0}, MemoryBackend()

    client = RpcClient(settings=settings, backend=backend, timeout=None)
    receiver = RpcReceiver(settings=settings, backend=backend, jobs=JOBS, **given)

    assert (client.backend, client.timeout) == (receiver.backend, None) == (backend, None)
    assert vars(receiver).items() >= given.items()


def test_who_is_given_everything_needs_no_settings_module(write):
    assert RpcClient(backend="memory://").timeout == 30
    assert RpcReceiver(backend="memory://", jobs=JOBS).queues == ("high", "default", "low")


@pytest.mark.parametrize(("keys", "reason"), [
    ({"RPC_JOB_MAPPING": {}}, "RPC_SERVICES have no job"), ({"RPC_CONCURRENCY": 0}, "RPC_CONCURRENCY"),
    ({"RPC_JOB_MAPPING": {"../add": len}}, "is no job name"), ({"RPC_QUEUES": []}, "RPC_QUEUES"),
    ({"RPC_QUEUES": ["a b"]}, "RPC_QUEUES"), ({"RPC_ACCEPT": ["pickles"]}, "there is no codec 'pickles'"),
    ({"RPC_LEASE": 5}, "no option 'lease'"), ({"RPC_BACKEND": "carrier-pigeon://"}, "names no backend"),
    ({"RPC_LEASE": 5, "RPC_BACKEND": MemoryBackend()}, "RPC_LEASE goes with a backend's URL"),
    ({"RPC_MAX_DELIVERIES": 5, "RPC_BACKEND": MemoryBackend()}, "RPC_MAX_DELIVERIES goes with"),
])  # fmt: skip
def test_a_receiver_that_could_not_work_is_not_made(keys, reason):
    with pytest.raises(SettingsError, match=reason):
        RpcReceiver(settings=module(**{"RPC_JOB_MAPPING": JOBS, "RPC_BACKEND": "memory://", **keys}))
