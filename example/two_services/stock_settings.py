from common import BROKER, ROUTES

RPC_BACKEND = BROKER
RPC_ROUTES = ROUTES
RPC_SERVICES = ["stock.Stock"]
RPC_QUEUES = ["example.stock"]
