"""A program of its own: many greenlets that share a client. `python -m tests.faults.greenlets URL CALLS`."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

import gevent  # noqa: E402

from rpc import RpcClient  # noqa: E402

from .programs import answer_to  # noqa: E402


def main(url: str, calls: int) -> int:
    """The number of wrong answers."""
    with RpcClient(backend=url) as client:

        def wrong(number: int) -> bool:
            job = f"greenlet-{number}"
            return bool(client.call_and_wait("work", {"job": job, "seconds": 0.001}).data != answer_to(job))

        greenlets = [gevent.spawn(wrong, number) for number in range(calls)]
        gevent.joinall(greenlets, raise_error=True)
        return sum(greenlet.value for greenlet in greenlets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
