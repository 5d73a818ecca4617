"""What a worker offers, for programs: OpenRPC and AsyncAPI documents, clients made of them, and which of
their changes break callers."""
