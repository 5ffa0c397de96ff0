"""Generated stubs of the wire contract. Never edited: `make proto` makes them."""
