from tests.conformance.test_http import OnHttp


class TestWebSocket(OnHttp):
    scheme = "ws"


class TestWebSocketInALoop(OnHttp):
    scheme = "ws"
    asynchronous = True
