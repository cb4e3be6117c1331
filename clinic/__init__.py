"""The part of the server that knows the models: who may do what, lists, images, history, demo data."""
