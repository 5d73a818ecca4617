from common import BROKER, ROUTES

RPC_BACKEND = BROKER
RPC_ROUTES = ROUTES
RPC_SERVICES = ["orders.Orders", "orders.Audit"]
RPC_QUEUES = ["example.orders"]
