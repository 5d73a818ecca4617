"""Other people's frameworks. Nothing of ours imports this package."""
