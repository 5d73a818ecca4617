"""Buys tea, and more coffee than there is."""

from rpc import RemoteError, RpcClient

with RpcClient() as client:
    orders = client.services.orders
    print("-----> tea:", orders.place("tea", quantity=2))
    try:
        orders.place("coffee", 2)
    except RemoteError as error:
        print("-----> coffee:", error)
    soon = orders.place.submit("coffee")
    print("-----> one coffee:", soon.result())
