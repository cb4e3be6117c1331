"""The part of the server that knows the models: rights, accounts, lists, images, history, demonstration data."""
