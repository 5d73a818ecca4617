"""A client: it looks who is there, places orders, and hears what is published about them."""

import logging

from rpc import RpcClient

ORDERS = [("tea", 1), ("coffee", 4), ("tea", 5), ("coffee", 1)]

logging.basicConfig(format="%(message)s", level=logging.INFO)

with RpcClient() as client:
    shop = client.service(type="orders", wait_for_receiver=30)
    shop.health_check()
    for each in client.list_services(domain="shop"):
        print("service", each.name, each.version)
    with client.subscribe("orders", headers={"item": "coffee"}) as coffee:
        placed = [shop.orders.place(item=item, quantity=quantity) for item, quantity in ORDERS]
        print("total", sum(each["total"] for each in placed))
        for _ in range(2):
            event = coffee.get(timeout=30)
            print("coffee", event.data["total"], event.headers["service_type"], event.headers["large"])
