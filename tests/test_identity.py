"""Who a service is, and which versions somebody wants."""

import pytest

from rpc.identity import Identity, ordered, wanted


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("domain", each) for each in ("", "a.b", "a b", "x" * 64, "é", "a\n", "rpc")),
        *(("type", each) for each in ("a.b", "a b", "x" * 64, "a\n")),
        *(("id", each) for each in ("", "a.b", "*")),
        *(("version", each) for each in ("", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-", "v1.2.3", "1.2.3\n")),
        *(("version", each) for each in ("1.0.0-01", "1.0.0-a.01", "1.0.0-a..b", "1.0.0+..", "1.0.0+a..b")),
        *((part, each) for part in ("domain", "id", "version") for each in (None, 1, b"1.0.0", [])),
    ],
)
def test_a_part_that_is_none_is_named(part, value):
    with pytest.raises(ValueError, match=f"is no {part} of a service"):
        Identity(**{part: value})


def test_the_parts_together_must_fit_into_the_name_of_a_queue():
    with pytest.raises(ValueError, match="together at most 120"):
        Identity(domain="d" * 60, type="t" * 60, id="i")


def test_a_service_has_queues_of_its_own_and_a_worker_that_is_none_has_not():
    service = Identity(domain="shop", type="orders", id="eu")
    queues = ("shop.orders.eu", "shop.orders", "shop.orders.eu.0.0.0")
    assert (str(service), service.queues) == ("shop.orders.eu", queues)
    assert Identity().queues == ()


def test_versions_are_ordered_as_the_examples_of_the_specification_are():
    rising = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2"]
    rising += ["1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "2.0.0", "2.1.0", "2.1.1", "10.0.0"]
    assert sorted(reversed(rising), key=ordered) == rising
    assert ordered("1.0.0+build.05") == ordered("1.0.0")
    assert ordered("1.0.0-0.0a.-") < ordered("1.0.0-1")


@pytest.mark.parametrize(
    ("versions", "fitting", "others"),
    [
        ("1.4.0", ["1.4.0", "1.4.0+x"], ["1.4.1", "1.4.0-rc.1"]),
        ("==1.4", ["1.4.0"], ["1.4.1"]),
        (">=1.2", ["1.2.0", "1.10.0", "2.0.0-rc.1"], ["1.1.9", "1.2.0-rc.1"]),
        (">=1.2,<2", ["1.2.0", "1.99.0"], ["2.0.0", "1.0.0"]),
        (" > 1 , != 1.3.1 ", ["1.0.1", "1.3.2"], ["1.0.0", "1.3.1"]),
        ("<=1", ["1.0.0", "0.9.0"], ["1.0.1"]),
    ],
)
def test_versions_that_are_wanted(versions, fitting, others):
    fits = wanted(versions)
    assert [each for each in [*fitting, *others] if fits(each)] == fitting


@pytest.mark.parametrize("versions", ["", "1.2.3.4", "~1", ">=", "1.2,", "latest", ">=1 <2"])
def test_what_says_no_versions_is_refused(versions):
    with pytest.raises(ValueError, match="no version"):
        wanted(versions)
