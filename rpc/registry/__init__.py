"""The shells of the registry: a worker that is a service gives signs of life, a client looks for services, or
watches them. What the signs mean is in `core.registry`."""
