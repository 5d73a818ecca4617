"""Calls the jobs of the settings. The first is the same as `rpc call add a:=1 b:=1` in this directory."""

from rpc import InvalidParams, RemoteError, RpcClient

client = RpcClient()

response = client.call_and_wait("add", {"a": 1, "b": 1})
print("-----> client: add says", response.data)

response = client.call_and_wait("multiply", {"a": 6, "b": 7})
print("-----> client: multiply says", response.data)

for data in {"a": 1, "b": 0}, {"a": 1, "b": "two"}:
    try:
        client.call_and_wait("divide", data)
    except (RemoteError, InvalidParams) as error:
        print(f"-----> client: divide says {type(error).__name__}: {error}")

id = client.call("add", {"a": 2, "b": 2})
print(f"-----> client: nobody waits for {id}")
